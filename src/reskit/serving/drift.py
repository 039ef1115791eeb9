"""A sample of what was answered is held against the bundle's profile, never in the way of answers."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from reskit.bundle import Bundle
from reskit.drift import DriftProfile, Scores, features_and_classes

if TYPE_CHECKING:
    from reskit.serving.metrics import State

__all__ = ["DriftGauges", "DriftState", "DriftWatch"]

_LOG = logging.getLogger("reskit.serving")
_MODEL = ("model", "version")
_AT_ONCE = 16
"""Most examples whose features are computed together."""
_PATIENCE_S = 10.0
"""How long a model's end waits for a look that is under way."""


class DriftState(NamedTuple):
    """What is known of a model's traffic.

    Attributes:
        examples: looked at since the model was loaded.
        windows: filled since then.
        threshold: of a window.
        scores: of the last window; None before there is one.
        alarms: whether each of them was over its threshold.
    """

    examples: int
    windows: int
    threshold: Scores
    scores: Scores | None = None
    alarms: tuple[bool, bool] = (False, False)


class DriftWatch:
    """Looks at some of the examples of one model on a thread of its own.

    Args:
        bundle: what answers.
        profile: of the bundle.
        name: of the model, for the log.
        window: examples a window has; one of `reskit.drift.WINDOWS`.
        rate: most examples a second that are looked at.
    """

    def __init__(self, bundle: Bundle, profile: DriftProfile, *, name: str, window: int, rate: float) -> None:
        self._bundle, self._profile, self._name = bundle, profile, name
        self._window, self._rate = window, rate
        self._burst = max(1.0, rate)
        self._allowed, self._asked = self._burst, time.monotonic()
        self._closed = False
        self._given = self._done = 0  # each is counted by one thread only
        self._taken: queue.SimpleQueue[tuple[np.ndarray, np.ndarray] | None] = queue.SimpleQueue()
        self._features: list[np.ndarray] = []
        self._classes: list[np.ndarray] = []
        self.state = DriftState(0, 0, profile.thresholds[window])
        self._thread = threading.Thread(target=self._work, name=f"reskit-drift-{name}", daemon=True)
        self._thread.start()

    def offer(self, raw: np.ndarray, outputs: np.ndarray) -> None:
        """Give what was answered: raw input `(N, ...)` and logits `(N, classes)`; returns at once.

        No more is taken than `rate` allows, and nothing while the thread is behind. From one thread only.
        """
        now = time.monotonic()
        self._allowed = min(self._burst, self._allowed + (now - self._asked) * self._rate)
        self._asked = now
        count = min(len(raw), int(self._allowed), int(self._burst) - (self._given - self._done))
        if count > 0:
            self._allowed -= count
            self._given += count
            self._taken.put((raw[:count].copy(), outputs[:count].argmax(1)))

    def close(self) -> None:
        """End the thread; what waits is not looked at.

        A thread still within PyTorch when the interpreter ends would abort the process.
        """
        self._rate = self._allowed = 0.0
        self._closed = True
        self._taken.put(None)
        self._thread.join(_PATIENCE_S)

    def _work(self) -> None:
        _yield_to_others()
        while (taken := self._taken.get()) is not None and not self._closed:
            try:
                self._look(*taken)
            except Exception:  # the network may raise anything; answers must not suffer
                self._features, self._classes = [], []
                _LOG.exception("model %s: drift could not be looked at", self._name)
            self._done += len(taken[0])

    def _look(self, raw: np.ndarray, classes: np.ndarray) -> None:
        model, normalize = self._bundle.model, self._bundle.task.normalize
        for piece in torch.split(torch.from_numpy(raw), _AT_ONCE):
            features, _ = features_and_classes(model, normalize, piece)
            self._features.append(features)
        self._classes.append(classes)
        if sum(map(len, self._features)) >= self._window:
            self._judge()
        self.state = self.state._replace(examples=self.state.examples + len(raw))

    def _judge(self) -> None:
        """Score the examples gathered as windows; what is left over begins the next."""
        features, classes = np.concatenate(self._features), np.concatenate(self._classes)
        while len(features) >= self._window:
            scores = self._profile.scores(features[: self._window], classes[: self._window])
            features, classes = features[self._window :], classes[self._window :]
            alarms = self._profile.alarms(scores, self._window)
            for what, is_on, was_on, score, most in zip(
                Scores._fields, alarms, self.state.alarms, scores, self.state.threshold, strict=True
            ):
                if is_on != was_on:
                    level, word = (logging.WARNING, "drifted") if is_on else (logging.INFO, "is usual again")
                    _LOG.log(level, "model %s: %s %s: %.3g of %.3g", self._name, what, word, score, most)
            self.state = self.state._replace(windows=self.state.windows + 1, scores=scores, alarms=alarms)
        self._features, self._classes = [features], [classes]


def _yield_to_others() -> None:
    """Let others go first where the system can; threads that PyTorch makes for this one inherit it."""
    with contextlib.suppress(AttributeError, OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


class DriftGauges(Collector):
    """Metrics of drift, of the models that are loaded now.

    Args:
        states: asked when metrics are collected.
    """

    def __init__(self, states: Callable[[], list[State]]) -> None:
        self._states = states

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        by_statistic = (*_MODEL, "statistic")
        watched = GaugeMetricFamily("reskit_drift_watched", "Whether drift is watched", labels=_MODEL)
        examples = CounterMetricFamily("reskit_drift_examples", "Examples looked at", labels=_MODEL)
        windows = CounterMetricFamily("reskit_drift_windows", "Windows filled", labels=_MODEL)
        score = GaugeMetricFamily("reskit_drift_score", "Drift of the last window", labels=by_statistic)
        threshold = GaugeMetricFamily(
            "reskit_drift_threshold", "What unchanged traffic seldom exceeds", labels=by_statistic
        )
        alarm = GaugeMetricFamily(
            "reskit_drift_alarm", "Whether the last window was over its threshold", labels=by_statistic
        )
        for model in self._states():
            labels = (model.model, model.version)
            watched.add_metric(labels, model.drift is not None)
            if (state := model.drift) is None:
                continue
            examples.add_metric(labels, state.examples)
            windows.add_metric(labels, state.windows)
            for place, statistic in enumerate(Scores._fields):
                threshold.add_metric((*labels, statistic), state.threshold[place])
                if state.scores is not None:
                    score.add_metric((*labels, statistic), state.scores[place])
                    alarm.add_metric((*labels, statistic), state.alarms[place])
        yield from (watched, examples, windows, score, threshold, alarm)
