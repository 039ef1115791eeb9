"""Who decides which version of a model serves: loads the new, tries it, promotes it or rolls it back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from reskit.errors import ReskitError
from reskit.journal import Kind
from reskit.serving.deploying.comparing import AnyAnswer
from reskit.serving.deploying.known import Known, verdict
from reskit.serving.deploying.metrics import DeploymentMetrics
from reskit.serving.deploying.recorder import Recorder
from reskit.serving.deploying.traffic import Traffic
from reskit.serving.deploying.trial import Ask, Trial
from reskit.serving.faults import BadRequestError
from reskit.serving.folders import digest
from reskit.serving.metrics import Metrics
from reskit.serving.models import Model, Repository
from reskit.serving.settings import Settings

__all__ = ["MODES", "Deployer"]

_LOG = logging.getLogger("reskit.serving")
_HEARTBEAT_S = 30.0

Mode = Literal["at-once", "canary", "shadow"]
MODES: tuple[Mode, ...] = ("at-once", "canary", "shadow")


class Deployer:
    """Deploys versions of the models of one service, and records it; used within its event loop.

    Args:
        models: of the service.
        settings: of the service.
        metrics: of the service.
        ready: says whether the service answers.
    """

    def __init__(
        self, models: Repository, settings: Settings, metrics: Metrics, ready: Callable[[], bool]
    ) -> None:
        self._models, self._settings, self._ready = models, settings, ready
        self._metrics = DeploymentMetrics(metrics.registry, self.shares)
        self._recorder = Recorder(settings.journal)
        self._known = Known()
        self._trials: dict[str, Trial] = {}
        self._turns: dict[str, asyncio.Lock] = {}
        self._traffic = Traffic()
        self._seen: dict[str, dict[str, str]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._judging: dict[str, asyncio.Task[None]] = {}
        self._started = False

    async def start(self) -> None:
        """Load the version of every model that served before, else the newest; then look for newer ones.

        Raises:
            ConfigError: the journal cannot be used.
            ReskitError: a model cannot be loaded.
        """
        self._known = Known(await self._recorder.open())
        for name in self._models.names():
            versions = {version: digest(path) for version, path in self._models.found(name).items()}
            version = self._known.choose(name, versions)
            self._known.serving[name] = version, versions[version]
            await self._models.install(name, {version: await self._models.prepare(name, version)})
            for (model, judged, files), reason in self._known.judged.items():
                if model == name and judged != version and versions.get(judged) == files:
                    self._models.note(name, judged, "UNAVAILABLE", reason)
        serving = {name: version for name, (version, _) in self._known.serving.items()}
        await self._recorder.append("start", serving=serving)
        self._started = True
        if self._settings.journal is not None:
            self._spawn(self._heartbeats())
        if self._settings.watch_s or self._settings.journal is not None:
            self._spawn(self._watch())

    async def answer(self, name: str, version: str, ask: Ask[AnyAnswer], deadline: float) -> AnyAnswer:
        """Answer a request by the version named, else by the one that serves or the one on trial.

        Raises:
            ServingError: it is refused, or could not be answered.
        """
        model = self._models.get(name, version)
        with self._traffic.counted(model.name):
            trial = None if version else self._trials.get(model.name)
            if trial is None:
                return await ask(model, deadline, False)
            return await trial.answer(model, ask, deadline)

    async def load(self, name: str, policy: Mapping[str, Any] | None = None, mode: str | None = None) -> None:
        """Deploy what a policy names, the newest version when absent; returns once it serves or is on trial.

        Args:
            name: of the model.
            policy: as ``version_policy`` of Triton's model config.
            mode: one of `MODES`; that of the settings when absent.

        Raises:
            UnknownModelError: there is no such model in the folders.
            BadRequestError: the policy or the mode is not one.
            ReskitError: a bundle cannot be loaded, or its answers are not those it promises.
        """
        if mode is not None and mode not in MODES:
            raise BadRequestError(f"unknown rollout {mode[:80]!r}: {', '.join(MODES)}")
        chosen = mode or self._settings.rollout
        await self._models.pull()
        # Shielded: who asked may go away, and the deployment goes on to an outcome.
        await asyncio.shield(self._spawn(self._load(name, policy, chosen)))

    async def unload(self, name: str) -> None:
        """Unload a model; what it was asked before is answered.

        Raises:
            UnknownModelError: there is no such model.
        """
        async with self._turn(name):
            await self._cancel(name, "the model was unloaded")
            await self._models.unload(name)
            self._known.serving.pop(name, None)

    def shares(self) -> list[tuple[str, str, float]]:
        """Return model, version and the part of the requests it answers, of every version."""
        rows = []
        for name in self._models.names():
            loaded = self._models.versions(name)
            parts = dict.fromkeys(loaded, 0.0)
            if loaded:
                parts[loaded[-1]] = 1.0
            if (trial := self._trials.get(name)) is not None and loaded:
                parts[loaded[-1]] -= trial.share
                parts[trial.new.version] = parts.get(trial.new.version, 0.0) + trial.share
            rows += [(name, version, part) for version, part in parts.items()]
        return rows

    async def close(self) -> None:
        """End trials and write the last events."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for name in list(self._judging):
            await self._cancel(name, "the service stopped")
        if self._started:
            with _logged("the journal lacks the stop"):
                await self._write_traffic()
                await self._recorder.append("stop")
        await self._recorder.close()

    # Deployments.

    async def _load(self, name: str, policy: Mapping[str, Any] | None, mode: Mode) -> None:
        async with self._turn(name):
            self._models.look()
            wanted = self._models.wanted(name, policy)
            version, files = wanted[-1], digest(self._models.found(name)[wanted[-1]])
            await self._cancel(name, "another load was asked for")
            serving = self._known.serving.get(name)
            if len(wanted) > 1 or serving is None:
                mode = "at-once"
            if serving == (version, files):  # nothing new: no deployment
                await self._models.install(
                    name, {one: await self._models.prepare(name, one) for one in wanted}
                )
                return
            number = await self._recorder.append(
                "begun",
                model=name,
                version=version,
                mode=mode,
                files=files,
                previous=None if serving is None else serving[0],
            )
            fresh: dict[str, Model] = {}
            try:
                for one in wanted:
                    fresh[one] = await self._models.prepare(name, one)
            except BaseException as error:
                for model in fresh.values():
                    await self._models.discard(model, "not wanted without the others")
                refused = isinstance(error, ReskitError)
                reason = str(error) if refused else "the service stopped"
                self._known.judged[name, version, files] = reason
                await self._ended("refused" if refused else "cancelled", name, version, number, reason=reason)
                raise
            if mode == "at-once":
                await self._promote(name, fresh, files, number, reason="", figures={})
                return
            trial = self._trials[name] = Trial(fresh[version], mode, self._settings)
            self._models.note(name, version, "LOADING", f"on trial: {mode}")
            self._judging[name] = asyncio.create_task(self._see_through(name, trial, files, number))

    async def _see_through(self, name: str, trial: Trial, files: str, number: int) -> None:
        """Wait for the verdict of a trial, and do what it says."""
        outcome, reason = await trial.decide()
        version, figures = trial.new.version, trial.figures()
        await trial.close()
        try:
            if outcome == "promoted":
                await self._promote(name, {version: trial.new}, files, number, reason=reason, figures=figures)
                return
            del self._trials[name]
            if outcome == "rolled_back":
                self._known.judged[name, version, files] = verdict(outcome, reason)
                _LOG.warning("model %s version %s was rolled back: %s", name, version, reason)
            await self._ended(outcome, name, version, number, reason=reason, figures=figures)
            await self._models.discard(trial.new, verdict(outcome, reason))
        except ReskitError as error:
            _LOG.error("deployment of model %s version %s: %s", name, version, error)
            if self._trials.pop(name, None) is not None:
                await self._models.discard(trial.new, str(error))
        finally:
            del self._judging[name]

    async def _promote(
        self, name: str, fresh: dict[str, Model], files: str, number: int, **event: Any
    ) -> None:
        """Let new versions serve; recorded first, so that a service killed now starts with them.

        Raises:
            OutputError: it cannot be recorded; the old version goes on.
        """
        version = max(fresh, key=int)
        try:
            await self._write_traffic()
            await self._ended("promoted", name, version, number, **event)
        except ReskitError:
            if name not in self._trials:
                for model in fresh.values():
                    await self._models.discard(model, "its promotion could not be recorded")
            raise
        self._trials.pop(name, None)
        self._known.serving[name] = version, files
        await self._models.install(name, fresh)

    async def _ended(self, outcome: Kind, name: str, version: str, number: int, **event: Any) -> None:
        await self._recorder.append(outcome, model=name, version=version, deployment=number, **event)
        self._metrics.ended(name, outcome)

    async def _cancel(self, name: str, reason: str) -> None:
        """End the trial of a model, if there is one."""
        if name in self._trials:
            self._trials[name].cancel(reason)
        if name in self._judging:
            await asyncio.wait([self._judging[name]])

    # What goes on by itself.

    async def _watch(self) -> None:
        """Deploy what is new in the folders: now and, where it is asked for, from time to time."""
        while True:
            try:
                await self._look(settled=self._settings.watch_s > 0)
            except OSError as error:
                _LOG.warning("the folders cannot be looked into: %s", error)
            if not self._settings.watch_s:
                return
            await asyncio.sleep(self._settings.watch_s)

    async def _look(self, *, settled: bool) -> None:
        """Deploy the newest version of each model that was not judged yet, unless a newer one serves.

        Args:
            settled: only what is as it was at the look before: a folder may be just being copied.
        """
        await self._models.pull()
        self._models.look()
        for name in self._models.names():
            serving = self._known.serving.get(name)
            if serving is None or name in self._judging or self._turn(name).locked():
                continue
            found = {
                version: digest(path)
                for version, path in self._models.found(name).items()
                if int(version) >= int(serving[0])
            }
            last, self._seen[name] = self._seen.get(name, {}), found
            fresh = [one for one, files in found.items() if (name, one, files) not in self._known.judged]
            version = max(fresh, key=int, default=serving[0])
            files = found.get(version, "")
            if not files or serving == (version, files) or (settled and last.get(version) != files):
                continue
            try:
                await self._load(name, {"specific": {"versions": [version]}}, self._settings.rollout)
            except ReskitError as error:
                _LOG.warning("model %s version %s was refused: %s", name, version, error)

    async def _heartbeats(self) -> None:
        while True:
            await asyncio.sleep(_HEARTBEAT_S)
            with _logged("the journal lacks a heartbeat"):
                await self._write_traffic()
                await self._recorder.append("heartbeat", ready=self._ready())

    async def _write_traffic(self) -> None:
        for name, requests, failed in self._traffic.take():
            version, _ = self._known.serving.get(name, (None, ""))
            await self._recorder.append(
                "traffic", model=name, version=version, requests=requests, failed=failed
            )

    def _turn(self, name: str) -> asyncio.Lock:
        return self._turns.setdefault(name, asyncio.Lock())

    def _spawn(self, work: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


@contextlib.contextmanager
def _logged(what: str) -> Iterator[None]:
    """Say in the log that the journal cannot be written, and go on."""
    try:
        yield
    except ReskitError as error:
        _LOG.error("%s: %s", what, error)
