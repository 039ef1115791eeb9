"""What a service does, whatever protocol it is asked by."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from reskit.backends.servable import OUTPUT
from reskit.errors import InputError, ReskitError
from reskit.serving import describing
from reskit.serving.buckets import Bucket
from reskit.serving.deploying import Deployer
from reskit.serving.deploying.deployer import MODES
from reskit.serving.faults import BadRequestError, BusyError, DeadlineError, NotReadyError, ServingError
from reskit.serving.history import History
from reskit.serving.metrics import Metrics
from reskit.serving.models import Model, Repository
from reskit.serving.protocol import InferRequest, InferResponse, Output, Wanted, classified
from reskit.serving.records import Recorder, note_model, note_stage
from reskit.serving.security import Tokens
from reskit.serving.settings import Settings
from reskit.serving.traces import traces_asked
from reskit.serving.uploads import Item, Sent, open_sent

__all__ = ["Service"]

_T = TypeVar("_T")
_READERS = 32
"""Uploads read or waited for at the same time."""


class Service:
    """Models, metrics and limits of one server; to be used within its event loop.

    Args:
        places: folders with bundles, each with a name or None; see `Repository`.
        settings: how it is set up.
        buckets: those that some of the folders mirror.
    """

    def __init__(
        self,
        places: Iterable[tuple[str | None, Path]],
        settings: Settings,
        buckets: Sequence[Bucket] = (),
    ) -> None:
        self.settings = settings
        self.tokens = Tokens.read(settings.token_file)
        traces = traces_asked()
        self.recorder = Recorder(*([] if traces is None else [traces]))
        self.started = time.time()
        self.metrics = Metrics(lambda: [model.state() for model in self.models.models])
        self.history = History(self.metrics)
        self.models = Repository(places, settings, self.metrics, buckets)
        self.deployer = Deployer(self.models, settings, self.metrics, self.ready)
        self.draining = False
        self.stopping = asyncio.Event()
        self.explaining = asyncio.Lock()
        self._uploads = 0
        self._readers = concurrent.futures.ThreadPoolExecutor(_READERS, thread_name_prefix="reskit-read")

    def live(self) -> bool:
        """Whether the process is worth keeping: no model has all its workers hanging."""
        return not any(model.batcher.stuck for model in self.models.models)

    def ready(self) -> bool:
        """Whether it takes requests: every model loaded answers, and nobody asked it to stop."""
        return not self.draining and all(model.ready for model in self.models.models)

    async def infer(self, name: str, version: str, request: InferRequest, protocol: str) -> InferResponse:
        """Answer a request of the protocol.

        Raises:
            ServingError: it is refused, or could not be answered.
        """

        async def ask(model: Model, due: float, unseen: bool) -> InferResponse:
            return await self._infer(model, request, due, "shadow" if unseen else protocol)

        return await self.deployer.answer(name, version, ask, self._deadline(request.timeout_s))

    async def _infer(
        self, model: Model, request: InferRequest, deadline: float, protocol: str
    ) -> InferResponse:
        """Answer by one model."""
        async with model.used():
            with self._counted(model, protocol):
                try:
                    rows = model.predictor.signature.check(request.inputs)
                except InputError as error:
                    raise BadRequestError(f"model {model.name!r}: {error}") from None
                wanted = self._wanted(model, request)
                answer = await model.infer(request.inputs, rows, deadline)
                labels = model.predictor.labels
                return InferResponse(
                    model=model.name,
                    version=model.version,
                    id=request.id,
                    outputs=[
                        Output(
                            name=one.name,
                            binary=one.binary,
                            array=classified(one.name, answer.outputs[one.name], one.classes, labels)
                            if one.classes
                            else answer.outputs[one.name],
                        )
                        for one in wanted
                    ],
                )

    async def predict(
        self, name: str, version: str, uploads: Sequence[Sent], *, pictures: bool = False
    ) -> dict[str, Any]:
        """Answer for what was sent as `reskit.predict` does; an example that cannot be read has an error.

        Raises:
            ServingError: it is refused, or not one could be answered.
        """
        chosen = self.one(name)
        if self._uploads + len(uploads) > self.settings.queue:
            raise BusyError(f"{self._uploads} uploads are waiting, {self.settings.queue} is the most", 1)

        async def ask(model: Model, due: float, unseen: bool) -> dict[str, Any]:
            protocol = "shadow" if unseen else "predict"
            return await self._predict(model, uploads, due, pictures and not unseen, protocol)

        self._uploads += len(uploads)
        try:
            return await self.deployer.answer(chosen, version, ask, self._deadline(None))
        finally:
            self._uploads -= len(uploads)

    async def _predict(
        self,
        model: Model,
        uploads: Sequence[Sent],
        deadline: float,
        pictures: bool,
        protocol: str,
    ) -> dict[str, Any]:
        """Answer for uploads by one model."""
        began = time.perf_counter()
        async with model.used():
            with self._counted(model, protocol):
                answered = await asyncio.gather(
                    *(self._rows(model, upload, deadline, pictures) for upload in uploads)
                )
                rows = [row for several in answered for row in several]
                failed = [error for _, error in rows if error is not None]
                if len(failed) == len(rows):
                    raise failed[0]
        return {
            "model": model.name,
            "version": model.version,
            "engine": model.predictor.engine,
            "milliseconds": round((time.perf_counter() - began) * 1000, 3),
            "predictions": [row for row, _ in rows],
        }

    def one(self, name: str) -> str:
        """Return a name that is given, else that of the only model.

        Raises:
            BadRequestError: none is given, and there are several models or none.
        """
        if name:
            return name
        if len(names := self.models.names()) != 1:
            raise BadRequestError(f"say which model: {', '.join(names)}" if names else "no model is loaded")
        return names[0]

    async def release(self, name: str) -> None:
        """Unload and forget a bundle that was adopted."""
        del self.models.adopted[name]  # first: while it is being unloaded, nobody else unloads it
        await self.deployer.unload(name)
        self.models.forget(name)

    async def adopt(self, name: str, place: Path) -> None:
        """Load the bundle in a folder that was found here, under a name that the platform chose.

        Raises:
            ServingError: it cannot be loaded, or the service is stopping.
        """
        if self.draining:
            raise NotReadyError("the service is stopping")
        try:
            self.models.adopt(name, place)
            try:
                await self.deployer.load(name)
            except BaseException:
                self.models.forget(name)
                raise
        except ServingError:
            raise
        except ReskitError as error:
            raise BadRequestError(f"model {name!r} cannot be loaded: {error}") from error

    async def reading(self, function: Callable[..., _T], *arguments: Any) -> _T:
        """Return what a function returns that is called in a thread, as uploads are read."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, partial(function, *arguments))

    async def load(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Load a model; what is loaded comes from the folders named at the start alone.

        Args:
            name: of the model.
            parameters: of the protocol: ``config`` may hold a ``version_policy`` as JSON, and nothing else;
                ``rollout`` says how the new version takes over, as the setting of that name does.

        Raises:
            ServingError: there is no such model, it cannot be loaded, or something else was asked for.
        """
        if self.draining:
            raise NotReadyError("the service is stopping")
        for key in parameters:
            if key not in ("config", "rollout"):
                raise BadRequestError(
                    f"parameter {key[:80]!r} is not taken: models come from the service's folders"
                )
        policy, mode = None, parameters.get("rollout")
        if mode is not None and not isinstance(mode, str):
            raise BadRequestError(f"rollout must be one of {', '.join(MODES)}")
        if (config := parameters.get("config")) is not None:
            try:
                asked = json.loads(config)
                policy = asked.get("version_policy")
            except (TypeError, ValueError, AttributeError, RecursionError):
                raise BadRequestError("config is not a JSON object") from None
            if asked.keys() - {"version_policy", "name"}:
                raise BadRequestError(
                    "only version_policy of a config is taken: a bundle says all else itself"
                )
        try:
            await self.deployer.load(name, policy, mode)
        except ServingError:
            raise
        except ReskitError as error:
            raise BadRequestError(f"model {name!r} cannot be loaded: {error}") from error

    def metadata(self, name: str, version: str) -> dict[str, Any]:
        """Return the metadata of a model."""
        return describing.model_metadata(self.models.get(name, version), self.models.versions(name))

    def config(self, name: str, version: str) -> dict[str, Any]:
        """Return Triton's config of a model."""
        return describing.model_config(self.models.get(name, version), self.settings)

    def statistics(self, name: str, version: str) -> dict[str, Any]:
        """Return the statistics of a model, or of all that are loaded."""
        models = [self.models.get(name, version)] if name else self.models.models
        return {"model_stats": [model.metrics.statistics() for model in models]}

    def index(self, ready: bool) -> list[dict[str, str]]:
        """Return the models in the folders, or those that are ready only."""
        return [row for row in self.models.index() if not ready or row["state"] == "READY"]

    async def close(self) -> None:
        """Answer what is under way and unload everything."""
        self.draining = True
        await self.deployer.close()
        await self.models.close()
        self._readers.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self.recorder.close)

    def _deadline(self, asked: float | None) -> float:
        """Return when an answer is due, by the loop's clock."""
        timeout = min(self.settings.timeout_s, asked or self.settings.timeout_s)
        return asyncio.get_running_loop().time() + timeout

    def _wanted(self, model: Model, request: InferRequest) -> Sequence[Wanted]:
        """Return the outputs asked for, all when none are.

        Raises:
            BadRequestError: there is no such output.
        """
        names = [spec.name for spec in model.predictor.signature.outputs]
        for one in request.wanted:
            if one.name not in names:
                raise BadRequestError(
                    f"model {model.name!r} has no output {one.name!r}; it has {', '.join(names)}"
                )
        return request.wanted or [Wanted(name=name, binary=request.binary) for name in names]

    async def _rows(
        self, model: Model, sent: Sent, deadline: float, pictures: bool
    ) -> list[tuple[dict[str, Any], ServingError | None]]:
        """Return the rows of what was sent at once, each with why it has no record."""
        loop = asyncio.get_running_loop()
        asked = contextvars.copy_context()  # threads have none of their own
        answer = partial(asked.run, self._answered, model, sent, deadline, pictures, loop)
        return await loop.run_in_executor(self._readers, answer)

    def _answered(
        self, model: Model, sent: Sent, deadline: float, pictures: bool, loop: asyncio.AbstractEventLoop
    ) -> list[tuple[dict[str, Any], ServingError | None]]:
        """Read and answer what was sent; runs in a thread, the network's part goes through the batcher."""
        task = model.predictor.bundle.task

        def answer(raw: np.ndarray) -> np.ndarray:
            waiting = model.infer({task.raw: raw}, len(raw), deadline)
            answered = asyncio.run_coroutine_threadsafe(waiting, loop)
            try:
                return answered.result(max(0.0, deadline - loop.time()) + 5).outputs[OUTPUT]
            except TimeoutError:  # the loop is gone
                answered.cancel()
                raise DeadlineError("no answer in time") from None

        def failed(name: str, error: ServingError) -> tuple[dict[str, Any], ServingError]:
            return {"input": name, **task.blank, "error": str(error)}, error

        try:
            if loop.time() > deadline:
                raise DeadlineError("no answer in time")
            began = time.perf_counter()
            items = open_sent(sent, task, self.settings.max_pixels)
            read = [_read(model, item) for item in items]
            seconds = time.perf_counter() - began
            note_stage("preprocess", int(seconds * 1e9))
            loop.call_soon_threadsafe(model.metrics.preprocessed, seconds)
            good = [one for one in read if not isinstance(one, ServingError)]
            records = iter(model.predictor.records(good, answer, pictures=pictures) if good else ())
        except ServingError as error:
            return [failed(sent.name, error)]
        return [
            failed(item.name, one)
            if isinstance(one, ServingError)
            else ({"input": item.name, **next(records), "error": None}, None)
            for item, one in zip(items, read, strict=True)
        ]

    @contextmanager
    def _counted(self, model: Model, protocol: str) -> Iterator[None]:
        """Count a request and how it ended."""
        note_model(model.name, model.version)
        began, kind = time.perf_counter_ns(), "cancelled"
        try:
            yield
            kind = ""
        except ServingError as error:
            kind = error.kind
            raise
        except Exception:
            kind = "internal"
            raise
        finally:
            model.metrics.finished(protocol, time.perf_counter_ns() - began, kind or None)


def _read(model: Model, item: Item) -> Tensor | ServingError:
    """Return an example as the task reads it, or why it cannot be read."""
    try:
        return model.predictor.read(item.content)
    except ServingError as error:
        return error
