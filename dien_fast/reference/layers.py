"""Plain layers that the reference and the fast modules share: pooling, Dice, MLP and initialisation.

Formulas: Dice is equation 3 of DIN (arXiv 1706.06978), with a learnt scale and shift inside its
batch normalisation.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class MaxPooling(nn.Module):
    """Maximum over one dimension; zeros where that dimension is empty.

    Args:
        dim: the dimension to reduce.

    Example:
        >>> MaxPooling(1)(torch.tensor([[[1.0, 5.0], [3.0, 2.0]]])).tolist()
        [[3.0, 5.0]]
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, input: Tensor) -> Tensor:
        """Reduce ``input`` ``[B, T, D]`` (``dim=1``) to ``[B, D]``."""
        if input.size(self.dim) == 0:
            return torch.sum(input, self.dim)
        return torch.max(input, self.dim)[0]


class SumPooling(nn.Module):
    """Sum over one dimension.

    Args:
        dim: the dimension to reduce.

    Example:
        >>> SumPooling(1)(torch.tensor([[[1.0, 5.0], [3.0, 2.0]]])).tolist()
        [[4.0, 7.0]]
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, input: Tensor) -> Tensor:
        """Reduce ``input`` ``[B, T, D]`` (``dim=1``) to ``[B, D]``."""
        return torch.sum(input, self.dim)


class Dice(nn.Module):
    """Data adaptive activation of DIN: ``p * x + (1 - p) * alpha * x`` with ``p = sigmoid(bn(x))``.

    Args:
        emb_size: number of channels E.
        dim: 2 for input ``[B, E]``, 3 for input ``[B, T, E]``.
        epsilon: added to the variance by the batch normalisation.

    Raises:
        ValueError: if ``dim`` is neither 2 nor 3, or the input has another number of dimensions.

    Example:
        >>> Dice(8)(torch.randn(4, 8)).shape
        torch.Size([4, 8])
    """

    def __init__(self, emb_size: int, dim: int = 2, epsilon: float = 1e-8) -> None:
        super().__init__()
        if dim not in (2, 3):
            raise ValueError(f"dim must be 2 or 3, got {dim}")
        self.bn = nn.BatchNorm1d(emb_size, eps=epsilon)
        self.sigmoid = nn.Sigmoid()
        self.dim = dim
        self.alpha = nn.Parameter(torch.zeros((emb_size,) if dim == 2 else (emb_size, 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Activate ``x`` ``[B, E]`` or ``[B, T, E]``, by ``dim``; same shape out."""
        if x.dim() != self.dim:
            raise ValueError(f"x must have {self.dim} dimensions, got shape {tuple(x.shape)}")
        if self.dim == 3:
            x = x.transpose(1, 2)
        p = self.sigmoid(self.bn(x))
        out = self.alpha * (1 - p) * x + p * x
        return out.transpose(1, 2) if self.dim == 3 else out


def get_activation_layer(name: str, hidden_size: int | None = None, dice_dim: int = 2) -> nn.Module:
    """Return a new activation module by its name, whatever its case.

    Args:
        name: ``"linear"`` (no activation), ``"dice"``, or a class of ``torch.nn`` such as ``"prelu"``.
        hidden_size: number of channels, for ``"dice"`` alone.
        dice_dim: number of input dimensions, for ``"dice"`` alone.

    Raises:
        ValueError: for an unknown name, or ``"dice"`` without a hidden size.
    """
    wanted = name.lower()
    if wanted == "linear":
        return nn.Identity()
    if wanted == "dice":
        if hidden_size is None:
            raise ValueError("hidden_size must be given for activation 'dice', got None")
        return Dice(hidden_size, dice_dim)
    for candidate in nn.modules.activation.__all__:
        if candidate.lower() == wanted:
            try:
                layer: nn.Module = getattr(nn, candidate)()
            except TypeError:
                break  # It needs arguments.
            return layer
    raise ValueError(f"activation must be 'linear', 'dice' or the name of a torch.nn activation, got {name!r}")


def init_weights(module: nn.Module) -> None:
    """Initialise one module in place, for ``model.apply(init_weights)``.

    Linear weights are He-uniform and their biases standard normal; batch normalisation scales are
    normal around 1 (standard deviation 0.02) with zero shift. Everything else is left alone.
    """
    if isinstance(module, nn.Linear):
        nn.init.kaiming_uniform_(module.weight)
        if module.bias is not None:
            nn.init.normal_(module.bias)
    elif isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
        if module.weight is not None:
            nn.init.normal_(module.weight, mean=1, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class MLP(nn.Module):
    """Linear layers, each followed by batch normalisation, activation and dropout.

    Args:
        input_size: number of input channels I.
        hidden_layers: output size of each layer.
        dropout: probability of zeroing an activation, in ``[0, 1)``.
        batchnorm: whether each linear layer is batch-normalised.
        activation: ``"relu"``, ``"prelu"``, ``"dice"`` or another name of an activation; empty or None for none.

    Example:
        >>> MLP(4, [16, 8])(torch.randn(32, 4)).shape
        torch.Size([32, 8])
    """

    def __init__(
        self,
        input_size: int,
        hidden_layers: Sequence[int],
        dropout: float = 0.0,
        batchnorm: bool = True,
        activation: str | None = "relu",
    ) -> None:
        super().__init__()
        modules: OrderedDict[str, nn.Module] = OrderedDict()
        previous_size = input_size
        for index, hidden_layer in enumerate(hidden_layers):
            modules[f"dense{index}"] = nn.Linear(previous_size, hidden_layer)
            if batchnorm:
                modules[f"batchnorm{index}"] = nn.BatchNorm1d(hidden_layer)
            if activation:
                modules[f"activation{index}"] = get_activation_layer(activation, hidden_layer, 2)
            if dropout:
                modules[f"dropout{index}"] = nn.Dropout(dropout)
            previous_size = hidden_layer
        self.mlp = nn.Sequential(modules)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` ``[N, I]`` to ``[N, hidden_layers[-1]]``."""
        out: Tensor = self.mlp(x)
        return out
