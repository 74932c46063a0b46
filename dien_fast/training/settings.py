"""Settings of a training: the default, the help text and the check of each stand here, once.

:func:`dien_fast.training.fit` takes :class:`TrainSettings`, a run stores them in its configuration, and the
command makes its options from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, TypeVar

from dien_fast.settings import Rule, Settings, rules
from dien_fast.training.interval import Interval, seconds_of
from dien_fast.training.optimizers import SPARSE_RULES, TORCHREC_RULES

T = TypeVar("T", bound="TrainSettings")

# Keyword arguments of `fit` that are called otherwise here.
_OTHER_NAMES = {"gradient_accumulation_steps": "gradient_accumulation"}


@dataclass
class TrainSettings(Settings):
    """What :func:`dien_fast.training.fit` needs to know beside the model and its batches.

    Attributes:
        epochs: the most epochs to train.
        patience: stop after so many epochs without a better validation AUC.
        lr: Adam's step size.
        weight_decay: Adam's L2 penalty. The article's 1e-3 can hold embeddings at zero, and without any they
            overfit. Validation AUC of ``dien-fast train --weight-decay X``, mean of seeds 0 and 1, for X of 0,
            1e-5, 1e-4 and 1e-3: 0.777, 0.784, 0.799, 0.790 on MovieLens-100K and 0.911, 0.910, 0.906, 0.515 with
            ``--dataset synthetic``.
        aux_weight: weight of the auxiliary loss in the training loss.
        seed: the seed of dropout; a run also seeds initial weights, negatives and shuffling with it.
        mixed_precision: "no", "bf16" or "fp16".
        gradient_accumulation: batches to an optimizer step.
        table_optimizer: how embedding tables are moved. "adam" is the dense Adam of all other weights: it walks
            over the whole table in each step. "sparse-adam" and "rowwise-adagrad" touch the rows of the batch
            alone, so that a step takes as long for ten million rows as for a hundred thousand. "auto" is "adam" up
            to a million numbers in all tables, "sparse-adam" above. "adagrad" and "sgd" are for divided tables
            alone, which have neither of the Adams; for these "auto" is "rowwise-adagrad".
        tables: where the embedding tables are: "local", whole in each process, or "torchrec", divided by rows
            among the processes.
        table_lr: step size of the embedding tables; 0 is that of all other weights. Adagrad needs a larger one
            than Adam.
        sync_batchnorm: whether batch normalisation takes its statistics from the batches of all processes, so that
            several train as one with a batch of their number's size. It costs the native attention and two sums
            over the processes for each normalisation.
        process_timeout: how long a process waits for the others before the training ends ("30min").
        checkpoint_every: a checkpoint is written after each epoch and, within an epoch that takes longer, after so
            much time ("30s", "10min", "2h") or so many steps ("500steps"); with several processes after epochs
            alone.

    Example:
        >>> TrainSettings(epochs=2).lr
        0.002
    """

    epochs: Annotated[int, Rule("most epochs", least=1, free=True)] = 20
    patience: Annotated[int, Rule("stop after N epochs without a better validation AUC", least=1, free=True)] = 3
    lr: Annotated[float, Rule("Adam's step size", least=0)] = 2e-3
    weight_decay: Annotated[float, Rule("Adam's L2 penalty", least=0)] = 1e-4
    aux_weight: Annotated[float, Rule("weight of the auxiliary loss", least=0)] = 1.0
    seed: Annotated[int, Rule("seed of all random numbers", least=0)] = 0
    mixed_precision: Annotated[str, Rule("train with 16-bit arithmetic", choices=("no", "bf16", "fp16"))] = "no"
    gradient_accumulation: Annotated[int, Rule("batches to a step", least=1)] = 1
    table_optimizer: Annotated[
        str,
        Rule(
            "how embedding tables are moved", choices=("auto", "adam", *SPARSE_RULES, *TORCHREC_RULES), late=True
        ),
    ] = "auto"
    tables: Annotated[
        str,
        Rule(
            "keep whole tables in each process, or let TorchRec divide them",
            choices=("local", "torchrec"),
            late=True,
        ),
    ] = "local"
    table_lr: Annotated[float, Rule("step size of embedding tables; 0 is that of --lr", least=0, late=True)] = 0.0
    sync_batchnorm: Annotated[bool, Rule("take batch statistics from the batches of all processes", late=True)] = (
        False
    )
    process_timeout: Annotated[str, Rule("end where another process does not answer for so long", free=True)] = (
        "30min"
    )
    checkpoint_every: Annotated[
        str, Rule("checkpoint within an epoch after a time or a number of steps, as in 500steps", free=True)
    ] = "10min"

    def __post_init__(self) -> None:
        super().__post_init__()
        Interval(self.checkpoint_every)  # refuses what is none
        seconds_of("process_timeout", self.process_timeout)


def changed(settings: T, changes: Mapping[str, Any]) -> T:
    """Return the settings with some of them replaced; ``gradient_accumulation_steps`` is another name.

    Raises:
        TypeError: for a name that is none of theirs.
    """
    named = {_OTHER_NAMES.get(name, name): value for name, value in changes.items()}
    known = rules(type(settings))
    for name in named:
        if name not in known:
            raise TypeError(f"there is no setting {name!r}; the settings are {', '.join(known)}")
    return replace(settings, **named)
