"""torch-rechub 0.9.0."""

import peer_models
import pytest
import torch
from equality import assert_compares, assert_equal_runs, pair, randomised, run
from peer_suite import SIZES, PeerSuite, peer_of, require

import dien_fast
from dien_fast.patches import weights

require("torch-rechub", "0.9.0")


class TestTorchRecHub(PeerSuite):
    name = "torch-rechub"
    variants = [{}]
    fast = {"", "interest_extractor_layers.0", "interest_evolving_layers.0"}

    @pytest.mark.parametrize("lengths", [[7, 0, 3, 0, 2, 5], [0] * 6, [0, 0, 0, 4, 0, 0]])
    def test_empty_histories(self, lengths):
        peer = peer_of(self.name, SIZES._replace(lengths=torch.tensor(lengths)))
        plain, fast, _ = pair(peer.model)
        assert_equal_runs(run(fast, peer.call), run(plain, peer.call))

    @pytest.mark.parametrize("kind", ["prefix", "suffix", "holes", "none"])
    def test_any_mask(self, kind):
        from torch_rechub.models.ranking.dien import AUGRU

        x, item = torch.randn(6, 7, 4, requires_grad=True), torch.randn(6, 4, requires_grad=True)
        mask = torch.arange(7) < SIZES.lengths.unsqueeze(1)
        masks = {"prefix": mask, "suffix": mask.flip(1), "holes": torch.rand(6, 7) < 0.5, "none": None}
        masks["holes"][:, 0] = True
        layer = randomised(AUGRU(4))
        assert_compares(layer, lambda m: m(x, item, masks[kind]), (x, item))

    def test_all_padding(self):
        """The library gives equal shares to a history that is all padding."""
        from torch_rechub.models.ranking.dien import AUGRU

        layer = randomised(AUGRU(4))
        x, item = torch.randn(3, 5, 4), torch.randn(3, 4)
        mask = torch.tensor([[True] * 5, [False] * 5, [True, True, False, False, False]])
        plain, fast, _ = pair(layer)
        with torch.no_grad():
            for ours, theirs in zip(fast(x, item, mask), plain(x, item, mask), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)

    def test_weights_with_a_bias_inside_the_product_are_refused(self, peer):
        layer = peer.model.interest_evolving_layers[0]
        read = weights.read_cell(layer)
        with pytest.raises(ValueError, match="bias_hh of the gate n is not zero"):
            weights.write_cell(read._replace(bias_hh=read.bias_hh + 1), layer)

    def test_cell_with_a_hook(self, peer):
        peer.model.interest_evolving_layers[0].augru_cell.register_forward_hook(lambda *_: None)
        report = dien_fast.accelerate(peer.model)
        assert {entry.path for entry in report.fast} == {"interest_extractor_layers.0"}
        assert "has hooks" in str(report)
        assert "because one of its AUGRU was left" in str(report)

    def test_ids_that_are_no_prefix(self):
        """Padding in front or between runs through the library's own steps."""
        peer = peer_of(self.name)
        given = peer_models.ids(SIZES)
        history = given.history.flip(1)
        history[:, 3] = 0
        batch = {"user": given.user, "item": given.item, "history": history, "negatives": given.negatives}
        plain, fast, _ = pair(peer.model)
        assert_equal_runs(run(fast, lambda m: m(batch)), run(plain, lambda m: m(batch)))
