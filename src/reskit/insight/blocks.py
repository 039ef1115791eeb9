"""The residual blocks of a network: without their `F` for a while, or left out for good."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Collection, Iterator
from itertools import islice

import torch
from torch import Tensor, nn

from reskit.errors import ModelError, did_you_mean
from reskit.models import MODELS, Backbone, create_model
from reskit.nn import Residual

__all__ = ["dropped", "removable_blocks", "residual_blocks", "without_blocks"]


def residual_blocks(model: nn.Module) -> dict[str, Residual]:
    """Return the residual blocks by name, in order; plain twins are among them."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Residual)}


@contextlib.contextmanager
def dropped(block: Residual) -> Iterator[None]:
    """Drop `F` of a block for a while: it gives ``activation(shortcut(x))``.

    Raises:
        ModelError: the block is plain, nothing would carry the signal.
    """
    if block.plain:
        raise ModelError("a plain block has no shortcut to carry the signal: its F cannot be dropped")
    handle = block.register_forward_hook(_shortcut_only)
    try:
        yield
    finally:
        handle.remove()


def _shortcut_only(block: Residual, inputs: tuple[Tensor], _: Tensor) -> Tensor:
    # A copy: an identity shortcut is the input itself, and the activation may work in place.
    return block.activation(block.shortcut(inputs[0]).clone())  # type: ignore[no-any-return]


def removable_blocks(model: Backbone) -> list[str]:
    """Return the names of the blocks any one of which :func:`without_blocks` can leave out, in order.

    Their shortcut is the identity, and the others of the stage can take their places: never a block that
    changes the shape, nor the last of a stage. Empty where the family has no `depths` to say it with.

    Args:
        model: a network of `create_model`.
    """
    blocks = residual_blocks(model)
    return [
        name
        for stage in _stages(model)
        for place, name in enumerate(stage)
        if _is_identity(blocks[name])
        # The first block of a stage may be built otherwise than the one that would move into its place.
        and (place > 0 or (len(stage) > 1 and _shapes(blocks[name]) == _shapes(blocks[stage[1]])))
    ]


def without_blocks(model: Backbone, names: Collection[str]) -> Backbone:
    """Return a network without some blocks: same family, other `depths`; the weights are shared, not copied.

    Args:
        model: a network of `create_model`; it is left as it is.
        names: of blocks; those behind them in the stage move up.

    Raises:
        ModelError: a block is not there or cannot be left out.
    """
    for name in names:
        if name not in residual_blocks(model):
            raise ModelError(f"the network has no block {name!r}{did_you_mean(name, residual_blocks(model))}")
        if name not in (able := removable_blocks(model)):
            raise ModelError(
                f"block {name!r} cannot be left out: others do not fit in its place; able to go are"
                f" {', '.join(able) or 'none'}"
            )
    depths = [sum(name not in names for name in stage) for stage in _stages(model)]
    if not all(depths):
        raise ModelError("a stage would be left without a block: leave one in each")
    with torch.device("meta"):  # no weights of its own to draw
        smaller = create_model(**{**model.architecture, "depths": depths})
    gone = tuple(f"{name}." for name in names)
    kept = [tensor for name, tensor in model.state_dict().items() if not name.startswith(gone)]
    smaller.load_state_dict(dict(zip(smaller.state_dict(), kept, strict=True)), assign=True)
    return smaller.train(model.training)


def _stages(model: Backbone) -> list[list[str]]:
    """Return the names of the blocks of each stage; nothing where `depths` does not say which these are."""
    entry, blocks = MODELS.get(model.architecture["name"]), residual_blocks(model)
    option = inspect.signature(entry.build).parameters.get("depths")
    if option is None:
        return []
    depths = {"depths": option.default, **entry.arguments, **model.architecture}["depths"]
    names = iter(blocks)
    return [list(islice(names, depth)) for depth in depths] if sum(depths) == len(blocks) else []


def _is_identity(block: Residual) -> bool:
    return not block.plain and isinstance(getattr(block, "downsample", None), nn.Identity)


def _shapes(block: Residual) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in block.state_dict().items()}
