"""The same input, number of threads and machine give the same bits, however busy the machine is."""

import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import interest_cases
import pytest
import recurrence_cases
import torch
from interest_cases import NATIVE
from operator_calls import in_bytes
from random_batches import make_model, random_batch
from same_runs import assert_same

from dien_fast import DIEN, DIN, DSIN
from dien_fast.functional import GATES
from dien_fast.ops import rows
from dien_fast.training.runs import load

pytestmark = pytest.mark.slow
REPETITIONS = 100
LENGTHS = [length % 61 for length in range(0, 1600, 13)]
USER = {"country": "NO", "price": 0.4, "words": "new", "past_items": ["i1", "i4"] * 20, "past_brands": ["b1"] * 40}
ITEMS = {"item": [f"i{n % 12}" for n in range(200)], "brand": [f"b{n % 3}" for n in range(200)]}


# It ends with its parent, however that ends.
BUSY = "import os; parent = os.getppid()\nwhile os.getppid() == parent: sum(range(1000))"


@pytest.fixture(scope="module", autouse=True)
def _busy_machine():
    """Another process for each core, which never rests."""
    others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in os.sched_getaffinity(0)]
    yield
    for other in others:
        other.kill()
        other.wait()


@pytest.fixture(params=[1, 2])
def _threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def recurrence(cell):
    return recurrence_cases.outcome(
        "native", *recurrence_cases.problem((60, 20, 16, 18), cell, torch.float32), cell
    )


def scores():
    found = interest_cases.scoring(LENGTHS, 60, 18, (36, 8), dtype=torch.float32)
    return interest_cases.outcome(interest_cases.native, found)


def auxiliary_loss():
    found = interest_cases.pairs(LENGTHS, 18, (36, 8), torch.float32)
    return interest_cases.loss_outcome(interest_cases.native_loss, found)


def sums():
    generator = torch.Generator().manual_seed(0)
    leaves = {
        "values": torch.randn(sum(LENGTHS), 18, generator=generator).requires_grad_(),
        "weights": torch.randn(sum(LENGTHS), generator=generator).requires_grad_(),
    }
    found = rows.weighted_sum(*leaves.values(), interest_cases.offsets_of(LENGTHS))
    return {"sum": found.detach()} | interest_cases.differentiate(found, leaves)


def tables():
    """What a step does to embedding tables, with ids that come many times."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(500, (5000,), generator=generator)
    change = torch.randn(5000, 18, generator=generator)
    whole, moved, first, second, square = (torch.zeros(500, 18) for _ in range(5))
    NATIVE.add_rows_(whole, change, ids, -1)
    unique, summed = NATIVE.sum_by_id(change, ids, -1)
    NATIVE.adam_rows_(moved, first, second, summed, unique, 0.01, 0.1, 0.9, 0.99, 1.0, 1e-8)
    NATIVE.adagrad_rows_(whole, square[:, 0].contiguous(), summed, unique, 0.01, 0.1, 1e-8)
    return {"whole": whole, "summed": summed, "unique": unique, "moved": moved, "first": first, "second": second}


CALLS = {cell: lambda cell=cell: recurrence(cell) for cell in GATES}
CALLS |= {call.__name__: call for call in (scores, auxiliary_loss, sums, tables)}


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("name", list(CALLS))
def test_operators_and_their_gradients(name):
    found = Counter(str(in_bytes(list(CALLS[name]().values()))) for _ in range(REPETITIONS))
    assert list(found.values()) == [REPETITIONS]


@pytest.mark.parametrize("callers", [1, 2, 8])
def test_candidates_of_a_user(shop, callers):
    run = load(shop / "run")
    with ThreadPoolExecutor(callers) as pool:
        found = Counter(
            pool.map(lambda _: run.score_candidates(USER, ITEMS).tobytes(), range(REPETITIONS), timeout=300)
        )
    assert list(found.values()) == [REPETITIONS]


def trained(kind, steps):
    """The weights after some steps on the same batches."""
    model = make_model(kind).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    torch.manual_seed(1)
    for _ in range(steps):
        batch = random_batch(64)
        logits, loss = model(batch)
        total = torch.nn.functional.binary_cross_entropy_with_logits(logits, batch["label"])
        (total if loss is None else total + loss).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.state_dict()


# DSIN's many small operations wait at as many barriers of OpenMP, which takes 0.6 s a step here.
@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize(("kind", "steps", "repetitions"), [(DIEN, 10, 10), (DIN, 10, 10), (DSIN, 2, 3)])
def test_a_training(kind, steps, repetitions):
    first = trained(kind, steps)
    for _ in range(repetitions):
        assert_same(dict(trained(kind, steps)), dict(first), kind.__name__)
