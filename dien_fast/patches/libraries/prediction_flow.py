"""prediction-flow 0.1.5 (prediction_flow/pytorch/nn/rnn.py, interest.py).

Its AUGRU is ``augru_inverted``: attention scales how much of the state is kept. Gates are in the order
(r | u | n), also in its AGRU, whose rows of u are unused.
"""

from __future__ import annotations

from dien_fast.patches.libraries.article_listing import interest
from dien_fast.patches.library import Library, dynamic_gru

LIBRARY = Library(
    name="prediction-flow",
    distribution="prediction-flow",
    versions=("0.1.5",),
    roots=("prediction_flow",),
    parts={
        ("prediction_flow.pytorch.nn.rnn", "DynamicGRU"): dynamic_gru,
        ("prediction_flow.pytorch.nn.interest", "Interest"): interest,
    },
)
