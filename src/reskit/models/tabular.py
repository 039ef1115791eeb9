"""A residual network for tables: rows as vectors, categories embedded."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from reskit.errors import ModelError
from reskit.models.base import Backbone, check_integer, check_probability, drop_rates
from reskit.models.registry import register_family
from reskit.nn import ResidualMLP
from reskit.nn.layers import make_norm
from reskit.nn.residual import check_plain

__all__ = ["TabularResNet"]

_WIDEST = 16


class TabularResNet(Backbone):
    """A linear layer onto a vector, residual perceptrons on it, a norm and a rectifier before the head.

    A category becomes a vector of its own, learnt, of ``ceil(1.6 n ** 0.56)`` numbers for `n` values (the
    rule of fast.ai), at most 16.

    Feature maps: the vector after each block, `(N, width)`, all at stride 1.

    Source: Gorishniy et al., Revisiting Deep Learning Models for Tabular Data, 2021, section 3.2.

    Args:
        depth: blocks.
        width: numbers of the vector.
        hidden: of the hidden layer of a block, in widths.
        dropout: of hidden units.
        categories: how many values each column of categories has; these columns are the last of the input.
        residual: False builds the plain twin.
        se: reduction ratio of squeeze-excitation; True for 16, 0 for none.
        stochastic_depth: rate of the last block; it grows linearly from the first.
        zero_init: whether every block starts as its shortcut.
        num_classes: width of the logits; 0 for the pooled vector.
        in_channels: columns of numbers, the first of the input.
        features_only: whether to give the vectors after each block, without a head.

    Raises:
        ModelError: an argument has a bad value, or two do not go together.
    """

    def __init__(
        self,
        *,
        depth: int = 3,
        width: int = 128,
        hidden: int = 2,
        dropout: float = 0.0,
        categories: Sequence[int] = (),
        residual: bool = True,
        se: int | bool = 0,
        stochastic_depth: float = 0.0,
        zero_init: bool = False,
        num_classes: int = 2,
        in_channels: int = 30,
        features_only: bool = False,
    ) -> None:
        super().__init__(num_classes=num_classes, in_channels=1, features_only=features_only)
        check_plain(residual, zero_init=zero_init, stochastic_depth=stochastic_depth)
        check_integer("in_channels", in_channels, minimum=0)
        for name, value in (("depth", depth), ("width", width), ("hidden", hidden)):
            check_integer(name, value, minimum=1)
        check_probability("dropout", dropout)
        self.columns = _Columns(in_channels, categories)
        self.first = nn.Linear(self.columns.width, width)
        rates = drop_rates(stochastic_depth, depth)
        for place, rate in enumerate(rates, 1):
            block = ResidualMLP(
                width,
                hidden=hidden * width,
                norm=True,
                dropout=dropout,
                residual=residual,
                se=se,
                stochastic_depth=rate,
                zero_init=zero_init,
            )
            self.add_module(f"block{place}", block)
        self.norm, self.relu = make_norm(0, width), nn.ReLU()
        self.pool = nn.Identity()
        self.finish([width] * depth, [1] * depth)

    def segments(self) -> list[list[nn.Module]]:
        """Return the blocks, the first with what is before it, the last with the norm behind it."""
        blocks: list[list[nn.Module]] = [
            [self.get_submodule(f"block{place + 1}")] for place in range(len(self.channels))
        ]
        blocks[0] = [self.columns, self.first, *blocks[0]]
        blocks[-1] += [self.norm, self.relu]
        return blocks


class _Columns(nn.Module):
    """Rows `(N, numbers + categories)` to vectors `(N, width)`: numbers as they are, categories embedded."""

    def __init__(self, numbers: int, categories: Sequence[int]) -> None:
        super().__init__()
        for count in categories:
            check_integer("each of categories", count, minimum=1)
        if not numbers and not categories:
            raise ModelError("a row has no column: in_channels is 0 and categories is empty")
        self.numbers = numbers
        sizes = [min(_WIDEST, -int(-1.6 * count**0.56 // 1)) for count in categories]
        self.tables = nn.ModuleList(
            nn.Embedding(count, size) for count, size in zip(categories, sizes, strict=True)
        )
        self.width = numbers + sum(sizes)

    def forward(self, x: Tensor) -> Tensor:
        if not self.tables:
            return x
        codes = x[:, self.numbers :].to(torch.int64)
        parts = [x[:, : self.numbers]] if self.numbers else []
        parts += [table(codes[:, place]) for place, table in enumerate(self.tables)]
        return torch.cat(parts, 1)


register_family(
    TabularResNet,
    {
        "tabular_resnet": (
            {"dropout": 0.2},
            203_010,
            "Gorishniy et al., Revisiting Deep Learning Models for Tabular Data, 2021, arXiv:2106.11959",
        )
    },
    num_classes=2,
    in_channels=30,
    input_size=(30,),
    task="tabular",
)
