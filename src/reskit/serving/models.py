"""The models a service has: found in the folders named at its start, loaded and unloaded while it runs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np

from reskit.backends.servable import OUTPUT
from reskit.errors import BackendError, ConfigError, ReskitError, did_you_mean
from reskit.serving.batching import Answered, Batcher
from reskit.serving.buckets import Bucket
from reskit.serving.drift import DriftWatch
from reskit.serving.faults import BadRequestError, NotReadyError, UnknownModelError
from reskit.serving.folders import find_models
from reskit.serving.golden import replay
from reskit.serving.metrics import Metrics, ModelMetrics, State
from reskit.serving.predictor import Predictor
from reskit.serving.records import note_answer
from reskit.serving.settings import Settings

__all__ = ["Model", "Repository"]

_LOG = logging.getLogger("reskit.serving")


class Model:
    """One version of a model, loaded.

    Args:
        name: of the model.
        version: of the model.
        predictor: what answers.
        metrics: of the service.
        settings: of the service.
    """

    def __init__(
        self, name: str, version: str, predictor: Predictor, metrics: Metrics, settings: Settings
    ) -> None:
        self.name, self.version = name, version
        self.predictor = predictor
        self.metrics = ModelMetrics(metrics, name, version)
        self.loaded = time.time()
        self.batcher = Batcher(
            predictor.run,
            self.metrics,
            max_batch=predictor.max_batch,
            max_delay=settings.max_delay_ms / 1000,
            limit=settings.queue,
            workers=predictor.workers,
            hung_after=settings.timeout_s,
        )
        self.drift = (
            DriftWatch(
                predictor.bundle,
                predictor.profile,
                name=name,
                window=settings.drift_window,
                rate=settings.drift_rate,
            )
            if predictor.profile is not None and settings.drift_rate
            else None
        )
        self._grace = settings.grace_s
        self._users = 0

    @property
    def ready(self) -> bool:
        """Whether it answers: its network does not hang."""
        return not self.batcher.hung

    def state(self) -> State:
        """Return what metrics say of it now."""
        return State(
            model=self.name,
            version=self.version,
            architecture=self.predictor.architecture,
            engine=self.predictor.engine,
            depth=self.batcher.depth,
            ready=self.ready,
            drift=None if self.drift is None else self.drift.state,
        )

    async def infer(self, inputs: Mapping[str, np.ndarray], rows: int, deadline: float) -> Answered:
        """Return the outputs of arrays that fit the signature; see `Batcher.submit`."""
        answer = await self.batcher.submit(inputs, rows, deadline)
        self.metrics.answered(answer)
        if self.drift is not None:
            self.drift.offer(inputs[self.predictor.bundle.task.raw], answer.outputs[OUTPUT])
        note_answer(answer)
        return answer

    @asynccontextmanager
    async def used(self) -> AsyncIterator[Model]:
        """Keep it loaded while a request uses it."""
        self._users += 1
        try:
            yield self
        finally:
            self._users -= 1

    async def close(self) -> None:
        """Answer what is under way, then give everything back."""
        end = time.monotonic() + self._grace
        while self._users and time.monotonic() < end:
            await asyncio.sleep(0.005)
        if self.drift is not None:
            await asyncio.to_thread(self.drift.close)
        if await self.batcher.close(max(0.0, end - time.monotonic())):
            self.predictor.close()


class Repository:
    """The models of a service, by name and version.

    Args:
        places: folders, as the user named them, each with the name its one bundle is to have, or None.
        settings: of the service.
        metrics: of the service.
        buckets: those that some of the folders mirror.
    """

    def __init__(
        self,
        places: Iterable[tuple[str | None, Path]],
        settings: Settings,
        metrics: Metrics,
        buckets: Sequence[Bucket] = (),
    ) -> None:
        self._places = list(places)
        self._buckets, self._pulling = buckets, asyncio.Lock()
        self.adopted: dict[str, Path] = {}
        self.roots: list[Path] = []
        if settings.platform is not None and settings.platform.multi_model:  # it says what to load, and when
            self.roots, self._places = [place for _, place in self._places], []
        self._settings, self._metrics = settings, metrics
        self._loaded: dict[str, dict[str, Model]] = {}
        self._states: dict[tuple[str, str], tuple[str, str]] = {}
        self._found = find_models(self._places)

    @property
    def models(self) -> list[Model]:
        """All that are loaded."""
        return [model for versions in self._loaded.values() for model in versions.values()]

    def names(self) -> list[str]:
        """Return the names of all models that were found, loaded or not."""
        return sorted(self._found)

    def versions(self, name: str) -> list[str]:
        """Return the versions of a model that are loaded, oldest first."""
        return sorted(self._loaded.get(name, ()), key=int)

    def get(self, name: str, version: str = "") -> Model:
        """Return a model that is loaded; the newest version unless one is named.

        Raises:
            UnknownModelError: there is none of the name, or no such version.
            NotReadyError: it is there, but not loaded.
        """
        loaded = self._loaded.get(name, {})
        if not loaded and name not in self._found:
            raise UnknownModelError(f"unknown model {name!r}{did_you_mean(name, self._found)}")
        if version and version not in loaded and version not in self._found.get(name, ()):
            known = ", ".join(sorted(self._found.get(name, ()), key=int))
            raise UnknownModelError(f"model {name!r} has no version {version!r}; known: {known}")
        model = loaded.get(version or max(loaded, key=int, default=""))
        if model is None:
            raise NotReadyError(f"model {name!r}{f' version {version}' if version else ''} is not loaded")
        return model

    def index(self) -> list[dict[str, str]]:
        """Return every model and version in the folders, and the state it is in."""
        self.look()
        rows = []
        for name in sorted({*self._found, *self._loaded}):
            for version in sorted({*self._found.get(name, ()), *self._loaded.get(name, ())}, key=int):
                ready = version in self._loaded.get(name, ())
                state, reason = self._states.get((name, version), ("UNAVAILABLE", "not loaded"))
                if ready and state != "UNLOADING":
                    state, reason = "READY", ""
                rows.append({"name": name, "version": version, "state": state, "reason": reason})
        return rows

    def found(self, name: str) -> Mapping[str, Path]:
        """Return the versions of a model in the folders, and where they are."""
        return self._found.get(name, {})

    def wanted(self, name: str, policy: Mapping[str, Any] | None = None) -> list[str]:
        """Return the versions that a policy names, oldest first.

        Args:
            name: of the model.
            policy: as ``version_policy`` of Triton's model config; the newest when absent.

        Raises:
            UnknownModelError: there is no such model in the folders.
            BadRequestError: the policy is not one.
        """
        if name not in self._found:
            raise UnknownModelError(f"unknown model {name!r}{did_you_mean(name, self._found)}")
        return sorted(_versions(self._found[name], policy), key=int)

    async def prepare(self, name: str, version: str) -> Model:
        """Load a version from the folders named at the start, and hold it to its golden samples.

        Whatever answers goes on; `install` or `discard` what this returns.

        Raises:
            ReskitError: a bundle cannot be loaded, as `Predictor.load` says, or does not keep its promises.
        """
        self._states[name, version] = ("LOADING", "")
        try:
            predictor = await asyncio.to_thread(_proven, self._found[name][version], self._settings)
        except ReskitError as error:
            self._states[name, version] = ("UNAVAILABLE", str(error))
            raise
        return Model(name, version, predictor, self._metrics, self._settings)

    async def install(self, name: str, fresh: Mapping[str, Model]) -> None:
        """Let versions answer instead of those that do, which still answer what they were given."""
        old = self._loaded.get(name, {})
        self._loaded[name] = dict(fresh)
        for version in fresh:
            self._states[name, version] = ("READY", "")
        await self._retire(old.values(), keep=fresh)

    async def discard(self, model: Model, reason: str) -> None:
        """Give back a version that will not answer."""
        self.note(model.name, model.version, "UNAVAILABLE", reason)
        await model.close()

    def note(self, name: str, version: str, state: str, reason: str) -> None:
        """Say in the index what a version is at."""
        self._states[name, version] = (state, reason)

    async def unload(self, name: str) -> None:
        """Unload a model; what it was asked before is answered.

        Raises:
            UnknownModelError: there is no such model.
        """
        if name not in self._found and name not in self._loaded:
            raise UnknownModelError(f"unknown model {name!r}{did_you_mean(name, self._found)}")
        await self._retire(self._loaded.pop(name, {}).values(), keep={})

    def adopt(self, name: str, place: Path) -> None:
        """Take a bundle in under a name of its own, beside those of the folders named at the start.

        Raises:
            ReskitError: the name cannot be one or is taken, or there is no bundle.
        """
        self._found = find_models([*self._places, (name, place)])
        self._places.append((name, place))
        self.adopted[name] = place

    def forget(self, name: str) -> None:
        """Forget a bundle that was adopted, once it is unloaded."""
        self.adopted.pop(name, None)
        self._places = [place for place in self._places if place[0] != name]
        self._found.pop(name, None)
        self._states = {key: state for key, state in self._states.items() if key[0] != name}

    async def pull(self) -> None:
        """Bring what changed in the buckets into their folders; what cannot be read stays as it was."""
        async with self._pulling:
            for bucket in self._buckets:
                try:
                    await bucket.pulled()
                except ReskitError as error:
                    _LOG.warning("%s", error)

    def look(self) -> None:
        """Look into the folders again."""
        with contextlib.suppress(ConfigError, OSError):  # what is loaded answers on, whatever became of them
            self._found = find_models(self._places)

    async def close(self) -> None:
        """Unload everything."""
        await asyncio.gather(*(self.unload(name) for name in list(self._loaded)))

    async def _retire(self, models: Iterable[Model], *, keep: Mapping[str, Model]) -> None:
        for model in models:
            key = model.name, model.version
            if model.version not in keep:
                self._states[key] = ("UNLOADING", "")
            await model.close()
            if model.version not in keep:
                self._states[key] = ("UNAVAILABLE", "unloaded")


def _proven(path: Path, settings: Settings) -> Predictor:
    try:
        predictor = Predictor.load(path, settings)
    except ReskitError:
        raise
    except Exception as error:  # an engine may raise anything; it costs nothing but this version
        raise BackendError(f"bundle {path} cannot be run: {type(error).__name__}: {error}") from error
    try:
        replay(predictor)
    except ReskitError:
        predictor.close()
        raise
    return predictor


def _versions(found: Mapping[str, Path], policy: Mapping[str, Any] | None) -> list[str]:
    """Return the versions that a policy names.

    Raises:
        BadRequestError: it is not one, or names a version that is not there.
    """
    known = sorted(found, key=int)
    match policy:
        case None:
            return known[-1:]
        case {"latest": {**latest}} if isinstance(count := latest.get("num_versions", 1), int) and count > 0:
            return known[-count:]
        case {"all": {}}:
            return known
        case {"specific": {"versions": [*versions]}} if versions:
            named = [str(version) for version in versions]
            missing = [version for version in named if version not in found]
            if missing:
                raise BadRequestError(f"there is no version {missing[0]!r}; known: {', '.join(known)}")
            return named
    raise BadRequestError(
        "version_policy must be one of {'latest': {'num_versions': 1}}, {'all': {}} and {'specific': "
        "{'versions': [1]}}"
    )
