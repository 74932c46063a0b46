"""The session layer of DSIN by its definition: a loop over users, sessions, heads and events."""

import torch
import torch.nn.functional as F


def split(rows, numbers, layer):
    """The newest sessions of one user, each cut to its newest events."""
    found = []
    for row, number in zip(rows, numbers.tolist(), strict=True):
        if not found or found[-1][0] != number:
            found.append((number, []))
        found[-1][1].append(row)
    return [torch.stack(events[-layer.max_events :]) for _, events in found[-layer.max_sessions :]]


def interest(events, place, layer):
    """One session's interest: equations 3 to 7 of the paper, one head and one event at a time."""
    if layer.bias_encoding:
        events = events + layer.session_bias[place] + layer.step_bias[: len(events), None] + layer.unit_bias
    query, key, value = (events @ weight.T for weight in layer.projections.weight.chunk(3))
    size = events.size(1) // layer.heads
    attended = torch.zeros_like(events)
    for head in range(layer.heads):
        part = slice(head * size, (head + 1) * size)
        for step in range(len(events)):
            others = [other for other in range(len(events)) if other != step or not layer.blinding]
            if others:
                scores = key[others, part] @ query[step, part] / size**0.5
                attended[step, part] = scores.softmax(0) @ value[others, part]
    attended = attended + events
    return (attended + layer.narrow(F.relu(layer.widen(attended)))).mean(0)


def pooled(query, rows, unit):
    """The activation unit: softmax over the sessions of an MLP on [q, k, q - k, q * k]."""
    wide = query.expand_as(rows)
    hidden = unit.mlp(torch.cat([wide, rows, wide - rows, wide * rows], 1))
    return (unit.fc(hidden).squeeze(1) / rows.size(1) ** 0.5).softmax(0) @ rows


def expected(layer, query, keys, sessions):
    """Return what the layer computes ``[B, 2 * D]``, without dropout."""
    results = []
    for user, (begin, end) in enumerate(zip(keys.offsets[:-1].tolist(), keys.offsets[1:].tolist(), strict=True)):
        if begin == end:
            results.append(torch.zeros(2 * query.size(1), dtype=query.dtype))
            continue
        parts = split(keys.values[begin:end], sessions[begin:end], layer)
        interests = torch.stack([interest(events, place, layer) for place, events in enumerate(parts)])
        onward = layer.forward_lstm(interests[None])[0][0]
        backward = layer.backward_lstm(interests.flip(0)[None])[0][0].flip(0)
        units = ((interests, layer.interest_attention), ((onward + backward) / 2, layer.evolution_attention))
        results.append(torch.cat([pooled(query[user], rows, unit) for rows, unit in units]))
    return torch.stack(results)
