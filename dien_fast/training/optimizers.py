"""Optimizers of embedding tables that read and write the rows of a step alone.

Dense Adam walks over the whole table in each step. These take a sparse gradient, which holds the rows that the
batch looked up, and touch the same rows of the table and of their own state. A row that no batch looks up stays as
it is: neither its moments nor the weight decay move it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dien_fast.errors import DienFastError
from dien_fast.ops.memory import advise_large_pages
from dien_fast.ops.table_rows import Adam, adagrad_rows_, adam_rows_
from dien_fast.training.accelerator import adds_sparse_gradients

if TYPE_CHECKING:
    from accelerate import Accelerator

# The names of the rules, as the setting ``table_optimizer`` has them beside "adam", which is dense, and "auto".
SPARSE_RULES = ("sparse-adam", "rowwise-adagrad")
# More that divided tables have, moved by TorchRec.
TORCHREC_RULES = ("adagrad", "sgd")
# "auto" is dense Adam up to so many numbers in all tables of a model.
_NUMBERS_OF_DENSE_ADAM = 1_000_000


class RowOptimizer(torch.optim.Optimizer):
    """Moves the rows of tables that have a gradient.

    Args:
        tables: weights ``[V, D]`` with sparse gradients.
        rule: ``"sparse-adam"``, Adam with moments of each number, as :class:`torch.optim.SparseAdam` but with the
            eps of :class:`torch.optim.Adam`; or
            ``"rowwise-adagrad"``, Adagrad with one number a row, the sum of the mean squares of its gradients, as
            FBGEMM's ``EXACT_ROWWISE_ADAGRAD``.
        lr: step size.
        weight_decay: L2 penalty of the rows that have a gradient.
        betas: of Adam.
        eps: what is added to the root in the denominator.

    Raises:
        DienFastError: in a step, if a gradient is not sparse.

    Example:
        >>> table = nn.Embedding(1000, 8, sparse=True)
        >>> optimizer = RowOptimizer([table.weight], "sparse-adam", lr=0.01)
        >>> table(torch.tensor([3, 5, 3])).sum().backward()
        >>> optimizer.step()
    """

    def __init__(
        self,
        tables: Iterable[Tensor],
        rule: str,
        lr: float,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        if rule not in SPARSE_RULES:
            raise DienFastError(f"rule must be one of {', '.join(SPARSE_RULES)}, got {rule!r}")
        defaults = {"rule": rule, "lr": lr, "weight_decay": weight_decay, "betas": betas, "eps": eps}
        super().__init__(tables, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Move the rows that have a gradient."""
        assert closure is None, "a closure would have to be called with gradients"
        for group in self.param_groups:
            move = _adam if group["rule"] == "sparse-adam" else _adagrad
            for table in group["params"]:
                if table.grad is None:
                    continue
                if not table.grad.is_sparse:
                    raise DienFastError(
                        f"table_optimizer {group['rule']!r} needs tables that are looked up alone, but the model "
                        f"uses one of shape {tuple(table.shape)} otherwise too; train with table_optimizer 'adam'"
                    )
                rows, change = _once(table.grad)
                move(table, change.contiguous(), rows.contiguous(), self.state[table], group)


def _once(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows ``[U]`` int64 that a sparse gradient has, each once, and the gradient of each ``[U, D]``."""
    rows = gradient._indices()[0]
    # Autograd keeps a coalesced gradient without its mark, and to coalesce again would cost as much as the step.
    if not gradient.is_coalesced() and bool((rows[1:] > rows[:-1]).all()):
        return rows, gradient._values()
    gradient = gradient.coalesce()
    return gradient.indices()[0], gradient.values()


def _adam(table: Tensor, change: Tensor, rows: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    if not state:
        state |= {"step": torch.zeros(()), "exp_avg": _zeros(table), "exp_avg_sq": _zeros(table)}
    state["step"] += 1
    first, second = group["betas"]
    step = float(state["step"])
    rate, root = group["lr"] / (1 - first**step), (1 - second**step) ** -0.5
    of = Adam(rate, group["weight_decay"], first, second, root, group["eps"])
    adam_rows_(table, state["exp_avg"], state["exp_avg_sq"], change, rows, of)


def _adagrad(table: Tensor, change: Tensor, rows: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    if not state:
        state |= {"sum": _zeros(table[:, 0])}
    adagrad_rows_(table, state["sum"], change, rows, group["lr"], group["weight_decay"], group["eps"])


def _zeros(like: Tensor) -> Tensor:
    zeros = torch.empty_like(like, memory_format=torch.contiguous_format)
    advise_large_pages(zeros)
    return zeros.zero_()


class Together(torch.optim.Optimizer):
    """Several optimizers as one, so that one scaler of gradients, one step and one state serve them all.

    Args:
        parts: the optimizers by name, of different parameters.

    Example:
        >>> net, table = nn.Linear(2, 1), nn.Embedding(9, 2, sparse=True)
        >>> of_table = RowOptimizer([table.weight], "sparse-adam", lr=0.01)
        >>> both = Together(dense=torch.optim.Adam(net.parameters()), tables=of_table)
        >>> net(table(torch.tensor([3, 5]))).sum().backward()
        >>> both.step()
        >>> sorted(both.state_dict())
        ['dense', 'tables']
    """

    def __init__(self, **parts: torch.optim.Optimizer) -> None:
        self.parts = parts
        super().__init__([group for part in parts.values() for group in part.param_groups], {})
        # The parts' own groups: whoever changes a step size here changes it there.
        self.param_groups = [group for part in parts.values() for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Take a step of each."""
        for part in self.parts.values():
            part.step(closure)

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the parts, by name."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the states that :meth:`state_dict` returned.

        Raises:
            KeyError: if a part has none.
            ValueError: if one does not fit.
        """
        for name, part in self.parts.items():
            part.load_state_dict(state_dict[name])
        self.param_groups = [group for part in self.parts.values() for group in part.param_groups]


def tables_of(model: nn.Module) -> list[nn.Embedding]:
    """Return the embedding tables of a model that are trained."""
    return [
        module for module in model.modules() if isinstance(module, nn.Embedding) and module.weight.requires_grad
    ]


def table_rule(setting: str, model: nn.Module, accelerator: Accelerator) -> str:
    """Return the rule that a setting means: ``"auto"`` is dense Adam for small tables, else ``"sparse-adam"``.

    Raises:
        DienFastError: if several processes cannot train with the rule.
    """
    if setting in TORCHREC_RULES:
        raise DienFastError(f"table_optimizer {setting!r} is one of divided tables; train with --tables torchrec")
    possible = adds_sparse_gradients(accelerator)
    if setting == "auto":
        numbers = sum(table.weight.numel() for table in tables_of(model))
        return "sparse-adam" if possible and numbers > _NUMBERS_OF_DENSE_ADAM else "adam"
    if setting != "adam" and not possible:
        raise DienFastError(
            f"processes that talk through {torch.distributed.get_backend()} cannot add up sparse gradients; train "
            "with --table-optimizer adam, or on CPUs, which talk through gloo"
        )
    return setting


def make_optimizer(
    model: nn.Module, rule: str, lr: float, weight_decay: float, table_lr: float = 0.0
) -> torch.optim.Optimizer:
    """Return fused Adam for everything, or for everything but the tables, which get the rule.

    Args:
        model: what is trained; its tables must give sparse gradients unless the rule is ``"adam"``.
        rule: ``"adam"`` or one of ``SPARSE_RULES``.
        lr: step size.
        weight_decay: L2 penalty of both.
        table_lr: step size of the tables; 0 is ``lr``.
    """
    tables = [table.weight for table in tables_of(model)] if rule != "adam" or table_lr else []
    of_tables = {id(weight) for weight in tables}
    others = [weight for weight in model.parameters() if id(weight) not in of_tables]
    groups: list[dict[str, Any]] = [{"params": others}]
    if tables and rule == "adam":
        groups.append({"params": tables, "lr": table_lr})
    dense = torch.optim.Adam(groups, lr=lr, weight_decay=weight_decay, fused=True)
    if not tables or rule == "adam":
        return dense
    return Together(dense=dense, tables=RowOptimizer(tables, rule, table_lr or lr, weight_decay))
