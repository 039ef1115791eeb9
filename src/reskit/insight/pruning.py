"""A network made shallower: blocks it can do without are left out, the rest learns on for a little while."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from reskit.bundle import Bundle
from reskit.data import Source
from reskit.errors import ConfigError, did_you_mean
from reskit.evaluation import evaluate
from reskit.evaluation.run import open_as_trained
from reskit.files import to_json, write_text
from reskit.insight.blocks import without_blocks
from reskit.insight.choice import By, PruneStep, choose, how_many, measure_steps
from reskit.insight.examples import Examples, choosing_split
from reskit.insight.lesion import require_shortcuts
from reskit.models import Backbone
from reskit.plots.insight import pruning
from reskit.recipes import load_recipe
from reskit.training import train
from reskit.training.callbacks import Reporter

__all__ = ["Pruned", "prune"]

LEARNING_RATE = 0.01


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """The outcome of `prune`.

    Attributes:
        by: what told the cheapest block; None where the blocks were named.
        removed: names in the intact network, in the order they went.
        chosen_on: the split of the examples that were chosen by.
        examples: how many they were.
        metric_name: the task's main metric.
        steps: the intact network, and what was left after each block.
        split: the held-out split.
        metrics: figures on it by stage: ``intact``, ``removed`` and, where the rest learned on, ``tuned``.
        bundle: folder of the final network.
        files: what else was written, by name.
    """

    by: By | None
    removed: tuple[str, ...]
    chosen_on: str
    examples: int
    metric_name: str
    steps: tuple[PruneStep, ...]
    split: str
    metrics: dict[str, dict[str, float]]
    bundle: Path
    files: dict[str, Path]

    @property
    def latency_ratio(self) -> float:
        """By how much the final network is faster, one example in float32 eager."""
        return self.steps[0].latency_ms / self.steps[-1].latency_ms

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A row a step for a table."""
        return [{**asdict(step), "block": step.block or "(intact)"} for step in self.steps]

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            **vars(self),
            "removed": list(self.removed),
            "steps": [asdict(step) for step in self.steps],
            "latency_ratio": self.latency_ratio,
            "bundle": str(self.bundle),
            "files": {name: str(path) for name, path in self.files.items()},
        }


def prune(
    bundle: Bundle | str | Path,
    out: str | Path,
    *,
    data: str | Path | None = None,
    share: float = 0.25,
    blocks: Sequence[str] = (),
    by: By = "lesion",
    split: str | None = None,
    examples: int = 1024,
    epochs: int = 3,
    overrides: Sequence[str] = (),
    reporter: Reporter | None = None,
) -> Pruned:
    """Leave out residual blocks, let the rest learn on briefly, and report accuracy against latency.

    The result is an ordinary bundle: a network of the same family with other `depths`.

    Source: Veit et al., Residual Networks Behave Like Ensembles of Relatively Shallow Networks, 2016, section
    4: residual networks lose little where a few blocks are left out.

    Args:
        bundle: a loaded bundle or its folder.
        out: the folder to write: ``pruned`` is the bundle as cut, ``run`` the run that trained it on, with
            the final ``bundle`` in it; ``pruning.json`` and ``pruning.png`` lie beside them.
        data: where the examples are; the bundle's own training data when absent.
        share: of all residual blocks, which part goes, rounded up.
        blocks: names of those to go, instead of a share.
        by: ``lesion`` (the loss without a block) or ``ratio`` (the size of its ``F(x)``); see `lesion_study`.
        split: where the examples to choose by are from, as in `lesion_study`; not the held-out split.
        examples: at most so many to choose by.
        epochs: of learning on, with data, augmentation and batch size of the bundle's own run; 0 for none.
        overrides: recipe keys of that run, such as ``training.optimizer.lr=0.02``.
        reporter: told of progress; prints to standard error when absent.

    Raises:
        ModelError: the network is plain, is not built by `depths`, or so many or these blocks cannot go.
        ConfigError: an argument is out of range, or `out` is not empty.
        DataError: the data cannot be read, or have other classes than the bundle.
    """
    if not isinstance(bundle, Bundle):
        bundle = Bundle.load(bundle)
    folder, reporter = Path(out), reporter or Reporter()
    _check(bundle, folder, by=by, epochs=epochs, overrides=overrides)
    model = copy.deepcopy(bundle.model)
    own = bundle.config.provenance.get("settings", {}).get("data", {})
    source = open_as_trained(bundle, data, own.get("on_corrupt", "refuse"))
    split = split or choosing_split(source)
    if split == source.held_out:
        raise ConfigError(f"choosing by {split!r} would flatter the final figures, measured there")

    drawn = Examples.draw(source, split, bundle.task, count=examples)
    chosen = list(blocks) or choose(model, drawn, count=how_many(model, share), by=by, say=reporter.say)
    steps = measure_steps(model, chosen, drawn)
    metrics = {"intact": evaluate(bundle, source).metrics}
    cut = _write_cut(bundle, without_blocks(model, chosen), folder / "pruned", source, chosen)
    metrics["removed"] = cut.config.metrics[source.held_out]
    final = cut.path
    if epochs:
        recipe = _tuning(bundle, epochs, chosen)
        result = train(
            recipe, data=data, weights=cut.path, out=folder / "run", overrides=overrides, reporter=reporter
        )
        metrics["tuned"], final = result.metrics, result.bundle
    outcome = Pruned(
        by=None if blocks else by,
        removed=tuple(chosen),
        chosen_on=split,
        examples=len(drawn),
        metric_name=bundle.task.main_metric,
        steps=steps,
        split=source.held_out,
        metrics=metrics,
        bundle=final,
        files={"figures": folder / "pruning.json", "pruning": folder / "pruning.png"},
    )
    pruning(outcome.as_dict(), outcome.files["pruning"])
    write_text(outcome.files["figures"], to_json(outcome.as_dict()))
    return outcome


def _check(bundle: Bundle, folder: Path, *, by: str, epochs: int, overrides: Sequence[str]) -> None:
    """Refuse before the work what would be refused after it.

    Raises:
        ModelError, ConfigError: see `prune`.
    """
    require_shortcuts(bundle)
    if by not in get_args(By):
        raise ConfigError(f"unknown way to choose {by!r}{did_you_mean(by, get_args(By))}")
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ConfigError(f"{folder} is not empty; choose another --out")
    if not epochs:
        return
    plain = load_recipe(_tuning(bundle, epochs))
    asked = load_recipe(_tuning(bundle, epochs), overrides)
    if (asked.data, asked.training.seed) != (plain.data, plain.training.seed):
        raise ConfigError("data.* and training.seed stay the bundle's own, or figures could not be compared")


def _tuning(bundle: Bundle, epochs: int, removed: Sequence[str] = ()) -> dict[str, Any]:
    """Return the recipe by which the rest learns on: that of the bundle's own run, but brief and gentle."""
    own = bundle.config.provenance.get("settings", {})
    training, name = own.get("training", {}), own.get("name", bundle.config.architecture["name"])
    taken = ("batch_size", "accumulate", "label_smoothing", "clip_norm", "seed", "deterministic")
    return {
        **own,
        "name": f"{name}-pruned",
        "description": f"{name} without {', '.join(removed)}",
        "source": "",
        "model": {"name": "auto"},
        "preprocess": {"statistics": "weights"},
        "transfer": {},
        "training": {
            **{key: training[key] for key in taken if key in training},
            "epochs": epochs,
            "optimizer": {
                "lr": LEARNING_RATE,
                "weight_decay": training.get("optimizer", {}).get("weight_decay", 1e-4),
            },
        },
    }


def _write_cut(
    bundle: Bundle, network: Backbone, path: Path, source: Source, removed: Sequence[str]
) -> Bundle:
    """Write what is left of a bundle, with its figures on the held-out split."""
    measured = evaluate(Bundle(path=path, config=bundle.config, task=bundle.task, model=network), source)
    return Bundle.write(
        path,
        task=bundle.task,
        model=network,
        metrics={source.held_out: measured.metrics},
        provenance={
            **bundle.config.provenance,
            "pruned": {"bundle": bundle.config.checksum(), "blocks": list(removed)},
        },
        samples=bundle.samples["samples"],
    )
