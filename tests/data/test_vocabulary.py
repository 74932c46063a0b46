"""Words counted in parts, and looked up in vocabularies of either kind and any size."""

import pickle

import numpy as np
import pyarrow as pa
import pytest

from dien_fast.data import vocabulary
from dien_fast.data.fitting import NumberSample
from dien_fast.data.vocabulary import Vocabulary, WordCounter, count_words, sum_by_key


def as_dict(counts):
    return dict(zip(counts.words.to_pylist(), counts.counts.tolist(), strict=True))


@pytest.mark.parametrize("kind", [int, str])
def test_counting_in_parts_is_counting_at_once(kind):
    rng = np.random.default_rng(0)
    words = [kind(word) if word else None for word in rng.integers(-1, 40, 500)]
    counter = WordCounter()
    for start in range(0, 500, 60):
        counter.add(pa.array(words[start : start + 60]))
    expected = {word: words.count(word) for word in set(words) - {None}}
    assert as_dict(counter.counts()) == expected == as_dict(count_words([pa.array(words)]))
    assert counter.missing == words.count(None) > 0


def test_sums_by_key():
    keys, counts = sum_by_key(np.array([5, -1, 5, 7, -1]), np.array([1, 2, 3, 4, 5]))
    assert (keys.tolist(), counts.tolist()) == ([-1, 5, 7], [7, 4, 4])
    assert sum_by_key(np.zeros(0, np.int64), np.zeros(0, np.int64))[0].tolist() == []


@pytest.mark.parametrize("unknown", [1, 3, 4])
@pytest.mark.parametrize("known", [[3, 7, 0], [0, 3, 7]])
def test_large_vocabularies_find_what_arrow_finds(monkeypatch, unknown, known):
    columns = [pa.array([7, None, 0, 9, 3]), pa.array(["7", "x", "0", None, "3.0"]), pa.array([7.0, 0.5])]
    for kind, words in (("int64", known), ("string", list(map(str, known)))):
        found = {}
        for least in (0, 1 << 16):
            monkeypatch.setattr(vocabulary, "_SORTED_WORDS", least)
            made = Vocabulary.of(pa.array(words, vocabulary._TYPES[kind]), kind, unknown)
            assert made.words[unknown] == "__UNKNOWN__"
            assert [made.word(index) for index in range(5)] == made.words
            found[least] = [made.encode(column).tolist() for column in columns]
            assert (made._keys is None) == (least > 0)
            assert pickle.loads(pickle.dumps(made)).is_same(made)
        assert found[0] == found[1 << 16]
    place = {word: 1 + index + (1 + index >= unknown) for index, word in enumerate(known)}
    assert found[0][0] == [place.get(word, unknown) for word in (7, None, 0, 9, 3)]


def test_two_texts_of_one_hash_are_told_apart(monkeypatch):
    monkeypatch.setattr(vocabulary, "_SORTED_WORDS", 0)
    monkeypatch.setattr(
        vocabulary,
        "hash_texts",
        lambda words: np.array([len(word or "") for word in words.to_pylist()], np.uint64),
    )
    for known in (["a", "bb"], ["a", "b"]):
        words = Vocabulary.of(pa.array(known, pa.large_string()), "string")
        assert words.encode(pa.array(["b", "bb", "a", None])).tolist() == [
            1 + known.index(word) if word in known else 3 for word in ("b", "bb", "a", None)
        ]


def test_vocabularies_that_differ():
    words = Vocabulary.of(pa.array([3, 7]), "int64")
    assert words.is_same(Vocabulary(["__PAD__", 3, 7, "__UNKNOWN__"], "int64"))
    assert not words.is_same(Vocabulary.of(pa.array([3, 7]), "int64", unknown=1))
    assert not words.is_same(Vocabulary.of(pa.array([3, 8]), "int64"))
    for known, kind, unknown in (([3], "string", None), ([3], "int64", 0), ([3], "int64", 3)):
        with pytest.raises(ValueError, match="words and an id of up to"):
            Vocabulary.of(pa.array(known), kind, unknown)


def test_a_sample_of_numbers_depends_on_the_rows_alone():
    numbers = np.random.default_rng(0).normal(size=20_000)
    numbers[::7] = np.nan
    samples = []
    for size in (333, 20_000):
        sample = NumberSample(most=1000)
        for start in range(0, len(numbers), size):
            sample.add(numbers[start : start + size])
        samples.append(sample.numbers())
    assert np.array_equal(*samples, equal_nan=True)
    assert 400 < len(samples[0]) <= 1000
    assert abs(np.nanmedian(samples[0])) < 0.15
    whole = NumberSample(most=20_000)
    whole.add(numbers)
    assert np.array_equal(whole.numbers(), numbers, equal_nan=True)
