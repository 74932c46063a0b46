"""FuxiCTR 2.3.10."""

import importlib.util
import sys

import pytest
import torch
from equality import assert_equal_runs, pair, run
from peer_suite import SIZES, PeerSuite, peer_of, require

import dien_fast

require("fuxictr", "2.3.10")


class TestFuxiCTR(PeerSuite):
    name = "fuxictr"
    variants = [{"gru_type": gru_type} for gru_type in ("AUGRU", "AGRU", "GRU")]
    fast = {"", "extraction_modules.0", "evolving_modules.0", "attention_modules.0"}

    @pytest.mark.parametrize("attention_type", ["dot_attention", "din_attention"])
    def test_other_attention(self, attention_type):
        peer = peer_of(self.name, attention_type=attention_type)
        plain, fast, report = pair(peer.model)
        assert f"its attention_type is {attention_type!r}" in str(report)
        assert_equal_runs(run(fast, peer.call), run(plain, peer.call))

    def test_a_copy_of_the_zoo(self, peer, monkeypatch):
        """The model zoo is meant to be copied: the same source under another name is the same model."""
        original = importlib.import_module("model_zoo.LongCTR.DIEN.DIEN")
        spec = importlib.util.spec_from_file_location("my_zoo", original.__file__)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "my_zoo", module)
        spec.loader.exec_module(module)
        monkeypatch.setattr(original, "DIEN", module.DIEN)
        copied = peer_of(self.name)
        assert type(copied.model).__module__ == "my_zoo"
        plain, fast, report = pair(copied.model)
        assert {entry.path for entry in report.fast} == self.fast
        assert_equal_runs(run(fast, copied.call), run(plain, copied.call))

    def test_some_empty_histories(self):
        peer = peer_of(self.name, SIZES._replace(lengths=torch.tensor([7, 0, 3, 0, 2, 5])))
        plain, fast, _ = pair(peer.model)
        assert_equal_runs(run(fast, peer.call), run(plain, peer.call))

    @pytest.mark.parametrize("gru_type", ["AUGRU", "GRU"])
    @pytest.mark.parametrize("lengths", [[0] * 6, [0, 0, 3, 0, 0, 0]])
    def test_one_history_with_a_step_or_none(self, gru_type, lengths):
        peer = peer_of(self.name, SIZES._replace(lengths=torch.tensor(lengths)), gru_type=gru_type)
        with pytest.raises((RuntimeError, IndexError)):
            peer.call(peer.model)
        assert "one history or none that has a step work" in str(dien_fast.accelerate(peer.model))
        peer.loss(peer.call(peer.model)).backward()

    def test_one_history_is_the_same_as_among_others(self):
        sizes = SIZES._replace(lengths=torch.tensor([0, 0, 3, 0, 0, 0]))
        alone = peer_of(self.name, sizes)
        dien_fast.accelerate(alone.model)
        beside = peer_of(self.name, sizes._replace(lengths=torch.tensor([0, 0, 3, 0, 2, 0])))
        torch.testing.assert_close(alone.call(alone.model)[0][2], beside.call(beside.model)[0][2])
