"""A DIEN layer as people have it in their own modules: the names and structure of the widespread listing.

The code is this project's own. Cells differ in the order of their gates and in their rule, so that tests can ask
for what must be recognised and for what must be left alone.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence


class Cell(nn.Module):
    """Gates are the blocks of ``order``; the rule is a subclass's."""

    order = "urn"

    def __init__(self, input_size, hidden_size, bias=True):
        super().__init__()
        self.hidden_size = hidden_size
        rows = len(self.order) * hidden_size
        self.weight_ih = nn.Parameter(torch.empty(rows, input_size))
        self.weight_hh = nn.Parameter(torch.empty(rows, hidden_size))
        if bias:
            self.bias_ih = nn.Parameter(torch.empty(rows))
            self.bias_hh = nn.Parameter(torch.empty(rows))
        else:
            self.register_parameter("bias_ih", None)
            self.register_parameter("bias_hh", None)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(hidden_size**-0.5), hidden_size**-0.5)

    def gates(self, x, hx):
        """Return u (None without one), r and n."""
        blocks = len(self.order)
        from_x = dict(zip(self.order, F.linear(x, self.weight_ih, self.bias_ih).chunk(blocks, 1), strict=True))
        from_h = dict(zip(self.order, F.linear(hx, self.weight_hh, self.bias_hh).chunk(blocks, 1), strict=True))
        r = torch.sigmoid(from_x["r"] + from_h["r"])
        n = torch.tanh(from_x["n"] + r * from_h["n"])
        return (torch.sigmoid(from_x["u"] + from_h["u"]) if "u" in self.order else None), r, n

    def share(self, u, a):
        raise NotImplementedError

    def forward(self, x, hx, att_score):
        u, _, n = self.gates(x, hx)
        z = self.share(u, att_score.view(-1, 1))
        return (1 - z) * hx + z * n


class AttentionGRUCell(Cell):
    order = "rn"

    def share(self, u, a):
        return a


class AttentionUpdateGateGRUCell(Cell):
    def share(self, u, a):
        return a * u


class SecondListing(AttentionUpdateGateGRUCell):
    """The other order that is in print."""

    order = "run"


class Inverted(AttentionUpdateGateGRUCell):
    order = "run"

    def share(self, u, a):
        return 1 - a * u


class Official(AttentionUpdateGateGRUCell):
    def share(self, u, a):
        return 1 - (1 - a) * u


class SpareGate(AttentionGRUCell):
    """AGRU that has rows of u and does not use them."""

    order = "run"

    def gates(self, x, hx):
        _, r, n = super().gates(x, hx)
        return None, r, n


class Squared(AttentionUpdateGateGRUCell):
    """A rule that is none of the known ones."""

    def share(self, u, a):
        return a * u * u


class Detached(AttentionUpdateGateGRUCell):
    """The right numbers forward, and a gradient of its own."""

    def share(self, u, a):
        return a.detach() * u


class Clamped(AttentionUpdateGateGRUCell):
    """Right as long as attention lies in [0, 1]."""

    def share(self, u, a):
        return a.clamp(0, 1) * u


class Deaf(AttentionUpdateGateGRUCell):
    """A plain GRU: attention has no effect."""

    order = "run"

    def share(self, u, a):
        return 1 - u


class ResetBefore(AttentionUpdateGateGRUCell):
    """The reset gate acts before the product, for which there is no kernel."""

    def forward(self, x, hx, att_score):
        size = self.hidden_size
        gi = F.linear(x, self.weight_ih, self.bias_ih)
        gh = F.linear(hx, self.weight_hh[: 2 * size], self.bias_hh[: 2 * size])
        u, r = torch.sigmoid(gi[:, : 2 * size] + gh).chunk(2, 1)
        n = torch.tanh(gi[:, 2 * size :] + F.linear(r * hx, self.weight_hh[2 * size :], self.bias_hh[2 * size :]))
        z = att_score.view(-1, 1) * u
        return (1 - z) * hx + z * n


class Noisy(AttentionUpdateGateGRUCell):
    """Drops numbers in training, and is plain in evaluation."""

    def share(self, u, a):
        return F.dropout(a * u, 0.5, self.training)


class DynamicGRU(nn.Module):
    def __init__(self, input_size, hidden_size, bias=True, gru_type="AGRU", cell=None):
        super().__init__()
        self.input_size = input_size
        self.hidden_size = hidden_size
        kind = AttentionGRUCell if gru_type == "AGRU" else AttentionUpdateGateGRUCell
        self.rnn = (cell or kind)(input_size, hidden_size, bias)

    def forward(self, x, att_scores, hx=None):
        if not isinstance(x, PackedSequence) or not isinstance(att_scores, PackedSequence):
            raise NotImplementedError("DynamicGRU only supports packed input and att_scores")
        rows, batch_sizes, sorted_indices, unsorted_indices = x
        if hx is None:
            hx = torch.zeros(int(batch_sizes[0]), self.hidden_size, dtype=rows.dtype, device=rows.device)
        outputs = []
        begin = 0
        for size in batch_sizes.tolist():
            hx = self.rnn(rows[begin : begin + size], hx[:size], att_scores.data[begin : begin + size])
            outputs.append(hx)
            begin += size
        return PackedSequence(torch.cat(outputs), batch_sizes, sorted_indices, unsorted_indices)


class Dice(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.bn = nn.BatchNorm1d(size, eps=1e-8)
        self.sigmoid = nn.Sigmoid()
        self.dim = 2
        self.alpha = nn.Parameter(torch.zeros(size))

    def forward(self, x):
        p = self.sigmoid(self.bn(x))
        return self.alpha * (1 - p) * x + p * x


class MLP(nn.Module):
    def __init__(self, size, hidden_layers, dropout, activation):
        super().__init__()
        kinds = {"prelu": lambda _: nn.PReLU(), "dice": Dice, "tanh": lambda _: nn.Tanh()}
        layers = []
        for hidden in hidden_layers:
            layers += [nn.Linear(size, hidden), nn.BatchNorm1d(hidden), kinds[activation](hidden)]
            layers += [nn.Dropout(dropout)] if dropout else []
            size = hidden
        self.mlp = nn.Sequential(*layers)

    def forward(self, x):
        return self.mlp(x)


class Attention(nn.Module):
    def __init__(self, input_size, hidden_layers, dropout=0.0, activation="prelu", return_scores=False):
        super().__init__()
        self.return_scores = return_scores
        self.mlp = MLP(4 * input_size, hidden_layers, dropout, activation)
        self.fc = nn.Linear(hidden_layers[-1], 1)

    def forward(self, query, keys, keys_length):
        batch, steps, size = keys.shape
        q = query.unsqueeze(1).expand(-1, steps, -1)
        rows = torch.cat([q, keys, q - keys, q * keys], dim=-1).view(batch * steps, -1)
        logits = self.fc(self.mlp(rows)).view(batch, steps) / size**0.5
        mask = torch.arange(steps, device=keys_length.device) < keys_length.view(-1, 1)
        scores = F.softmax(logits.masked_fill(~mask, -torch.inf), dim=1)
        return scores if self.return_scores else torch.matmul(scores.unsqueeze(1), keys).squeeze()


class AuxiliaryNet(nn.Module):
    def __init__(self, input_size, hidden_layers):
        super().__init__()
        layers = []
        for hidden in hidden_layers:
            layers += [nn.Linear(input_size, hidden), nn.Sigmoid()]
            input_size = hidden
        self.mlp = nn.Sequential(*layers, nn.Linear(input_size, 1))

    def forward(self, x):
        return torch.sigmoid(self.mlp(x))


class Interest(nn.Module):
    def __init__(
        self,
        input_size,
        gru_type="AUGRU",
        att_dropout=0.0,
        att_activation="prelu",
        use_negsampling=True,
        cell=None,
    ):
        super().__init__()
        self.gru_type = gru_type
        self.use_negsampling = use_negsampling
        self.interest_extractor = nn.GRU(input_size, input_size, batch_first=True)
        if use_negsampling:
            self.auxiliary_net = AuxiliaryNet(2 * input_size, [10, 5])
        self.attention = Attention(input_size, [8, 4], att_dropout, att_activation, gru_type != "GRU")
        if gru_type in ("GRU", "AIGRU"):
            self.interest_evolution = nn.GRU(input_size, input_size, batch_first=True)
        else:
            self.interest_evolution = DynamicGRU(input_size, input_size, gru_type=gru_type, cell=cell)

    def forward(self, query, keys, keys_length, neg_keys=None):
        steps = keys.size(1)

        def pack(value):
            return pack_padded_sequence(value, keys_length.squeeze(), batch_first=True, enforce_sorted=False)

        def pad(packed):
            return pad_packed_sequence(packed, batch_first=True, total_length=steps)[0]

        packed, _ = self.interest_extractor(pack(keys))
        interests = pad(packed)
        loss = None
        if self.use_negsampling:
            mask = torch.arange(steps - 1) < (keys_length - 1).view(-1, 1)
            p = []
            for events in (keys, neg_keys):
                rows = torch.cat([interests[:, :-1], events[:, 1:]], dim=-1)
                p.append(self.auxiliary_net(rows.flatten(0, 1)).view(mask.shape)[mask])
            targets = torch.cat([torch.ones_like(p[0]), torch.zeros_like(p[1])])
            loss = F.binary_cross_entropy(torch.cat(p), targets)
        if self.gru_type == "GRU":
            return self.attention(query, pad(self.interest_evolution(packed)[0]), keys_length), loss
        scores = self.attention(query, interests, keys_length)
        if self.gru_type == "AIGRU":
            return self.interest_evolution(pack(interests * scores.unsqueeze(-1)))[1].squeeze(), loss
        states = pad(self.interest_evolution(pack(interests), pack(scores)))
        return states[torch.arange(steps) == (keys_length.view(-1, 1) - 1)], loss


class Model(nn.Module):
    """Embeddings, the layer, and a product; ids are padded with 0."""

    def __init__(self, size=6, **arguments):
        super().__init__()
        self.items = nn.Embedding(20, size, padding_idx=0)
        self.layer = Interest(size, **arguments)
        self.head = nn.Linear(size, 1)

    def forward(self, item, history, negatives):
        lengths = (history > 0).sum(1)
        keys = self.items(history)
        interest, loss = self.layer(self.items(item), keys, lengths, self.items(negatives))
        return self.head(interest), loss
