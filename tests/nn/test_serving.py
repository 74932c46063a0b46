"""Scores of many candidates of a user, from kept and extended states too, equal those of the repeated history."""

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from dien_fast import Interest, Ragged, backend, reference, use_backend

GRU_TYPES = ["GRU", "AIGRU", "AGRU", "AUGRU"]
TOLERANCES = {torch.float64: {"rtol": 1e-12, "atol": 1e-12}, torch.float32: {"rtol": 1e-4, "atol": 1e-5}}
D = 3


@pytest.fixture(params=["native", "reference"])
def _backend(request):
    if request.param == "native" and backend().name != "native":
        pytest.skip("the native backend is not in use")
    with use_backend(request.param):
        yield


def pair(gru_type="AUGRU", dtype=torch.float64, size=D, **options):
    """The reference and the fast layer in evaluation, with batch statistics that are not the initial ones."""
    eager, fast = (
        kind(size, gru_type=gru_type, **{"att_hidden_layers": [4, 3], **options})
        for kind in (reference.Interest, Interest)
    )
    for module in eager.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    fast.load_state_dict(eager.state_dict())
    return eager.to(dtype).eval(), fast.to(dtype).eval()


def ragged(lengths, dtype=torch.float64, size=D, spare=0):
    """Random histories; ``spare`` is added to the width."""
    sizes = torch.tensor(lengths, dtype=torch.int64)
    offsets = nn.functional.pad(sizes.cumsum(0), (1, 0))
    return Ragged(torch.randn(int(offsets[-1]), size, dtype=dtype), offsets, max(lengths, default=0) + spare)


def rows_of(rows):
    """The histories as a list of tensors."""
    return list(rows.values.split(rows.lengths().tolist()))


def joined(histories):
    lengths = torch.tensor([len(history) for history in histories], dtype=torch.int64)
    width = int(lengths.max()) if len(lengths) else 0
    return Ragged(torch.cat(histories), nn.functional.pad(lengths.cumsum(0), (1, 0)), width)


def expected(eager, query, histories, counts):
    """The reference's forward, each user's history repeated for each of the user's candidates."""
    owner = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts, dtype=torch.int64))
    keys, lengths = histories.pad(), histories.lengths()
    with torch.no_grad():
        return eager(query, keys[owner], lengths[owner])[0]


def bounds(counts):
    return nn.functional.pad(torch.tensor(counts, dtype=torch.int64).cumsum(0), (1, 0))


@pytest.mark.usefixtures("_backend")
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("gru_type", GRU_TYPES)
def test_one_user(gru_type, dtype):
    eager, fast = pair(gru_type, dtype)
    for steps, candidates in ((7, 5), (1, 4), (5, 1), (0, 3), (4, 0), (0, 0)):
        keys, query = torch.randn(steps, D, dtype=dtype), torch.randn(candidates, D, dtype=dtype)
        got = fast.evolve_candidates(query, keys)
        want = expected(eager, query, ragged([steps])._replace(values=keys), [candidates])
        assert got.shape == (candidates, D)
        torch.testing.assert_close(got, want, **TOLERANCES[dtype])
        # Offsets may be given for a single user too, whose events may come in the other layouts.
        offsets = torch.tensor([0, candidates])
        assert torch.equal(fast.evolve_candidates(query, keys, candidate_offsets=offsets), got)
        one = Ragged(keys, torch.tensor([0, steps]), steps)
        assert torch.equal(fast.evolve_candidates(query, one), got)
        assert torch.equal(fast.evolve_candidates(query, states=fast.extract(keys)), got)


# By name: the lengths of the users' histories and how many candidates each user has.
USERS = {
    "mixed": ([3, 0, 6, 1, 2, 0], [2, 3, 0, 4, 1, 0]),
    "first and last without candidates": ([2, 3, 4], [0, 5, 0]),
    "no candidates": ([2, 3], [0, 0]),
    "all empty": ([0, 0, 0], [2, 0, 1]),
    "no users": ([], []),
    "one step each": ([1, 1, 1], [1, 2, 3]),
    "many": ([(7 * i) % 11 for i in range(23)], [(5 * i) % 9 for i in range(23)]),
    "long": ([70, 3, 150], [3, 40, 2]),
}


@pytest.mark.usefixtures("_backend")
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("gru_type", GRU_TYPES)
def test_several_users(gru_type, dtype):
    eager, fast = pair(gru_type, dtype)
    for case, (lengths, counts) in USERS.items():
        keys, query = ragged(lengths, dtype), torch.randn(sum(counts), D, dtype=dtype)
        got = fast.evolve_candidates(query, keys, candidate_offsets=bounds(counts))
        assert got.shape == (sum(counts), D), case
        want = expected(eager, query, keys, counts)
        torch.testing.assert_close(got, want, **TOLERANCES[dtype], msg=lambda text, case=case: f"{case}: {text}")
        kept = fast.evolve_candidates(query, states=fast.extract(keys), candidate_offsets=bounds(counts))
        assert torch.equal(kept, got), case


@pytest.mark.parametrize("gru_type", GRU_TYPES)
@pytest.mark.parametrize("size", [1, 16, 33])
def test_sizes(gru_type, size):
    eager, fast = pair(gru_type, size=size)
    lengths, counts = USERS["mixed"]
    keys, query = ragged(lengths, size=size), torch.randn(sum(counts), size, dtype=torch.float64)
    got = fast.evolve_candidates(query, keys, candidate_offsets=bounds(counts))
    torch.testing.assert_close(got, expected(eager, query, keys, counts), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("activation", ["dice", "prelu", "relu", "sigmoid", None])
@pytest.mark.parametrize("batchnorm", [True, False], ids=["norm", "no norm"])
@pytest.mark.parametrize("gru_type", ["GRU", "AUGRU"])
def test_attention_options(gru_type, batchnorm, activation):
    eager, fast = pair(gru_type, att_batchnorm=batchnorm, att_activation=activation, att_dropout=0.5)
    lengths, counts = USERS["mixed"]
    keys, query = ragged(lengths), torch.randn(sum(counts), D, dtype=torch.float64)
    got = fast.evolve_candidates(query, keys, candidate_offsets=bounds(counts))
    torch.testing.assert_close(got, expected(eager, query, keys, counts), rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("_backend")
@pytest.mark.parametrize("gru_type", GRU_TYPES)
def test_an_attention_with_a_hook_runs_it(gru_type):
    """Scores of modules that the operator does not compute come from the modules, with the same numbers."""
    eager, fast = pair(gru_type)
    calls = []
    fast.attention.fc.register_forward_hook(lambda *_: calls.append(1))
    lengths, counts = USERS["mixed"]
    keys, query = ragged(lengths), torch.randn(sum(counts), D, dtype=torch.float64)
    got = fast.evolve_candidates(query, keys, candidate_offsets=bounds(counts))
    torch.testing.assert_close(got, expected(eager, query, keys, counts), rtol=1e-12, atol=1e-12)
    assert calls


@pytest.mark.parametrize("gru_type", GRU_TYPES)
def test_the_width_of_the_rows_has_no_effect(gru_type):
    _, fast = pair(gru_type)
    lengths, counts = USERS["mixed"]
    keys, query = ragged(lengths), torch.randn(sum(counts), D, dtype=torch.float64)
    wide = keys._replace(max_length=50)
    got, want = (fast.evolve_candidates(query, k, candidate_offsets=bounds(counts)) for k in (wide, keys))
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("_backend")
@pytest.mark.parametrize("gru_type", GRU_TYPES)
def test_a_user_s_candidates_do_not_depend_on_others(gru_type):
    _, fast = pair(gru_type)
    lengths, counts = [4, 0, 6], [2, 1, 3]
    keys, query = ragged(lengths), torch.randn(6, D, dtype=torch.float64)
    together = fast.evolve_candidates(query, keys, candidate_offsets=bounds(counts)).split(counts)
    for history, own, want in zip(rows_of(keys), query.split(counts), together, strict=True):
        torch.testing.assert_close(fast.evolve_candidates(own, history), want, rtol=1e-12, atol=1e-12)
        for one, its in zip(own, want, strict=True):
            alone = fast.evolve_candidates(one[None], history)[0]
            torch.testing.assert_close(alone, its, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("_backend")
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_extract_is_the_extractor(dtype):
    _, fast = pair(dtype=dtype)
    lengths = [3, 0, 5, 1]
    keys = ragged(lengths, dtype, spare=2)
    states = fast.extract(keys)
    assert torch.equal(states.offsets, keys.offsets)
    for history, got in zip(rows_of(keys), rows_of(states), strict=True):
        with torch.no_grad():
            want = fast.interest_extractor(history[None])[0][0] if len(history) else history
        torch.testing.assert_close(got, want, **TOLERANCES[dtype])
        alone = fast.extract(history)
        assert alone.offsets.tolist() == [0, len(history)]
        torch.testing.assert_close(alone.values, want, **TOLERANCES[dtype])
    padded = keys.pad()
    padded[~keys.mask()] = torch.nan
    from_padded = fast.extract(padded, keys.lengths())
    assert torch.equal(from_padded.offsets, states.offsets)
    assert torch.equal(from_padded.values, states.values)


# By name: how many events of each user arrive in each instalment.
INSTALMENTS = {
    "two": ([3, 1, 2], [2, 4, 1]),
    "some without news": ([3, 0, 2, 1, 0], [0, 0, 3, 1, 4]),
    "first events later": ([0, 0, 0], [0, 2, 0], [1, 0, 0], [3, 3, 3]),
    "nobody has news": ([3, 0, 1], [0, 0, 0], [2, 1, 0]),
    "one at a time": ([0, 1],) + ([1, 1],) * 6,
    "never any": ([0, 0], [0, 0]),
    "no users": ([], []),
    "one user": ([4], [0], [3]),
}


@pytest.mark.usefixtures("_backend")
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("gru_type", GRU_TYPES)
def test_instalments(gru_type, dtype):
    eager, fast = pair(gru_type, dtype)
    for instalments in INSTALMENTS.values():
        check_instalments(eager, fast, [ragged(lengths, dtype) for lengths in instalments])


def check_instalments(eager, fast, parts):
    dtype = parts[0].values.dtype
    states = fast.extract(parts[0])
    for part in parts[1:]:
        before = states.values.clone()
        longer = fast.extend(states, part)
        assert torch.equal(states.values, before), "the kept states are left as they are"
        states = longer
    users = [torch.cat(pieces) for pieces in zip(*map(rows_of, parts), strict=True)]
    whole = joined(users) if users else ragged([], dtype)
    want = fast.extract(whole)
    assert torch.equal(states.offsets, want.offsets)
    assert states.offsets.dtype == torch.int64
    states.check("states")
    torch.testing.assert_close(states.values, want.values, **TOLERANCES[dtype])
    counts = [(i + 1) % 4 for i in range(len(users))]
    query = torch.randn(sum(counts), D, dtype=dtype)
    got = fast.evolve_candidates(query, states=states, candidate_offsets=bounds(counts))
    torch.testing.assert_close(got, expected(eager, query, whole, counts), **TOLERANCES[dtype])


@pytest.mark.usefixtures("_backend")
def test_new_events_may_be_padded_or_of_one_user():
    _, fast = pair()
    first, second = ragged([2, 0, 3]), ragged([1, 4, 0])
    want = fast.extend(fast.extract(first), second)
    padded = second.pad()
    padded[~second.mask()] = torch.nan
    got = fast.extend(fast.extract(first), padded, second.lengths())
    assert torch.equal(got.offsets, want.offsets)
    assert torch.equal(got.values, want.values)
    keys = torch.randn(6, D, dtype=torch.float64)
    states = fast.extract(keys[:0])
    for event in keys:
        states = fast.extend(states, event[None])
    torch.testing.assert_close(states.values, fast.extract(keys).values, rtol=1e-12, atol=1e-12)
    assert states.offsets.tolist() == [0, 6]


@pytest.mark.parametrize("gru_type", GRU_TYPES)
def test_both_backends_give_the_same(gru_type):
    if backend().name != "native":
        pytest.skip("the native backend is not in use")
    _, fast = pair(gru_type)
    first, second = ragged([2, 0, 3]), ragged([1, 4, 0])
    query, offsets = torch.randn(6, D, dtype=torch.float64), bounds([1, 2, 3])
    found = []
    for name in ("native", "reference"):
        with use_backend(name):
            states = fast.extend(fast.extract(first), second)
            found.append((states.values, fast.evolve_candidates(query, states=states, candidate_offsets=offsets)))
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("_backend")
@pytest.mark.parametrize("given", ["keys", "states"])
@pytest.mark.parametrize("gru_type", GRU_TYPES)
def test_no_gradient_is_recorded(gru_type, given):
    _, fast = pair(gru_type)
    keys = torch.randn(4, D, dtype=torch.float64, requires_grad=True)
    query = torch.randn(3, D, dtype=torch.float64, requires_grad=True)
    history = {"keys": keys} if given == "keys" else {"states": fast.extract(keys)}
    found = fast.evolve_candidates(query, **history)
    assert not found.requires_grad
    assert found.grad_fn is None
    assert torch.is_grad_enabled()


# The rows that each recurrence runs over for a history of 7 and 50 candidates: the extractor first.
RECURRENCES = {"GRU": [7, 7], "AIGRU": [7, 350], "AGRU": [7, 7], "AUGRU": [7, 7]}


def recurrences(call):
    """The rows of x in each recurrence operator that a call runs."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen:
        call()
    found = [event for event in seen.events() if event.name == "dien_fast::attention_gru"]
    return [event.input_shapes[0][0] for event in sorted(found, key=lambda event: event.time_range.start)]


@pytest.mark.parametrize("gru_type", GRU_TYPES)
def test_the_extractor_runs_once_for_all_candidates(gru_type):
    if backend().name != "native":
        pytest.skip("the native backend is not in use")
    _, fast = pair(gru_type)
    keys, query = torch.randn(7, D, dtype=torch.float64), torch.randn(50, D, dtype=torch.float64)
    assert recurrences(lambda: fast.evolve_candidates(query, keys)) == RECURRENCES[gru_type]
    states = fast.extract(keys)
    assert recurrences(lambda: fast.evolve_candidates(query, states=states)) == RECURRENCES[gru_type][1:]
    assert recurrences(lambda: fast.extend(states, keys[:2])) == [2]
    users = ragged([3, 0, 4])
    offsets = torch.tensor([0, 20, 30, 50])
    assert recurrences(lambda: fast.evolve_candidates(query, users, candidate_offsets=offsets))[0] == 7


def test_training_mode_is_refused():
    _, fast = pair()
    fast.train()
    keys, query = torch.randn(4, D, dtype=torch.float64), torch.randn(2, D, dtype=torch.float64)
    for history in ({"keys": keys}, {"states": fast.extract(keys)}):
        with pytest.raises(
            ValueError, match="evolve_candidates needs evaluation mode, got a layer in training mode"
        ):
            fast.evolve_candidates(query, **history)


USER = torch.randn(4, D)
TWO = Ragged(torch.randn(5, D), torch.tensor([0, 3, 5]), 3)
WRONG = {
    "neither": ({"keys": None}, "exactly one of keys and states must be given"),
    "both": ({"states": TWO}, "exactly one of keys and states must be given"),
    "no offsets": ({"candidate_offsets": None}, "candidate_offsets must be given for 2 users, got None"),
    "fewer offsets": (
        {"candidate_offsets": torch.tensor([0, 6])},
        r"candidate_offsets must have shape \(3,\), got \(2,\)",
    ),
    "more offsets": (
        {"candidate_offsets": torch.tensor([0, 2, 4, 6])},
        r"candidate_offsets must have shape \(3,\), got \(4,\)",
    ),
    "offsets in a column": (
        {"candidate_offsets": torch.tensor([[0], [2], [6]])},
        r"candidate_offsets must have shape \(3,\), got \(3, 1\)",
    ),
    "offsets of one user": (
        {"keys": USER},
        r"candidate_offsets must have shape \(2,\), got \(3,\)",
    ),
    "falling": ({"candidate_offsets": torch.tensor([0, 7, 6])}, "candidate_offsets must rise from 0 to 6"),
    "ending before C": ({"candidate_offsets": torch.tensor([0, 2, 5])}, "must rise from 0 to 6, got 0 to 5"),
    "ending behind C": ({"candidate_offsets": torch.tensor([0, 2, 7])}, "must rise from 0 to 6, got 0 to 7"),
    "beginning behind 0": ({"candidate_offsets": torch.tensor([1, 2, 6])}, "must rise from 0 to 6, got 1 to 6"),
    "wider query": ({"query": torch.randn(6, D + 1)}, r"query must have shape \(C, 3\), got \(6, 4\)"),
    "query without rows": ({"query": torch.randn(D)}, r"query must have shape \(C, 3\), got \(3,\)"),
    "query with steps": ({"query": torch.randn(6, 1, D)}, r"query must have shape \(C, 3\), got \(6, 1, 3\)"),
    "wider keys": ({"keys": TWO._replace(values=torch.randn(5, D + 1))}, "keys must have 3 channels"),
    "wider keys of a user": ({"keys": torch.randn(4, 2), "candidate_offsets": None}, "keys must have 3 channels"),
    "padded keys": ({"keys": torch.randn(2, 4, D)}, "keys_length must be given for padded keys, got None"),
    "keys beyond the rows": (
        {"keys": TWO._replace(offsets=torch.tensor([0, 3, 6]))},
        "keys.offsets must rise from 0 to 5",
    ),
}


@pytest.mark.usefixtures("_backend")
@pytest.mark.parametrize("gru_type", ["GRU", "AUGRU"])
def test_wrong_arguments(gru_type):
    layer = Interest(D, gru_type=gru_type).eval()
    for change, message in WRONG.values():
        given = {"query": torch.randn(6, D), "keys": TWO, "candidate_offsets": torch.tensor([0, 2, 6])} | change
        with pytest.raises(ValueError, match=message) as caught:
            layer.evolve_candidates(**given)
        assert "\n" not in str(caught.value)


WRONG_EVENTS = {
    "fewer histories": ((torch.randn(2, D),), "keys must hold 2 histories as states does, got 1"),
    "more histories": ((ragged([1, 1, 1], torch.float32),), "keys must hold 2 histories as states does, got 3"),
    "padded, more": (
        (torch.randn(3, 2, D), torch.tensor([1, 2, 0])),
        "keys must hold 2 histories as states does, got 3",
    ),
    "padded without lengths": ((torch.randn(2, 2, D),), "keys_length must be given for padded keys, got None"),
    "ragged with lengths": ((TWO, torch.tensor([3, 2])), "keys_length must be None for ragged keys"),
    "wider": ((TWO._replace(values=torch.randn(5, D + 1)),), "keys must have 3 channels"),
    "too long": ((torch.randn(2, 2, D), torch.tensor([3, 1])), r"keys_length must lie in \[0, 2\], got \[1, 3\]"),
}


@pytest.mark.usefixtures("_backend")
@pytest.mark.parametrize("case", WRONG_EVENTS)
def test_wrong_events(case):
    events, message = WRONG_EVENTS[case]
    layer = Interest(D).eval()
    with pytest.raises(ValueError, match=message):
        layer.extend(layer.extract(TWO), *events)


WRONG_STATES = {
    "wider": TWO._replace(values=torch.randn(5, D + 1)),
    "narrower": TWO._replace(values=torch.randn(5, D - 1)),
    "beyond the rows": TWO._replace(offsets=torch.tensor([0, 3, 6])),
    "before the last row": TWO._replace(offsets=torch.tensor([0, 3, 4])),
    "falling": TWO._replace(offsets=torch.tensor([0, 6, 5])),
    "without channels": TWO._replace(values=torch.randn(5)),
}


@pytest.mark.usefixtures("_backend")
@pytest.mark.parametrize("gru_type", GRU_TYPES)
def test_wrong_states(gru_type):
    layer = Interest(D, gru_type=gru_type).eval()
    for states in WRONG_STATES.values():
        with pytest.raises(ValueError, match="must"):
            layer.evolve_candidates(torch.randn(6, D), states=states, candidate_offsets=torch.tensor([0, 2, 6]))
        with pytest.raises(ValueError, match="must"):
            layer.extend(states, TWO)
