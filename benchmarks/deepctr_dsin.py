"""The session layers of DeepCTR's DSIN, put together as its model does, and their weights in dien-fast's layer.

Needs deepctr and TensorFlow (``tests/peers/requirements/deepctr.txt``). For sessions that are not full the two
differ, so only full ones are compared; :class:`dien_fast.nn.sessions.SessionInterest` says how.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

# Before TensorFlow is imported: no log of what it finds on this machine, and no sums in another order.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
import torch
from deepctr.layers.sequence import AttentionSequencePoolingLayer, BiasEncoding, BiLSTM, Transformer
from torch import Tensor

from dien_fast.nn.sessions import SessionInterest

HEADS, HIDDEN = 8, (64, 16)


@dataclass(frozen=True)
class Sizes:
    """B users with K sessions of L events each, D numbers wide."""

    users: int
    sessions: int
    events: int
    width: int

    def inputs(self, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Return random candidates ``[B, D]`` and events ``[B, K, L, D]``, float32."""
        rng = np.random.default_rng(seed)
        query = rng.standard_normal((self.users, self.width), np.float32)
        events = rng.standard_normal((self.users, self.sessions, self.events, self.width), np.float32)
        return query, events


class DeepCtrSessions:
    """What ``deepctr.models.DSIN`` does between embeddings and MLP, with ``bias_encoding=True``."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        self.encoding = BiasEncoding(sizes.sessions)
        self.transformer = Transformer(
            sizes.width // HEADS,
            HEADS,
            dropout_rate=0,
            use_layer_norm=False,
            use_positional_encoding=False,
            seed=1024,
            supports_masking=True,
            blinding=True,
        )
        self.lstm = BiLSTM(sizes.width, layers=2, res_layers=0, dropout_rate=0.2)
        self.units = [
            AttentionSequencePoolingLayer(att_hidden_units=HIDDEN, weight_normalization=True) for _ in range(2)
        ]

    def __call__(self, query: Any, events: Any, training: bool) -> Any:
        """Return ``[B, 2 * D]``."""
        query = tf.expand_dims(query, 1)
        sessions = self.encoding([events[:, number] for number in range(self.sizes.sessions)])
        full = tf.ones((self.sizes.users, self.sizes.events), tf.bool)
        interests = tf.concat(
            [self.transformer([rows, rows], mask=[full, full], training=training) for rows in sessions], axis=1
        )
        evolved = self.lstm(interests, training=training)
        count = tf.fill((self.sizes.users, 1), self.sizes.sessions)
        pooled = [
            unit([query, rows, count], training=training)
            for unit, rows in zip(self.units, (interests, evolved), strict=True)
        ]
        return tf.concat([tf.squeeze(rows, 1) for rows in pooled], axis=1)

    def variables(self) -> list[Any]:
        """Return all weights; there are none before the first call."""
        layers = [self.encoding, self.transformer, self.lstm, *self.units]
        return [variable for layer in layers for variable in layer.trainable_variables]


def ours(theirs: DeepCtrSessions, dropout: float = 0.0) -> SessionInterest:
    """Return dien-fast's layer with DeepCTR's weights, which must have been called once."""
    sizes = theirs.sizes
    layer = SessionInterest(
        sizes.width,
        HEADS,
        max_sessions=sizes.sessions,
        max_events=sizes.events,
        att_hidden_layers=HIDDEN,
        lstm_layers=2,
        dropout=dropout,
    )
    encoding, attention = theirs.encoding, theirs.transformer
    content = {
        "session_bias": tensor(encoding.sess_bias_embedding).flatten(),
        "step_bias": tensor(encoding.seq_bias_embedding).flatten(),
        "unit_bias": tensor(encoding.item_bias_embedding).flatten(),
        "projections.weight": torch.cat(
            [tensor(weight).T for weight in (attention.W_Query, attention.W_key, attention.W_Value)]
        ),
        "widen.weight": tensor(attention.fw1).T,
        "narrow.weight": tensor(attention.fw2).T,
    }
    for ours_name, stack in (("forward_lstm", theirs.lstm.fw_lstm), ("backward_lstm", theirs.lstm.bw_lstm)):
        for number, lstm in enumerate(stack):
            # Both have their gates in the order i, f, g, o; Keras has one bias.
            kernel, recurrent, bias = (tensor(weight) for weight in lstm.get_weights())
            content |= {
                f"{ours_name}.weight_ih_l{number}": kernel.T,
                f"{ours_name}.weight_hh_l{number}": recurrent.T,
                f"{ours_name}.bias_ih_l{number}": bias,
                f"{ours_name}.bias_hh_l{number}": torch.zeros_like(bias),
            }
    for ours_name, unit in zip(("interest_attention", "evolution_attention"), theirs.units, strict=True):
        activation = unit.local_att
        for number, (kernel, bias) in enumerate(zip(activation.dnn.kernels, activation.dnn.bias, strict=True)):
            content[f"{ours_name}.mlp.mlp.dense{number}.weight"] = tensor(kernel).T
            content[f"{ours_name}.mlp.mlp.dense{number}.bias"] = tensor(bias)
        # dien_fast.Attention divides its logits by sqrt(D), DeepCTR does not.
        content[f"{ours_name}.fc.weight"] = tensor(activation.kernel).T * sizes.width**0.5
        content[f"{ours_name}.fc.bias"] = tensor(activation.bias) * sizes.width**0.5
    layer.load_state_dict(content)
    return layer


def tensor(value: Any) -> Tensor:
    """Return a weight of TensorFlow as a tensor of torch."""
    return torch.from_numpy(np.array(value))
