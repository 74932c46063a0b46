"""What a module computes, gathered in one dict so that two modules can be compared value by value."""

import torch


def outcome(module, call, leaves):
    """Run ``call()``, which returns (output, auxiliary loss or None), forward and backward.

    The loss is a fixed random weighting of the output plus the auxiliary loss. Returns the output, the
    auxiliary loss, the gradient of every parameter and of every tensor of ``leaves``, and the buffers.
    """
    output, auxiliary_loss = call()
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    loss = (output * weight.to(output.dtype)).sum()
    found = {"output": output.detach()}
    if auxiliary_loss is not None:
        loss = loss + auxiliary_loss
        found["auxiliary loss"] = auxiliary_loss.detach()
    wanted = {**dict(module.named_parameters()), **leaves}
    if loss.requires_grad:
        gradients = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True, materialize_grads=True)
    else:
        gradients = [torch.zeros_like(value) for value in wanted.values()]
    found |= {f"gradient of {name}": value for name, value in zip(wanted, gradients, strict=True)}
    return found | {name: value.clone() for name, value in module.named_buffers()}


def largest_gradient(found):
    """Return the largest absolute value of any gradient in an outcome."""
    return max(
        (v.abs().max().item() for k, v in found.items() if k.startswith("gradient") and v.numel()), default=0
    )


def assert_same(got, want, rtol=1e-12, atol=1e-12):
    """Compare two outcomes.

    A gradient that is zero in exact arithmetic (a bias before batch normalisation or softmax) is rounding
    noise on both sides: gradients may differ by ``rtol`` of the largest gradient of the module. The worst case
    measured in float64 is 7e-15 of the largest value or gradient.
    """
    assert got.keys() == want.keys()
    noise = rtol * largest_gradient(want)
    for name, value in want.items():
        slack = max(atol, noise) if name.startswith("gradient") else atol
        torch.testing.assert_close(
            got[name], value, rtol=rtol, atol=slack, msg=lambda m, name=name: f"{name}: {m}"
        )


def shares_of_allowed_error(got, eager, exact):
    """Return by name what share of the allowed error against float64 ``got`` has; above 1 it is too large.

    Allowed are twice the error of the eager loop in the same dtype and 8 eps of the largest number. Gradients may
    also differ by 1e-6 of the largest gradient, as in :func:`assert_same`.
    """
    noise = 1e-6 * largest_gradient(exact)
    shares = {}
    for name, value in exact.items():
        if not value.is_floating_point() or value.numel() == 0:
            assert torch.equal(got[name], value), name
            continue
        error, eager_error = ((found[name].double() - value).abs().max().item() for found in (got, eager))
        floor = 8 * torch.finfo(got[name].dtype).eps * value.abs().max().item()
        if name.startswith("gradient"):
            floor = max(floor, noise)
        allowed = 2 * eager_error + floor
        shares[name] = error / max(allowed, torch.finfo(torch.float64).tiny)
    return shares


def assert_within_twice(got, eager, exact, most=1):
    """The error against float64 is at most ``most`` times twice that of the eager loop, plus a floor of 8 eps."""
    for name, share in shares_of_allowed_error(got, eager, exact).items():
        assert share <= most, f"{name}: the error is {share} of what is allowed"
