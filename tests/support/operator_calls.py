"""Calls of every native operator: valid ones of any size, and the same with arguments changed, for campaigns."""

import torch
from hypothesis import strategies as st
from interest_cases import NATIVE, pairs, scoring

MARGIN = 64  # elements around a tensor that no kernel may read or write
FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
DTYPES = [*FLOATS, torch.int64, torch.int32, torch.int8, torch.uint8, torch.bool, torch.complex64]
INTEGERS = [0, 1, -1, 2, 7, 63, 2**31 - 1, 2**31, -(2**31), 2**62, 2**63 - 1, -(2**63)]
NUMBERS = [0.0, 1.0, -1.0, 0.5, 1e-40, 3e38, 1e308, float("nan"), float("inf"), -float("inf")]


@st.composite
def histories(draw):
    """Lengths of histories, the widest step, and sizes."""
    lengths = draw(st.lists(st.integers(0, 6), max_size=6))
    return (
        lengths,
        max(lengths, default=0) + draw(st.integers(0, 2)),
        draw(st.integers(1, 9)),
        draw(st.integers(1, 9)),
    )


def _offsets(lengths):
    return torch.nn.functional.pad(torch.tensor(lengths, dtype=torch.int64).cumsum(0), (1, 0))


def _gru(draw):
    lengths, steps, inputs, hidden = draw(histories())
    dtype, cell = draw(st.sampled_from(FLOATS[:2])), draw(st.integers(0, 4))
    gates = 2 if cell == 3 else 3
    layout = draw(st.sampled_from(["lengths", "offsets", "batch_sizes"]))
    batch, rows = len(lengths), sum(lengths)
    sizes = dict.fromkeys(["lengths", "offsets", "batch_sizes"])
    if layout == "lengths":
        shape, sizes[layout] = (batch, steps), torch.tensor(lengths, dtype=torch.int64)
    elif layout == "offsets":
        shape, sizes[layout] = (rows,), _offsets(lengths)
    else:
        counts = [sum(length > step for length in lengths) for step in range(max(lengths, default=0))]
        shape, sizes[layout] = (rows,), torch.tensor(counts, dtype=torch.int64)
        batch = counts[0] if counts else 0
    x, att = torch.randn(*shape, inputs, dtype=dtype), torch.rand(shape, dtype=dtype)
    weights = [torch.randn(gates * hidden, width, dtype=dtype) for width in (inputs, hidden)]
    biases = [torch.randn(gates * hidden, dtype=dtype) if draw(st.booleans()) else None for _ in range(2)]
    att = None if cell == 4 else att  # a plain GRU
    h0 = torch.randn(batch, hidden, dtype=dtype) if draw(st.booleans()) else None
    return [x, att, *weights, *biases, h0, *sizes.values()], cell


def attention_gru(draw):
    tensors, cell = _gru(draw)
    return [*tensors, None, cell, draw(st.booleans()), draw(st.booleans())]


def attention_gru_backward(draw):
    tensors, cell = _gru(draw)
    states, last, gates = NATIVE.attention_gru(*tensors, None, cell, True, draw(st.booleans()))
    wanted = [draw(st.booleans()) for _ in range(4)]
    return [torch.randn_like(states), torch.randn_like(last), *tensors, states, gates, cell, wanted]


def _scoring(draw):
    lengths, steps, depth, width = draw(histories())
    return scoring(
        lengths,
        steps,
        depth,
        (width, 3)[: draw(st.integers(1, 2))],
        draw(st.sampled_from(["linear", "relu", "prelu", "sigmoid", "dice"])),
        draw(st.booleans()),
        draw(st.booleans()),
        draw(st.sampled_from([0.0, 0.3])),
        draw(st.sampled_from(FLOATS[:2])),
    )


def attention_scores(draw):
    found = _scoring(draw)
    starts = None
    if not found.mlp.training and draw(st.booleans()):
        starts = found.offsets[:-1].clone()
    return found.raw(starts, torch.tensor([5]), draw(st.booleans()))


def attention_scores_backward(draw):
    raw = _scoring(draw).raw(None, torch.tensor([5]))
    scores, _, saved = NATIVE.attention_scores(*raw)
    query, keys, offsets, _, parameters, running, seed, *rest, _ = raw
    return [torch.randn_like(scores), scores, query, keys, offsets, parameters, running, seed, saved, *rest]


def auxiliary_loss(draw):
    lengths, _, depth, width = draw(histories())
    found = pairs(lengths, depth, (width,), draw(st.sampled_from(FLOATS[:2])))
    return [*found.rows, found.offsets, found.parameters, draw(st.booleans())]


def rows_from_padded(draw):
    lengths, steps, width, _ = draw(histories())
    kind = draw(st.sampled_from(DTYPES[:-1]))
    return [torch.randn(len(lengths), steps, width).to(kind), _offsets(lengths)]


def padded_from_rows(draw):
    lengths, steps, width, _ = draw(histories())
    kind = draw(st.sampled_from(DTYPES[:-1]))
    return [torch.randn(sum(lengths), width).to(kind), _offsets(lengths), steps]


def weighted_sum(draw):
    lengths, _, width, _ = draw(histories())
    dtype = draw(st.sampled_from(FLOATS[:2]))
    rows = sum(lengths)
    return [torch.randn(rows, width, dtype=dtype), torch.randn(rows, dtype=dtype), _offsets(lengths)]


def weighted_sum_backward(draw):
    values, weights, offsets = weighted_sum(draw)
    return [values.new_ones(offsets.numel() - 1, values.size(1)), values, weights, offsets]


def add_rows_(draw):
    rows, ids, width = draw(st.integers(0, 9)), draw(st.integers(1, 5)), draw(st.integers(1, 9))
    return [
        torch.zeros(ids, width),
        torch.randn(rows, width),
        torch.randint(ids, (rows,)),
        draw(st.integers(-1, 5)),
    ]


def sum_by_id(draw):
    rows, ids, width = draw(st.integers(0, 9)), draw(st.integers(1, 5)), draw(st.integers(1, 9))
    return [torch.randn(rows, width), torch.randint(ids, (rows,)), draw(st.integers(-1, 5))]


def adam_rows_(draw):
    count, width = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    rows = torch.arange(0, count, 2)
    tables = [torch.randn(count, width), torch.randn(count, width), torch.rand(count, width)]
    return [*tables, torch.randn(len(rows), width), rows, 0.01, 0.1, 0.9, 0.99, 1.0, 1e-8]


def adagrad_rows_(draw):
    table, _, square, change, rows, *_ = adam_rows_(draw)
    return [table, square[:, 0].contiguous(), change, rows, 0.01, 0.1, 1e-8]


CALLS = {
    function.__name__: function
    for function in (
        attention_gru,
        attention_gru_backward,
        attention_scores,
        attention_scores_backward,
        auxiliary_loss,
        rows_from_padded,
        padded_from_rows,
        weighted_sum,
        weighted_sum_backward,
        add_rows_,
        sum_by_id,
        adam_rows_,
        adagrad_rows_,
    )
}


def changed_tensor(draw, value):
    """A tensor that differs in one way from another."""
    if value.device.type != "cpu" or value.layout != torch.strided:
        return value
    way = draw(
        st.sampled_from(["shape", "longer", "shorter", "dtype", "values", "values", "strides", "empty", "device"])
    )
    if way == "dtype":
        return value.to(draw(st.sampled_from(DTYPES)))
    if way == "device":
        return value.to("meta") if draw(st.booleans()) else value.to_sparse() if value.dim() else value
    if way == "empty":
        return value[:0] if value.dim() else value.new_empty(0)
    if way == "shape":
        return draw(st.sampled_from([value.unsqueeze(0), value.unsqueeze(-1), value.flatten(), value.sum()]))
    if way == "strides":
        shape = value.shape
        gaps = torch.stack([value, value], -1)[..., 0]
        return draw(
            st.sampled_from(
                [
                    gaps,
                    value.transpose(0, -1) if value.dim() > 1 else gaps,
                    value[:1].expand(shape) if value.dim() and value.size(0) else gaps,
                ]
            )
        )
    if way in ("longer", "shorter") and value.dim():
        dimension = draw(st.integers(0, value.dim() - 1))
        if way == "shorter":
            return value.narrow(dimension, 0, max(value.size(dimension) - 1, 0)).contiguous()
        return torch.cat([value, value.narrow(dimension, 0, min(1, value.size(dimension)))], dimension)
    value = value.detach().clone(memory_format=torch.contiguous_format)
    if value.numel():
        place = draw(st.integers(0, value.numel() - 1))
        bounds = INTEGERS if not value.is_floating_point() and not value.is_complex() else NUMBERS
        number = draw(st.sampled_from(bounds))
        if bounds is INTEGERS and value.dtype != torch.int64:
            number = int(number) % 100
        value.view(-1)[place] = torch.tensor(number, dtype=torch.int64 if bounds is INTEGERS else torch.float64)
    return value


def changed(draw, value):
    """An argument that differs in one way from another."""
    if isinstance(value, torch.Tensor):
        return changed_tensor(draw, value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return draw(st.sampled_from(INTEGERS))
    if isinstance(value, float):
        return draw(st.sampled_from(NUMBERS))
    if isinstance(value, list) and value:
        place = draw(st.integers(0, len(value) - 1))
        way = draw(st.sampled_from(["drop", "twice", "one", "one", "none"]))
        if way == "one":
            return [*value[:place], changed(draw, value[place]), *value[place + 1 :]]
        return {"drop": value[1:], "twice": [*value, value[-1]], "none": []}[way]
    return value


def guarded(value, fill):
    """The same argument with its tensors inside of larger memory, full of other numbers, and that memory."""
    if isinstance(value, list):
        found = [guarded(item, fill) for item in value]
        return [item for item, _ in found], [memory for _, memories in found for memory in memories]
    if not isinstance(value, torch.Tensor) or value.device.type != "cpu" or value.layout != torch.strided:
        return value, []
    value = value.detach()
    extent = 1 + sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))
    extent = extent if value.numel() else 0
    memory = value.new_empty(extent + 2 * MARGIN).fill_(fill if value.is_floating_point() else int(fill) % 100)
    memory[MARGIN : MARGIN + extent] = value.as_strided((extent,), (1,), value.storage_offset())
    return memory.as_strided(value.shape, value.stride(), MARGIN), [memory]


def in_bytes(value):
    """Every number of a result, bit by bit."""
    if isinstance(value, torch.Tensor):
        if value.device.type == "meta" or not value.numel():
            return tuple(value.shape)
        whole = value.detach().to_dense().flatten().clone(memory_format=torch.contiguous_format)
        return whole.view(torch.uint8).numpy().tobytes()
    if isinstance(value, list | tuple):
        return [in_bytes(item) for item in value]
    return value
