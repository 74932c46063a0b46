"""prediction-flow 0.1.5."""

import pytest
import torch
from peer_suite import SIZES, PeerSuite, peer_of, require

import dien_fast

require("prediction-flow", "0.1.5")


class TestPredictionFlow(PeerSuite):
    name = "prediction-flow"
    variants = [
        {"gru_type": gru_type, "negatives": negatives}
        for gru_type in ("AUGRU", "AGRU", "AIGRU", "GRU")
        for negatives in (True, False)
    ]
    fast = {
        "attention_pooling:group",
        "attention_pooling:group.interest_extractor",
        "attention_pooling:group.interest_evolution",
    }

    def test_the_rule_is_inverted(self, peer):
        assert "augru_inverted, reset after the product, gates (r | u | n)" in str(
            dien_fast.accelerate(peer.model)
        )

    @pytest.mark.parametrize("lengths", [[7, 0, 3, 0, 2, 5], [0] * 6])
    def test_empty_histories(self, lengths):
        peer = peer_of(self.name, SIZES._replace(lengths=torch.tensor(lengths)))
        with pytest.raises(RuntimeError, match="greater than 0"):
            peer.call(peer.model)
        assert "empty histories and a batch of one work" in str(dien_fast.accelerate(peer.model))
        peer.loss(peer.call(peer.model)).backward()
        assert all(
            parameter.grad.isfinite().all() for parameter in peer.model.parameters() if parameter.grad is not None
        )

    def test_a_batch_of_one(self):
        peer = peer_of(self.name, SIZES._replace(batch=1, lengths=torch.tensor([3])))
        peer.model.eval()
        with pytest.raises((RuntimeError, IndexError)):
            peer.call(peer.model)
        dien_fast.accelerate(peer.model)
        assert peer.call(peer.model)[0].shape == (1, 1)
