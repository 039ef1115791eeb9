"""Transfer learning: what is taken over from weights, which layers learn on, and how fast."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from reskit.config import Recipe, TransferConfig
from reskit.data import IMAGENET_MEAN, IMAGENET_STD
from reskit.errors import ConfigError
from reskit.models import MODELS, Backbone, identify
from reskit.weights import Checkpoint, read_checkpoint

__all__ = ["Transfer", "settle_weights"]


class Transfer:
    """Which parts of a network learn in which epoch.

    The parts of a `Backbone` are its segments and its head; of another module, the module itself. A part that
    rests is out of the gradient and in evaluation mode, so its norms keep their statistics as well.

    Source: Howard & Ruder 2018, sections 3.1 (learning rates by layer) and 3.3 (gradual unfreezing).

    Args:
        model: the network; parameters that do not require gradients already are left so.
        config: what the recipe says.
    """

    def __init__(self, model: nn.Module, config: TransferConfig) -> None:
        self.config = config
        self.parts = _parts(model)
        self.parameters = [
            [parameter for module in part for parameter in module.parameters() if parameter.requires_grad]
            for part in self.parts
        ]
        self.norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]

    def learning_rates(self) -> Iterator[tuple[list[nn.Parameter], float]]:
        """Yield the parameters of each part that ever learns, with the factor of its learning rate."""
        top = len(self.parts) - 1
        for place, parameters in enumerate(self.parameters):
            if self.config.unfreeze_epochs or place >= self._lowest(0):
                yield parameters, self.config.layer_decay ** (top - place)

    def set_epoch(self, epoch: int) -> None:
        """Let the parts of an epoch, counted from 0, learn and the others rest; after ``model.train()``."""
        lowest = self._lowest(epoch)
        for place, (part, parameters) in enumerate(zip(self.parts, self.parameters, strict=True)):
            for parameter in parameters:
                parameter.requires_grad_(place >= lowest)
            if place < lowest:
                for module in part:
                    module.eval()
        if self.config.frozen_norms:
            for norm in self.norms:
                norm.eval().requires_grad_(False)

    def _lowest(self, epoch: int) -> int:
        """Return the lowest part that learns in an epoch."""
        trained = self.config.trained
        if not isinstance(trained, int):
            return 0
        risen = int(epoch / self.config.unfreeze_epochs) if self.config.unfreeze_epochs else 0
        return max(len(self.parts) - 1 - trained - risen, 0)


def _parts(model: nn.Module) -> list[list[nn.Module]]:
    """Return the modules that learn together, from the input up."""
    if not isinstance(model, Backbone):
        return [[model]]
    parts = [*model.segments(), [model.head]]
    held = {id(parameter) for part in parts for module in part for parameter in module.parameters()}
    between = [module for module in model.children() if any(id(p) not in held for p in module.parameters())]
    parts[-1].extend(between)  # what an imported network has between its last map and its head
    return parts


def settle_weights(recipe: Recipe) -> Recipe:
    """Fill in what a recipe leaves to its weights: the network, the size and the statistics of its input.

    Raises:
        ConfigError: the weights are to tell something and do not, or there are none.
        WeightsError: they cannot be read.
    """
    model, asked = recipe.model, recipe.preprocess
    open_keys = [
        key
        for key, left in (
            ("model.name: auto", model.name == "auto"),
            ("preprocess.statistics: weights", asked.statistics == "weights" and asked.mean is None),
        )
        if left
    ]
    if not open_keys:
        return recipe
    if not model.weights:
        raise ConfigError(f"{open_keys[0]} needs weights to be taken from: --weights FILE, or model.weights")
    checkpoint = read_checkpoint(*model.weights)
    if model.name == "auto":
        found = identify(checkpoint, size=asked.size)
        name = found.pop("name")
        arguments = {key: found[key] for key in found.keys() - {"num_classes", "in_channels"}}
        model = model.model_copy(update={"name": name, "arguments": {**arguments, **model.arguments}})
    return recipe.model_copy(
        update={
            "model": model,
            "preprocess": asked.model_copy(update=_preprocess(recipe, model.name, checkpoint)),
        }
    )


def _preprocess(recipe: Recipe, name: str, checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the fields of `preprocess` that the weights settle, where the recipe leaves them open."""
    asked, known = recipe.preprocess, checkpoint.preprocess
    left = [key for key in ("resize", "crop_fraction", "interpolation") if getattr(asked, key) is None]
    settled = {key: known[key] for key in left if key in known}
    if asked.size is None:
        settled["size"] = tuple(known.get("size") or MODELS.get(name).input_size[1:])
    if asked.statistics == "weights" and asked.mean is None:
        stated = "mean" in known and "std" in known
        if not stated and checkpoint.graph is not None:  # of PyTorch's files ImageNet's are the custom
            raise ConfigError(
                f"{checkpoint.source} does not say how pixels are scaled: set preprocess.mean and"
                " preprocess.std (of pixels in [0, 1]), or another preprocess.statistics"
            )
        settled["mean"] = tuple(known["mean"] if stated else IMAGENET_MEAN)
        settled["std"] = tuple(known["std"] if stated else IMAGENET_STD)
    return settled
