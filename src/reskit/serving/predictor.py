"""One bundle ready to answer: its fastest engine here, warmed up, with its preprocessing and its labels."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from reskit.backends.answers import Answers, answers, planned
from reskit.backends.base import Runner, Signature
from reskit.backends.plan import plan_time
from reskit.backends.servable import OUTPUT, describe
from reskit.bundle import Bundle
from reskit.data.images import HEADER_ERRORS
from reskit.drift import DriftProfile
from reskit.environment import usable_cores
from reskit.errors import DataError
from reskit.serving.faults import BadRequestError, EngineError
from reskit.serving.settings import Settings

__all__ = ["Predictor", "data_url"]

MAX_BATCH = 16
"""Examples at once where nobody measured what is fastest."""


class _Eager(Runner):
    """The network in PyTorch as `reskit.predict` asks it, with the runner's interface."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(describe(bundle, "torch", "fp32"))
        self._answer = answers(bundle, "eager")

    def _run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        (given,) = inputs.values()
        raw = np.require(given, requirements=("C", "W"))  # else no tensor can be made of it
        return {OUTPUT: self._answer(torch.from_numpy(raw)).numpy()}


class Predictor:
    """What answers for one bundle.

    Args:
        bundle: the bundle.
        runner: its engine.
        engine: the engine's name.
        threads: processors that one run uses.
        max_batch: most examples at once.
        workers: runs at the same time.
        profile: what the bundle's data were like; None where that is not known.
        difference: largest difference from float32 that was measured of the engine, of the largest output.
    """

    def __init__(
        self,
        *,
        bundle: Bundle,
        runner: Runner,
        engine: str,
        threads: int,
        max_batch: int,
        workers: int,
        profile: DriftProfile | None = None,
        difference: float = 0.0,
    ) -> None:
        self.bundle = bundle
        self.profile = profile
        self.runner = runner
        self.engine = engine
        self.threads = threads
        self.max_batch = max_batch
        self.workers = workers
        self.difference = difference

    @classmethod
    def load(cls, path: Path, settings: Settings) -> Self:
        """Load a bundle and its engine, and run it at the least and the largest batch size.

        Raises:
            BundleError: it is not a good bundle.
            MissingExtraError: what reads its examples is not installed.
            BackendError: there is no plan for this machine though one was asked for, or it is damaged.
        """
        bundle = Bundle.load(path)
        bundle.task.check_installed()
        profile = DriftProfile.of(bundle)
        if settings.engine == "eager" or (settings.engine == "auto" and plan_time(path) is None):
            runner: Runner = _Eager(bundle)
            name, threads, workers, best = "torch-fp32", usable_cores(), 1, MAX_BATCH
            difference = 0.0
        else:
            runner, engine = planned(bundle, settings.engine)
            name, threads, difference = engine.name, engine.threads, engine.difference
            # A run takes its threads; an engine of several streams has one for each of as many runs.
            workers = max(engine.streams, usable_cores() // threads)
            best = max(engine.batches, key=lambda figures: figures.images_per_s).batch
        predictor = cls(
            bundle=bundle,
            runner=runner,
            engine=name,
            threads=threads,
            max_batch=settings.max_batch or best,
            workers=settings.workers or workers,
            profile=profile,
            difference=difference,
        )
        for batch in sorted({1, predictor.max_batch}):
            runner.warm_up(batch)
        return predictor

    @property
    def signature(self) -> Signature:
        """What goes in and what comes out."""
        return self.runner.signature

    @property
    def architecture(self) -> str:
        """The name of the network."""
        return str(self.bundle.config.architecture["name"])

    @property
    def labels(self) -> list[str]:
        """The names of the classes."""
        return self.bundle.task.labels

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the outputs of a batch; see `Runner.run`."""
        return self.runner.run(inputs)

    def read(self, content: Any) -> Tensor:
        """Return an example as the task reads it, an image as uint8 `(C, h, w)`.

        Raises:
            BadRequestError: it cannot be read.
        """
        try:
            return self.bundle.task.read(content)
        except (DataError, *HEADER_ERRORS) as error:
            raise BadRequestError(str(error)) from None

    def records(
        self,
        examples: Sequence[Tensor],
        answer: Callable[[np.ndarray], np.ndarray],
        *,
        pictures: bool = False,
    ) -> list[dict[str, Any]]:
        """Return the record of each example.

        Args:
            examples: of one shape, as `read` gave them.
            answer: raw input `(N, ...)`, at most `max_batch` at once, to outputs.
            pictures: add `pictures`: what is worth a picture of the answer, such as a mask, as data URLs.

        Raises:
            EngineError: the outputs are not finite.
        """
        task = self.bundle.task
        outputs = task.outputs(self._network(answer), torch.stack(list(examples)))
        if not outputs.isfinite().all():
            raise EngineError("the network's output is not finite: its weights are damaged")
        records = task.decode(outputs)
        for place, example in enumerate(examples if pictures else ()):
            drawn = task.pictures(example, outputs[place : place + 1])
            records[place]["pictures"] = {name: data_url(picture) for name, picture in drawn.items()}
        return records

    def _network(self, answer: Callable[[np.ndarray], np.ndarray]) -> Answers:
        def network(raw: Tensor) -> Tensor:
            pieces = [answer(piece.contiguous().numpy()) for piece in torch.split(raw, self.max_batch)]
            return torch.from_numpy(np.concatenate(pieces))

        return network

    def close(self) -> None:
        """Give threads and memory back."""
        self.runner.close()


def data_url(picture: np.ndarray | Image.Image) -> str:
    """Return a picture as a URL that holds it, PNG."""
    held = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(held, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(held.getvalue()).decode()}"
