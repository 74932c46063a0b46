"""Compares a model of another library with its accelerated copy: outputs, gradients, buffers."""

import copy

import torch
from torch import nn

import dien_fast


def randomised(model, seed=0, scale=0.5):
    """Draw every parameter anew: libraries start some at zero, where mistakes do not show."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.empty(parameter.shape).uniform_(-scale, scale, generator=generator))
    return model


def pair(model):
    """Return the model and an accelerated copy of it."""
    fast = copy.deepcopy(model)
    report = dien_fast.accelerate(fast)
    return model, fast, report


def run(model, call, leaves=()):
    """Return outputs, gradients by name and buffers after ``call(model)``, which returns a tuple of tensors."""
    model.zero_grad()
    outputs = [value for value in call(model) if value is not None]
    generator = torch.Generator().manual_seed(3)
    loss = sum(
        (value * torch.empty(value.shape).uniform_(-1, 1, generator=generator).to(value.dtype)).sum()
        for value in outputs
    )
    names = dict(model.named_parameters())
    names |= {f"leaf {index}": leaf for index, leaf in enumerate(leaves)}
    gradients = {}
    if loss.requires_grad:
        found = torch.autograd.grad(loss, list(names.values()), allow_unused=True, materialize_grads=True)
        gradients = dict(zip(names, found, strict=True))
    return [value.detach() for value in outputs], gradients, dict(model.named_buffers())


def assert_equal_runs(got, want, outputs=1e-9, gradients=1e-8):
    """Outputs and buffers to 1e-9; each gradient to 1e-8 of its largest, or of 1e-6 of the model's largest."""
    assert len(got[0]) == len(want[0])
    for index, (ours, theirs) in enumerate(zip(got[0], want[0], strict=True)):
        assert ours.shape == theirs.shape, f"output {index} has another shape"
        assert ours.dtype == theirs.dtype, f"output {index} has another dtype"
        worst = float((ours - theirs).abs().max()) if ours.numel() else 0.0
        assert worst <= outputs, f"output {index} differs by {worst}"
    assert got[1].keys() == want[1].keys()
    largest = max((float(value.abs().max()) for value in want[1].values() if value.numel()), default=0.0)
    for name, theirs in want[1].items():
        if theirs.numel() == 0:
            continue
        allowed = gradients * max(float(theirs.abs().max()), 1e-6 * largest)
        worst = float((got[1][name] - theirs).abs().max())
        assert worst <= allowed, f"the gradient of {name} differs by {worst}, allowed {allowed}"
    for name, theirs in want[2].items():
        torch.testing.assert_close(got[2][name], theirs, rtol=outputs, atol=outputs, msg=name)


def classes(model):
    """Return the class of every module."""
    return {name: type(module) for name, module in model.named_modules()}


def hooks_of(model):
    """Return the number of hooks of every module."""
    return {name: len(module._forward_hooks) for name, module in model.named_modules()}


def assert_compares(model, call, leaves=()):
    """The accelerated copy of ``model`` computes the same in training and in evaluation; returns its report."""
    plain, fast, report = pair(model)
    assert report.fast, str(report)
    for training in (True, False):
        plain.train(training)
        fast.train(training)
        assert_equal_runs(run(fast, call, leaves), run(plain, call, leaves))
    return report


class Holder(nn.Module):
    """A model around one layer."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, *args):
        return self.layer(*args)
