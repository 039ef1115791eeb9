"""What each residual block is worth: how much worse the network is when only the block's shortcut is left."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from reskit.bundle import Bundle
from reskit.data import OnCorrupt, Source
from reskit.errors import ModelError
from reskit.evaluation.run import network_answers, open_as_trained
from reskit.files import to_json, write_text
from reskit.insight.blocks import dropped, removable_blocks, residual_blocks
from reskit.insight.examples import Examples, choosing_split
from reskit.insight.ratio import Shortcut, ratios
from reskit.models import Backbone
from reskit.plots.insight import lesions
from reskit.training.callbacks import Reporter

__all__ = ["BlockFigures", "LesionStudy", "lesion", "lesion_study", "require_shortcuts"]


@dataclass(frozen=True, kw_only=True)
class BlockFigures:
    """One block.

    Attributes:
        name: of the module.
        shortcut: what carries the signal when `F` is dropped.
        removable: whether the network can be built without the block; see `removable_blocks`.
        loss: of the network without this `F`; None where nothing would carry the signal.
        metric: the task's main metric without this `F`.
        ratio: ``|F(x)| / |shortcut(x)|``, Euclidean norms of an example, mean over the examples.
        parameters: of the block.
        macs: multiply-adds of the block for one example.
    """

    name: str
    shortcut: Shortcut
    removable: bool
    loss: float | None
    metric: float | None
    ratio: float | None
    parameters: int
    macs: int


@dataclass(frozen=True, kw_only=True)
class LesionStudy:
    """The outcome of `lesion_study`.

    Attributes:
        split: where the examples are from.
        examples: how many.
        metric_name: the task's main metric.
        loss: of the intact network.
        metric: its main metric.
        parameters: of the network.
        macs: its multiply-adds for one example.
        blocks: in the order of the network.
        files: what was written, by name.
    """

    split: str
    examples: int
    metric_name: str
    loss: float
    metric: float
    parameters: int
    macs: int
    blocks: tuple[BlockFigures, ...]
    files: dict[str, Path]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A row a block for a table; parameters and multiply-adds are shares of the network's."""
        return [
            {
                "block": block.name,
                "shortcut": block.shortcut,
                "removable": "yes" if block.removable else "no",
                "loss": block.loss,
                self.metric_name: block.metric,
                "|F|/|x|": block.ratio,
                "parameters": f"{block.parameters / self.parameters:.1%}",
                "macs": f"{block.macs / self.macs:.1%}",
            }
            for block in self.blocks
        ]

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            **vars(self),
            "blocks": [asdict(block) for block in self.blocks],
            "files": {name: str(path) for name, path in self.files.items()},
        }


def lesion_study(
    bundle: Bundle | str | Path,
    data: str | Path | Source | None = None,
    *,
    split: str | None = None,
    examples: int = 1024,
    out: str | Path | None = None,
    batch_size: int = 256,
    on_corrupt: OnCorrupt = "refuse",
    reporter: Reporter | None = None,
) -> LesionStudy:
    """Drop `F` of every residual block in turn, keep its shortcut, and measure what that costs.

    Sources: Veit et al., Residual Networks Behave Like Ensembles of Relatively Shallow Networks, 2016,
    section 4.1; for the ratio Jastrzebski et al., Residual Connections Encourage Iterative Inference, 2018.

    Args:
        bundle: a loaded bundle or its folder.
        data: where the examples are, as in `reskit.evaluate`.
        split: which of them; ``validation`` where there is one besides the held-out split, else ``train``, so
            that what is decided by the study does not flatter the figures of the held-out split.
        examples: at most so many, spread evenly over the split; every block costs a pass over them.
        out: a folder for the figures and a plot; nothing is written when absent.
        batch_size: examples at once.
        on_corrupt: ``refuse`` or ``skip`` images that cannot be read.
        reporter: told of progress; prints to standard error when absent.

    Raises:
        ModelError: the network has no residual block with a shortcut.
        DataError: the data cannot be read, have no such split, or other classes than the bundle.
    """
    if not isinstance(bundle, Bundle):
        bundle = Bundle.load(bundle)
    require_shortcuts(bundle)
    source = data if isinstance(data, Source) else open_as_trained(bundle, data, on_corrupt)
    split = split or choosing_split(source)
    drawn = Examples.draw(source, split, bundle.task, count=examples, batch_size=batch_size)
    found = _study(copy.deepcopy(bundle.model), drawn, (reporter or Reporter()).say)
    if out is None:
        return found
    files = {"lesion": Path(out) / "lesion.png", "figures": Path(out) / "lesion.json"}
    found = replace(found, files=files)
    lesions(found.as_dict(), files["lesion"])
    write_text(files["figures"], to_json(found.as_dict()))
    return found


def require_shortcuts(bundle: Bundle) -> None:
    """Check that there is something to drop.

    Raises:
        ModelError: the network has no residual block with a shortcut.
    """
    blocks, name = residual_blocks(bundle.model), bundle.config.architecture["name"]
    if not blocks:
        raise ModelError(f"{name} has no residual blocks: there is no F to drop")
    if all(block.plain for block in blocks.values()):
        raise ModelError(f"{name} is plain: without F nothing would carry the signal")


def lesion(model: nn.Module, name: str, examples: Examples) -> tuple[float, float]:
    """Return loss and main metric of a network without the `F` of one block."""
    with dropped(residual_blocks(model)[name]):
        return examples.score(model)


def _study(model: Backbone, examples: Examples, say: Callable[[str], None]) -> LesionStudy:
    """Measure every block of a network, which is moved to the examples' device; see `lesion_study`."""
    loss, metric = examples.score(model)
    say(f"intact, on {len(examples):,} examples of {examples.split}: loss {loss:.4f}")
    macs, able = _macs(model, examples), removable_blocks(model)
    blocks = []
    for name, (shortcut, ratio) in ratios(model, examples).items():
        without = None if shortcut == "none" else lesion(model, name, examples)
        if without is not None:
            say(f"without {name}: loss {without[0]:.4f}")
        figures = BlockFigures(
            name=name,
            shortcut=shortcut,
            removable=name in able,
            loss=without and without[0],
            metric=without and without[1],
            ratio=ratio,
            parameters=_parameters(model.get_submodule(name)),
            macs=macs[name],
        )
        blocks.append(figures)
    return LesionStudy(
        split=examples.split,
        examples=len(examples),
        metric_name=examples.task.main_metric,
        loss=loss,
        metric=metric,
        parameters=_parameters(model),
        macs=macs[""],
        blocks=tuple(blocks),
        files={},
    )


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@torch.no_grad()
def _macs(model: nn.Module, examples: Examples) -> dict[str, int]:
    """Return the multiply-adds of every residual block for one example; those of the network under ``""``."""
    answer = network_answers(model, examples.task, examples.device)
    with FlopCounterMode(display=False) as counter:
        answer({name: values[:1] for name, values in examples.batches[0].items()})
    root, counts = type(model).__name__, counter.get_flop_counts()
    names = {"": root, **{name: f"{root}.{name}" for name in residual_blocks(model)}}
    return {name: sum(counts.get(path, {}).values()) // 2 for name, path in names.items()}
