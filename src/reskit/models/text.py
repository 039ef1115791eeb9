"""Residual networks for text: tokens embedded, then convolutions along them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from reskit.models.base import (
    Backbone,
    check_integer,
    check_integers,
    check_probability,
    drop_rates,
    stage_widths,
)
from reskit.models.registry import register_family
from reskit.nn import BasicBlock, ShortcutKind
from reskit.nn.layers import make_conv, make_norm

__all__ = ["UNKNOWN", "TextResNet"]

UNKNOWN = 1
"""The token that stands for any that is not known; 0 stands for none, behind a text's last."""


class TextResNet(Backbone):
    """An embedding, a convolution over three tokens, stages of basic blocks along the text, their largest.

    Every stage after the first halves the length. The largest value of each channel, wherever in the text it
    is, goes to the head: where a text ends says nothing, so what lies behind its end hardly can.

    Feature maps: each stage's, `(N, channels, L / stride)`.

    Sources: Conneau et al., Very Deep Convolutional Networks for Text Classification, 2017, figure 1 (stages
    and widths; the head is Kim's, instead of the k largest and three layers of 2,048); Kim, Convolutional
    Neural Networks for Sentence Classification, 2014 (the largest over time, dropout before the head); Iyyer
    et al., Deep Unordered Composition Rivals Syntactic Methods, 2015, section 3.1 (`token_dropout`).

    Args:
        depths: blocks of each stage.
        width: channels of each stage, or of the first, doubled from stage to stage.
        embedding: numbers that stand for a token.
        token_dropout: part of the tokens that training takes for unknown ones.
        dropout: of embeddings and of the pooled vector.
        residual: False builds the plain twin.
        shortcut: see :func:`reskit.nn.make_shortcut`.
        se: reduction ratio of squeeze-excitation; True for 16, 0 for none.
        stochastic_depth: rate of the last block; it grows linearly from the first.
        zero_init: whether every block starts as its shortcut.
        num_classes: width of the logits; 0 for the pooled vector.
        in_channels: how many tokens there are, the unknown and the missing one included.
        features_only: whether to give the feature maps, without a head.

    Raises:
        ModelError: an argument has a bad value, or two do not go together.
    """

    def __init__(
        self,
        *,
        depths: Sequence[int] = (1, 1, 1),
        width: int | Sequence[int] = (128, 128, 128),
        embedding: int = 128,
        token_dropout: float = 0.0,
        dropout: float = 0.0,
        residual: bool = True,
        shortcut: ShortcutKind = "B",
        se: int | bool = 0,
        stochastic_depth: float = 0.0,
        zero_init: bool = False,
        num_classes: int = 2,
        in_channels: int = 20_000,
        features_only: bool = False,
    ) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels, features_only=features_only)
        check_integers("depths", depths)
        check_integer("embedding", embedding, minimum=1)
        check_probability("dropout", dropout)
        widths = stage_widths(width, len(depths))
        rates = iter(drop_rates(stochastic_depth, sum(depths)))
        self.embedding = _Embedding(in_channels, embedding, token_dropout=token_dropout, dropout=dropout)
        self.conv1 = make_conv(1, embedding, widths[0], 3)
        self.bn1 = make_norm(1, widths[0])
        self.relu = nn.ReLU(inplace=True)
        before = widths[0]
        for stage, (depth, after) in enumerate(zip(depths, widths, strict=True), 1):
            blocks = []
            for block in range(depth):
                blocks.append(
                    BasicBlock(
                        before,
                        after,
                        stride=2 if stage > 1 and block == 0 else 1,
                        rank=1,
                        shortcut=shortcut,
                        residual=residual,
                        se=se,
                        stochastic_depth=next(rates),
                        zero_init=zero_init,
                    )
                )
                before = after
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.pool = _Largest(dropout)
        self.finish(widths, [2**stage for stage in range(len(depths))])

    def segments(self) -> list[list[nn.Module]]:
        """Return the stages, the first with the embedding and the convolution before it."""
        first, *rest = (self.get_submodule(f"layer{stage + 1}") for stage in range(len(self.channels)))
        return [[self.embedding, self.conv1, self.bn1, self.relu, first], *([layer] for layer in rest)]


class _Embedding(nn.Module):
    """Tokens `(N, L)`, whole numbers, to their vectors `(N, embedding, L)`; that of no token is zero."""

    def __init__(self, tokens: int, embedding: int, *, token_dropout: float, dropout: float) -> None:
        super().__init__()
        check_integer("in_channels", tokens, minimum=UNKNOWN + 1)
        check_probability("token_dropout", token_dropout)
        self.token_dropout = token_dropout
        self.table = nn.Embedding(tokens, embedding, padding_idx=0)
        with torch.no_grad():  # smaller than PyTorch has it: rare words, seldom learnt, must not be loud
            self.table.weight.mul_(0.1)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.token_dropout:
            dropped = (torch.rand(x.shape, device=x.device) < self.token_dropout) & (x > 0)
            x = x.masked_fill(dropped, UNKNOWN)
        return self.dropout(self.table(x)).permute(0, 2, 1)  # type: ignore[no-any-return]


class _Largest(nn.Module):
    """The largest value of each channel along a text, `(N, C, L)` to `(N, C)`."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(x.amax(2))  # type: ignore[no-any-return]


_CHARACTERS = 128
_CONNEAU = "Conneau et al., Very Deep Convolutional Networks for Text Classification, 2017, arXiv:1606.01781"
_KIM = "Kim, Convolutional Neural Networks for Sentence Classification, 2014, arXiv:1408.5882"


def _deep(*depths: int) -> dict[str, Any]:
    return {"depths": depths, "width": 64, "embedding": 16}


register_family(
    TextResNet,
    {"text_resnet8": ({"dropout": 0.5, "token_dropout": 0.1}, 2_939_394, _KIM)},
    num_classes=2,
    in_channels=20_000,
    input_size=(64,),
    task="text",
)
register_family(
    TextResNet,
    {
        "char_resnet9": (_deep(1, 1, 1, 1), 1_756_802, _CONNEAU),
        "char_resnet17": (_deep(2, 2, 2, 2), 3_849_602, _CONNEAU),
        "char_resnet29": (_deep(5, 5, 2, 2), 4_220_546, _CONNEAU),
    },
    num_classes=2,
    in_channels=_CHARACTERS,
    input_size=(1024,),
    task="text",
)
