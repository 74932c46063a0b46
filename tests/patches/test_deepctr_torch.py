"""DeepCTR-Torch 0.3.0."""

import pytest
import torch
from equality import assert_equal_runs, pair, run
from peer_suite import SIZES, PeerSuite, peer_of, require

import dien_fast
from dien_fast.patches import weights

require("deepctr-torch", "0.3.0")

EMPTY = SIZES._replace(lengths=torch.tensor([7, 0, 3, 0, 2, 5]))
NONE = SIZES._replace(lengths=torch.zeros(6, dtype=torch.int64))


class TestDeepCTRTorch(PeerSuite):
    name = "deepctr-torch"
    variants = [
        {"gru_type": gru_type, "negatives": negatives, "att_weight_normalization": normalised}
        for gru_type in ("AUGRU", "AGRU", "AIGRU", "GRU")
        for negatives in (True, False)
        for normalised in (True, False)
    ]
    fast = {
        "interest_extractor",
        "interest_extractor.gru",
        "interest_evolution",
        "interest_evolution.interest_evolution",
    }

    def test_tied_bias_stays_tied(self, peer):
        cell = peer.model.interest_evolution.interest_evolution.rnn
        assert cell.bias_ih is cell.bias_hh
        plain, fast, _ = pair(peer.model)
        cell = fast.interest_evolution.interest_evolution.rnn
        assert cell.bias_ih is cell.bias_hh
        name = "interest_evolution.interest_evolution.rnn.bias_ih"
        gradients = [run(model, peer.call)[1][name] for model in (fast, plain)]
        torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-14)
        # Every gate's bias counts twice; a gradient of one of the two alone would be another.
        assert gradients[0].abs().max() > 0

    def test_weights_with_untied_biases_are_refused(self, peer):
        loop = peer.model.interest_evolution.interest_evolution
        read = weights.read_cell(loop)
        with pytest.raises(ValueError, match="one set of biases for both"):
            weights.write_cell(read._replace(bias_hh=read.bias_hh + 1), loop)

    @pytest.mark.parametrize("gru_type", ["AUGRU", "GRU"])
    def test_some_empty_histories(self, gru_type):
        peer = peer_of(self.name, EMPTY, gru_type=gru_type)
        plain, fast, _ = pair(peer.model)
        assert_equal_runs(run(fast, peer.call), run(plain, peer.call))

    @pytest.mark.parametrize("negatives", [True, False])
    def test_a_batch_of_empty_histories(self, negatives):
        peer = peer_of(self.name, NONE, negatives=negatives)
        with pytest.raises(ValueError, match="not enough values to unpack"):
            peer.call(peer.model)
        assert "empty histories works" in str(dien_fast.accelerate(peer.model))
        prediction, auxiliary = peer.call(peer.model)
        assert prediction.shape == (6,)
        assert not auxiliary.any()
        peer.loss((prediction, auxiliary)).backward()
