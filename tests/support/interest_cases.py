"""Arguments of the interest layer's operators, and the same in plain PyTorch."""

from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F

from dien_fast.ops import attention_scores as ops
from dien_fast.ops.auxiliary_loss import auxiliary_loss

NATIVE = torch.ops.dien_fast
CODES = {"linear": ops.IDENTITY, "relu": ops.RELU, "prelu": ops.PRELU, "sigmoid": ops.SIGMOID, "dice": ops.DICE}
DTYPES = [torch.float32, torch.float64]
NORMS = pytest.mark.parametrize("norm", [True, False], ids=["norm", "no norm"])
MODES = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


def draw(*shape, scale=1.0, generator=None):
    return scale * torch.randn(shape, generator=generator, dtype=torch.float64)


def offsets_of(lengths):
    return F.pad(torch.tensor(lengths, dtype=torch.int64).cumsum(0), (1, 0))


def differentiate(output, leaves):
    """The gradients of a fixed random weighting of an output, by name."""
    weight = draw(*output.shape, generator=torch.Generator().manual_seed(5)).to(output.dtype)
    gradients = torch.autograd.grad((output * weight).sum(), list(leaves.values()))
    return {f"gradient of {name}": value for name, value in zip(leaves, gradients, strict=True)}


@dataclass
class Scoring:
    """The arguments of one call of attention_scores."""

    query: torch.Tensor
    keys: torch.Tensor
    offsets: torch.Tensor
    max_length: int
    mlp: ops.ScoreLayers

    def leaves(self):
        parameters = {f"parameter {index}": value for index, value in enumerate(self.mlp.parameters)}
        return {"query": self.query, "keys": self.keys} | parameters

    def to(self, dtype):
        def move(value):
            return value.detach().to(dtype).requires_grad_(value.requires_grad)

        parameters, running = (list(map(move, values)) for values in (self.mlp.parameters, self.mlp.running))
        mlp = self.mlp._replace(parameters=parameters, running=running)
        return replace(self, query=move(self.query), keys=move(self.keys), mlp=mlp)

    def with_parameters(self, query, keys, *parameters):
        return replace(self, query=query, keys=keys, mlp=self.mlp._replace(parameters=list(parameters)))

    def raw(self, key_start=None, seed=None, save=True):
        """The arguments of the operator itself."""
        mlp = self.mlp
        rest = (self.max_length, mlp.layers, mlp.epsilons, mlp.dropout, mlp.training, save)
        return [self.query, self.keys, self.offsets, key_start, mlp.parameters, mlp.running, seed, *rest]


def scoring(
    lengths,
    max_length=None,
    depth=5,
    widths=(7, 4),
    activation="dice",
    norm=True,
    training=True,
    dropout=0.0,
    dtype=torch.float64,
):
    generator = torch.Generator().manual_seed(0)
    batch, rows = len(lengths), sum(lengths)

    def some(*shape, scale=1.0, shift=0.0):
        return shift + draw(*shape, scale=scale, generator=generator)

    parameters, running, epsilons = [], [], []

    def normalisation(width):
        parameters.extend([some(width, scale=0.3, shift=1.0), some(width, scale=0.3)])
        if not training:
            running.extend([some(width, scale=0.3), some(width).abs() + 0.5])

    inputs = 4 * depth
    for width in widths:
        parameters.extend([some(width, inputs, scale=max(inputs, 1) ** -0.5), some(width)])
        if norm:
            normalisation(width)
            epsilons.append(1e-5)
        if activation in ("prelu", "dice"):
            parameters.append(some(1 if activation == "prelu" else width, scale=0.3, shift=0.2))
        if activation == "dice":
            normalisation(width)
            epsilons.append(1e-8)
        inputs = width
    parameters.extend([some(1, inputs), some(1)])
    code = CODES[activation] + ops.NORMALISED * norm
    mlp = ops.ScoreLayers(parameters, running, [code] * len(widths), epsilons, dropout, training)
    longest = max(lengths, default=0)
    found = Scoring(some(batch, depth), some(rows, depth), offsets_of(lengths), max_length or longest, mlp).to(
        dtype
    )
    for leaf in found.leaves().values():
        leaf.requires_grad_()
    return found


def plain(s, masks=None):
    """Scores and batch statistics, from the batch padded with zeros; masks are dropout's, of ragged rows."""
    lengths, depth = s.offsets.diff(), s.keys.size(1)
    batch, steps = lengths.numel(), s.max_length
    valid = torch.arange(steps) < lengths[:, None]
    place = valid.nonzero(as_tuple=True)
    keys = s.keys.new_zeros(batch, steps, depth).index_put(place, s.keys)
    query = s.query[:, None].expand_as(keys)
    x = torch.cat([query, keys, query - keys, query * keys], 2).view(batch * steps, 4 * depth)
    given, running, epsilons = (iter(values) for values in (s.mlp.parameters, s.mlp.running, s.mlp.epsilons))
    statistics = []

    def normalise(x):
        gamma, beta = next(given), next(given)
        if s.mlp.training:
            statistics.extend([x.new_zeros(x.size(1)), x.new_zeros(x.size(1))])
            mean, variance = statistics[-2:]
        else:
            mean, variance = next(running), next(running)
        return F.batch_norm(x, mean, variance, gamma, beta, s.mlp.training, 1.0, next(epsilons))

    for layer, code in enumerate(s.mlp.layers):
        x = F.linear(x, next(given), next(given))
        if code >= ops.NORMALISED:
            x = normalise(x)
        activation = code % ops.NORMALISED
        if activation == ops.RELU:
            x = torch.relu(x)
        elif activation == ops.PRELU:
            x = F.prelu(x, next(given))
        elif activation == ops.SIGMOID:
            x = torch.sigmoid(x)
        elif activation == ops.DICE:
            slope, p = next(given), torch.sigmoid(normalise(x))
            x = p * x + (1 - p) * slope * x
        if masks is not None:
            x = x * x.new_ones(batch, steps, x.size(1)).index_put(place, masks[layer]).view_as(x)
    logits = F.linear(x, next(given), next(given)).view(batch, steps) / depth**0.5
    # Softmax of nothing but -inf would be NaN.
    logits = logits.masked_fill(~valid & (lengths[:, None] > 0), -torch.inf)
    scores = torch.softmax(logits, 1)[valid]
    return scores, torch.cat(statistics) if statistics else scores.new_zeros(0)


def native(s):
    return ops.attention_scores(s.query, s.keys, s.offsets, s.max_length, s.mlp)


class _Seeded(torch.autograd.Function):
    """The operators with a seed of the caller's."""

    @staticmethod
    def forward(ctx, s, seed, *leaves):
        scores, statistics, saved = NATIVE.attention_scores(*s.with_parameters(*leaves).raw(seed=seed))
        ctx.mark_non_differentiable(statistics)
        ctx.s, ctx.seed, ctx.count = s, seed, len(leaves)
        ctx.save_for_backward(scores, saved, *leaves)
        return scores, statistics

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dscores, _):
        scores, saved, *leaves = ctx.saved_tensors
        query, keys, offsets, _, parameters, running, seed, *rest, _ = ctx.s.with_parameters(*leaves).raw(
            seed=ctx.seed
        )
        given = (dscores.contiguous(), scores, query, keys, offsets, parameters, running, seed, saved, *rest)
        dquery, dkeys, dparameters = NATIVE.attention_scores_backward(*given)
        return None, None, dquery, dkeys, *dparameters


def seeded(s, seed):
    return _Seeded.apply(s, seed, *s.leaves().values())


def outcome(compute, s):
    """Scores, statistics and every gradient, by name."""
    scores, statistics = compute(s)
    return {"scores": scores.detach(), "statistics": statistics} | differentiate(scores, s.leaves())


SOME = [3, 0, 6, 1, 6, 2]
MANY = [length % 4 for length in range(101)]
SHAPES = {
    "one step": ([1, 1], 1, 1, (1,)),
    "one history": ([4], 5, 3, (7,)),
    "all full": ([5, 5, 5], 5, 4, (6, 3)),
    "all empty": ([0, 0, 0], 4, 3, (5, 2)),
    "empty at the ends": ([0, 0, 3, 0, 6, 1, 0], 6, 3, (7, 4)),
    "a tile and its neighbours": ([47, 48, 49], 49, 18, (36,)),
    "long": ([145, 0, 97, 1], 145, 18, (36, 8)),
    "many histories": (MANY, 3, 3, (5, 1)),
    "wide": ([50, 3, 0, 20], 50, 36, (80, 40)),
    "wide behind narrow": ([9, 30], 30, 1, (1, 100, 7)),
    "more channels than a panel": ([20, 2], 20, 257, (100, 80, 1)),
    "eight layers": (SOME, 6, 18, (7, 1, 80, 18, 3, 36, 9, 5)),
    "mostly padding": (SOME, 500, 5, (7, 4)),
}
KINDS = [("dice", True, True), ("prelu", False, True), ("relu", True, False), ("dice", False, False)]
KIND_NAMES = [
    f"{activation}-{'norm' if norm else 'no norm'}-{'train' if training else 'eval'}"
    for activation, norm, training in KINDS
]
# Every shape and every kind; make test-all runs all of both under the emulator.
FEW_SCORES = [(shape, KIND_NAMES[i % len(KIND_NAMES)]) for i, shape in enumerate(SHAPES)]


def scoring_of(shape, activation, norm, training, dtype=torch.float64):
    lengths, max_length, depth, widths = SHAPES[shape]
    return scoring(lengths, max_length, depth, widths, activation, norm, training, dtype=dtype)


@dataclass
class Pairs:
    """The arguments of one call of auxiliary_loss."""

    rows: list  # states, events, negatives
    offsets: torch.Tensor
    parameters: list

    def leaves(self):
        names = ["states", "events", "negatives", *[f"parameter {i}" for i in range(len(self.parameters))]]
        return dict(zip(names, [*self.rows, *self.parameters], strict=True))

    def to(self, dtype):
        rows, parameters = (
            [value.detach().to(dtype).requires_grad_() for value in values]
            for values in (self.rows, self.parameters)
        )
        return Pairs(rows, self.offsets, parameters)


def pairs(lengths, depth=5, widths=(7, 4), dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    rows = [draw(sum(lengths), depth, generator=generator) for _ in range(3)]
    parameters, inputs = [], 2 * depth
    for width in (*widths, 1):
        parameters.append(draw(width, inputs, scale=2 * inputs**-0.5, generator=generator))
        parameters.append(draw(width, generator=generator))
        inputs = width
    return Pairs(rows, offsets_of(lengths), parameters).to(dtype)


def plain_loss(p):
    states, events, negatives = p.rows
    before = torch.ones(states.size(0), dtype=torch.bool)
    before[p.offsets[1:][p.offsets.diff() > 0] - 1] = False
    step = before.nonzero().squeeze(1)

    def logits(rows):
        x = torch.cat([states[step], rows[step + 1]], 1)
        for weight, bias in zip(p.parameters[:-2:2], p.parameters[1:-2:2], strict=True):
            x = torch.sigmoid(F.linear(x, weight, bias))
        return F.linear(x, *p.parameters[-2:])

    losses = F.softplus(-logits(events)).sum() + F.softplus(logits(negatives)).sum()
    return losses / max(2 * step.numel(), 1)


def native_loss(p):
    return auxiliary_loss(*p.rows, p.offsets, p.parameters)


def loss_outcome(compute, p):
    loss = compute(p)
    return {"loss": loss.detach()} | differentiate(3 * loss, p.leaves())


LOSS_SHAPES = {
    "one pair": ([2], 1, (1,)),
    "one step each": ([1, 1, 1], 3, (7, 4)),
    "all empty": ([0, 0], 3, (7, 4)),
    "no history": ([], 3, (7,)),
    "empty at the ends": ([0, 0, 3, 0, 6, 1, 0], 3, (7, 4)),
    "a tile and its neighbours": ([48, 49, 50], 18, (36,)),
    "tiles that end in a history": ([30, 30, 1, 38, 2], 18, (36, 8)),
    "long": ([200, 0, 97, 1], 18, (100, 50)),
    "many histories": (MANY, 3, (5, 1)),
    "wide": ([60, 3, 0, 20], 36, (80, 40)),
    "more channels than a panel": ([20, 2], 257, (100, 7, 80)),
    "more channels than outputs": ([80, 3], 90, (7, 4)),
    "eight layers": (SOME, 18, (7, 1, 80, 18, 3, 36, 9, 5)),
}
ROW_LENGTHS = {
    "some": ([3, 0, 6, 1], 6),
    "wider": ([3, 0, 6, 1], 9),
    "all empty": ([0, 0], 3),
    "no steps": ([0, 0], 0),
    "no history": ([], 3),
    "all full": ([4, 4], 4),
    "many": (MANY, 3),
}
ROW_TAILS = [(), (1,), (18,), (2, 3), (257,), (0,)]
# Rows are copied in pieces of 1 to 16 bytes.
ROW_DTYPES = [torch.bool, torch.int32, torch.int64, torch.bfloat16, torch.float32, torch.float64]
ROW_WIDTHS = [1, 3, 8]
# Offsets of four histories that do not rise, or leave the ten rows that there are.
OUTSIDE = [
    [0, 4, 2, 9, 10],
    [-5, 3, 3, 9, 10],
    [0, 2**62, 2**63 - 1, -(2**63), 10],
    [0, 1, 2, 3, 99],
    [7, 3, 0, 0, 0],
]


def plain_padded(values, offsets, steps):
    place = (torch.arange(steps) < offsets.diff()[:, None]).nonzero(as_tuple=True)
    return values.new_zeros(offsets.numel() - 1, steps, *values.shape[1:]).index_put(place, values)


def plain_rows(padded, offsets):
    return padded[torch.arange(padded.size(1)) < offsets.diff()[:, None]]


def plain_sum(values, weights, offsets):
    owner = torch.repeat_interleave(torch.arange(offsets.numel() - 1), offsets.diff())
    out = values.new_zeros(offsets.numel() - 1, values.size(1))
    return out.index_add(0, owner, values * weights[:, None])


@dataclass
class Summands:
    """The arguments of one call of weighted_sum."""

    values: torch.Tensor
    weights: torch.Tensor
    offsets: torch.Tensor

    def leaves(self):
        return {"values": self.values, "weights": self.weights}

    def to(self, dtype):
        values, weights = (value.detach().to(dtype).requires_grad_() for value in self.leaves().values())
        return Summands(values, weights, self.offsets)


def summands(lengths, depth, dtype=torch.float64):
    return Summands(draw(sum(lengths), depth), draw(sum(lengths)), offsets_of(lengths)).to(dtype)


def sum_outcome(compute, s):
    total = compute(s.values, s.weights, s.offsets)
    return {"sum": total.detach()} | differentiate(total, s.leaves())


SHARED_LENGTHS = (4, 0, 60, 4, 3, 1)
STARTS = torch.tensor([10, 999, 0, 10, 67, 5])


def shared_keys(activation="dice", dtype=torch.float64, depth=6):
    """A call whose histories start at STARTS of the same 70 keys, and the call with the keys of each copied."""
    s = scoring(list(SHARED_LENGTHS), 64, depth, (9, 5), activation, training=False, dtype=dtype)
    s.keys = draw(70, depth).to(dtype)
    rows = [torch.arange(length) + start for length, start in zip(SHARED_LENGTHS, STARTS, strict=True)]
    return s, replace(s, keys=s.keys[torch.cat(rows)])
