"""The bundle: the one thing that crosses from training to everything after it.

A folder of four files: `model.safetensors` (weights), `samples.safetensors` (a few raw inputs with the
outputs they gave, and more of them to calibrate quantisation with), `config.json` (architecture, task,
labels, preprocessing, metrics, provenance, hashes) and `README.md` (a model card). `drift.safetensors`, what
the data were like, may come to them. Nothing in it is executable and nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import textwrap
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import reskit
from reskit.environment import git_commit, machine, versions
from reskit.errors import BundleError
from reskit.files import atomic_file, atomic_folder, sha256, to_json, write_text
from reskit.models import Backbone, create_model
from reskit.tasks import TASKS, Task

if TYPE_CHECKING:
    from reskit.prediction import Predictions

__all__ = ["FORMAT_VERSION", "Bundle", "BundleConfig", "load"]

FORMAT_VERSION = 1
_WEIGHTS, _SAMPLES, _CONFIG, _CARD = "model.safetensors", "samples.safetensors", "config.json", "README.md"
_ADDED = ("drift.safetensors",)
"""Files that a bundle may have besides."""
_GOLDEN_TOLERANCE = 1e-3


class BundleConfig(BaseModel):
    """The contents of `config.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int
    library: str
    created: str
    architecture: dict[str, Any]
    task: dict[str, Any]
    metrics: dict[str, Any]
    provenance: dict[str, Any]
    files: dict[str, str]

    def checksum(self) -> str:
        """Return the SHA-256 over the canonical JSON of every field.

        Files that a bundle may have besides are left out: with one more it is no other bundle, and what was
        measured of it holds.
        """
        own = {name: digest for name, digest in self.files.items() if name not in _ADDED}
        values = {**self.model_dump(), "files": own}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


class Bundle:
    """A trained network with everything needed to use it.

    Args:
        path: the bundle's folder.
        config: its checked `config.json`.
        task: the task it answers.
        model: the network in evaluation mode, on the CPU.
    """

    def __init__(self, *, path: Path, config: BundleConfig, task: Task, model: Backbone) -> None:
        self.path = path
        self.config = config
        self.task = task
        self.model = model

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a bundle and verify format, hashes and shapes.

        Raises:
            BundleError: not a bundle, a file missing or altered, a newer format, or weights that do not fit.
        """
        folder = Path(path)
        config = _read_config(folder)
        for name in (_WEIGHTS, _SAMPLES, *(name for name in _ADDED if name in config.files)):
            file = folder / name
            if not file.is_file():
                raise BundleError(f"bundle {folder}: {name} is missing; restore it or train again")
            if sha256(file) != config.files.get(name):
                raise BundleError(
                    f"bundle {folder}: {name} was altered since it was written (SHA-256 differs)"
                )
        try:
            task = TASKS.get(config.task["name"]).from_config(config.task)
            model = create_model(**config.architecture)
            model.load_state_dict(load_file(folder / _WEIGHTS))
        except Exception as error:  # settings of another version, or hostile ones, may raise anything
            reason = textwrap.shorten(f"{type(error).__name__}: {error}", width=300, placeholder=" ...")
            raise BundleError(f"bundle {folder} does not fit this version of reskit: {reason}") from error
        return cls(path=folder, config=config, task=task, model=model.eval())

    @classmethod
    def write(
        cls,
        path: str | Path,
        *,
        task: Task,
        model: nn.Module,
        metrics: Mapping[str, Any],
        provenance: Mapping[str, Any],
        samples: Tensor,
        golden: int = 4,
    ) -> Self:
        """Write a bundle, whole or not at all, and return it as loaded from disk.

        Args:
            path: the folder to write; an older bundle there is replaced.
            task: the task the model answers.
            model: a network of `create_model`; its `architecture` goes into the bundle.
            metrics: figures by split, for the record and the model card.
            provenance: where it came from; versions, machine, time and git commit are added.
            samples: raw input, such as pixels `(N, C, H, W)`, kept for calibration and self-tests.
            golden: how many of the samples are stored with the outputs they give.

        Raises:
            OutputError: the file system refuses.
        """
        folder = Path(path)
        state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
        architecture = dict(model.architecture)  # type: ignore[arg-type]
        fresh = create_model(**architecture)
        fresh.load_state_dict(state)
        tensors = {"samples": samples.contiguous(), "golden.outputs": _outputs(fresh, task, samples[:golden])}
        with atomic_folder(folder) as staging:
            save_file(state, staging / _WEIGHTS)
            save_file(tensors, staging / _SAMPLES)
            config = BundleConfig(
                format=FORMAT_VERSION,
                library=f"reskit {reskit.__version__}",
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                architecture=architecture,
                task=task.config(),
                metrics=dict(metrics),
                provenance={
                    **provenance,
                    "versions": versions(),
                    "machine": machine(),
                    "git_commit": git_commit(),
                },
                files={name: sha256(staging / name) for name in (_WEIGHTS, _SAMPLES)},
            )
            (staging / _CONFIG).write_text(_with_checksum(config), encoding="utf-8")
            (staging / _CARD).write_text(_card(config, folder.name), encoding="utf-8")
        return cls.load(folder)

    @cached_property
    def samples(self) -> dict[str, Tensor]:
        """Raw inputs `samples` and, for the first of them, the outputs they gave when written."""
        return load_file(self.path / _SAMPLES)

    def added(self, name: str) -> dict[str, Tensor] | None:
        """Return what `add` wrote under a name; None where nothing was added."""
        return load_file(self.path / name) if name in self.config.files else None

    def add(self, name: str, tensors: Mapping[str, Tensor]) -> Self:
        """Write a file that a bundle may have besides, or write it again; return the bundle with it.

        A crash leaves the bundle as it was, or without the file.

        Raises:
            OutputError: the file system refuses.
        """
        assert name in _ADDED
        file, files = self.path / name, {k: v for k, v in self.config.files.items() if k != name}
        if name in self.config.files:
            self._rewrite(files)
        with atomic_file(file) as staging:
            save_file(dict(tensors), staging)
        config = self._rewrite({**files, name: sha256(file)})
        return type(self)(path=self.path, config=config, task=self.task, model=self.model)

    def _rewrite(self, files: Mapping[str, str]) -> BundleConfig:
        """Write `config.json` with other hashes of files, and return it as it is read."""
        config = self.config.model_copy(update={"files": dict(files)})
        write_text(self.path / _CONFIG, _with_checksum(config))
        return _read_config(self.path)

    def verify(self) -> float:
        """Run the golden samples again and return the largest difference from the stored outputs.

        Raises:
            BundleError: it is more than 1e-3: this machine does not compute what the writer's did.
        """
        expected = self.samples["golden.outputs"]
        found = _outputs(self.model, self.task, self.samples["samples"][: len(expected)])
        difference = float((found - expected).abs().max())
        if not difference <= _GOLDEN_TOLERANCE:
            raise BundleError(
                f"bundle {self.path}: golden samples differ by {difference:.2g} from when it was written"
            )
        return difference

    def predict(self, inputs: Any, *, batch_size: int = 32) -> Predictions:
        """Predict for files, folders, globs or arrays; see `reskit.predict`."""
        from reskit.prediction import predict

        return predict(self, inputs, batch_size=batch_size)


def load(path: str | Path) -> Bundle:
    """Read a bundle; see `Bundle.load`."""
    return Bundle.load(path)


def _read_config(folder: Path) -> BundleConfig:
    """Read and check `config.json`."""
    file = folder / _CONFIG
    if not file.is_file():
        what = (
            "has no config.json"
            if folder.is_dir()
            else "is not a folder"
            if folder.exists()
            else "does not exist"
        )
        raise BundleError(f"{folder} is not a reskit bundle: it {what}")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        checksum = values.pop("checksum")
        newest = int(values["format"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BundleError(
            f"{file} is not the config.json of a reskit bundle ({type(error).__name__}: {error})"
        ) from None
    if newest > FORMAT_VERSION:
        raise BundleError(
            f"{file} has format {newest}, this reskit reads up to {FORMAT_VERSION}; upgrade reskit"
        )
    try:
        config = BundleConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise BundleError(f"{file}: {where}: {first['msg']}") from None
    if config.checksum() != checksum:
        raise BundleError(f"bundle {folder}: config.json was altered since it was written (checksum differs)")
    return config


def _with_checksum(config: BundleConfig) -> str:
    # Round trip first: what JSON cannot hold (NaN, tuples) must be normalised before it is summed.
    settled = BundleConfig.model_validate(json.loads(to_json(config.model_dump())))
    return to_json({**settled.model_dump(), "checksum": settled.checksum()})


@torch.no_grad()
def _outputs(model: nn.Module, task: Task, samples: Tensor) -> Tensor:
    """Return what `model` answers to raw inputs, in float32 on the CPU."""
    task.normalize.cpu()
    result: Tensor = model.cpu().eval()(task.inputs({task.raw: samples}))
    return result.float().contiguous()


def _card(config: BundleConfig, name: str) -> str:
    """Return the model card in Markdown, with the front matter the Hugging Face Hub reads."""
    task, labels = TASKS.get(config.task["name"]), config.task["labels"]
    shown = ", ".join(labels[:20]) + (", ..." if len(labels) > 20 else "")
    preprocess = task.Input.model_validate(config.task["preprocess"])
    return "\n".join(
        [
            "---",
            "library_name: reskit",
            f"pipeline_tag: {task.pipeline_tag}",
            "tags: [residual-network]",
            "---",
            f"# {name}",
            "",
            f"`{config.architecture['name']}` for the task `{config.task['name']}`,"
            f" written by {config.library}.",
            "",
            *([f"- Classes ({len(labels)}): {shown}"] if labels else []),
            f"- Input: {task.dtype}, {preprocess.describe()}",
            *_lines("Trained with", config.provenance, ("recipe", "data", "seed", "epochs")),
            "",
            "| split | metric | value |",
            "|---|---|---|",
            *(
                f"| {split} | {metric} | {value:.4f} |"
                for split, values in config.metrics.items()
                for metric, value in values.items()
            ),
            "",
            "```python",
            "import reskit",
            "",
            f'bundle = reskit.load("{name}")',
            f"print(bundle.predict({task.for_instance!r}))",
            "```",
            "",
        ]
    )


def _lines(heading: str, values: Mapping[str, Any], keys: Iterable[str]) -> list[str]:
    found = ", ".join(f"{key} {values[key]}" for key in keys if key in values)
    return [f"- {heading}: {found}"] if found else []
