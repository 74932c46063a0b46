"""RecBole 1.2.1."""

import pytest
import torch
from peer_suite import SIZES, PeerSuite, peer_of, require

import dien_fast

require("recbole", "1.2.1")


class TestRecBole(PeerSuite):
    name = "recbole"
    variants = [{"gru_type": gru_type} for gru_type in ("AUGRU", "AGRU", "AIGRU", "GRU")]
    fast = {
        "interset_extractor",
        "interset_extractor.gru",
        "interest_evolution",
        "interest_evolution.dynamic_rnn",
    }

    @pytest.mark.parametrize("lengths", [[7, 0, 3, 0, 2, 5], [0] * 6])
    def test_empty_histories(self, lengths):
        peer = peer_of(self.name, SIZES._replace(lengths=torch.tensor(lengths)))
        with pytest.raises(RuntimeError, match="greater than 0"):
            peer.call(peer.model)
        assert "empty histories work" in str(dien_fast.accelerate(peer.model))
        peer.loss(peer.call(peer.model)).backward()
        assert all(
            parameter.grad.isfinite().all() for parameter in peer.model.parameters() if parameter.grad is not None
        )

    def test_histories_of_one_step(self):
        peer = peer_of(self.name, SIZES._replace(lengths=torch.ones(6, dtype=torch.int64)))
        assert peer.call(peer.model)[1].isnan()
        report = dien_fast.accelerate(peer.model)
        assert "is 0, where it was NaN" in str(report)
        assert peer.call(peer.model)[1] == 0
