"""Figures of a service as a page of the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from reskit.watching.figures import STAGES, STATISTICS, Figures, ModelFigures
from reskit.watching.words import duration, rate, seconds

__all__ = ["render"]


def render(figures: Figures, trouble: str = "") -> RenderableType:
    """Return what to show.

    Args:
        figures: the newest there are.
        trouble: why there are no newer ones; shown first.
    """
    parts: list[RenderableType] = [_heading(figures)]
    if trouble:
        parts.append(Text(_printable(trouble), style="bold red"))
    if figures.models:
        parts += [_models(figures.models), _rates(figures.models)]
    else:
        parts.append(Text("no model is loaded", style="bold red"))
    if figures.errors:  # before what may not have room in a small terminal
        parts.append(_errors(figures))
    if figures.models:
        parts += [_stages(figures.models), _drift(figures.models)]
    return Group(*(part for one in parts for part in (one, Text())))


def _heading(figures: Figures) -> Text:
    heading = Text.assemble((figures.url, "bold"), f"  up {duration(figures.up_seconds)}")
    if figures.memory_bytes is not None:
        heading.append(f", {figures.memory_bytes / 2**20:,.0f} MiB")
    if figures.cores is not None:
        heading.append(f", {figures.cores:.2f} processors")
    return heading.append(f"; last {duration(figures.window_seconds)}", "dim")


def _models(models: list[ModelFigures]) -> Table:
    table = _table("model", "version", "state", "network", "engine")
    for model in models:
        state = Text("ready", "green") if model.ready else Text("not ready", "bold red")
        table.add_row(*_named(model), state, _text(model.architecture), _text(model.engine))
    return table


def _rates(models: list[ModelFigures]) -> Table:
    table = _table("model", "version")
    for name in ("requests/s", "errors/s", "examples/s", "batch", "waiting"):
        table.add_column(name, justify="right")
    for model in models:
        table.add_row(
            *_named(model),
            rate(model.requests_per_s),
            Text(rate(model.errors_per_s), "bold red" if model.errors_per_s else ""),
            rate(model.examples_per_s),
            "-" if model.batch_size is None else f"{model.batch_size:.1f}",
            f"{model.queue_depth:,}",
        )
    return table


def _stages(models: list[ModelFigures]) -> Table:
    table = _table("model", "version", "stage")
    for name in ("times/s", "p50", "p95", "p99"):
        table.add_column(name, justify="right")
    for model in models:
        for stage in STAGES:
            found = model.stages[stage]
            times = (found.p50, found.p95, found.p99)
            first = _named(model) if stage == STAGES[0] else (Text(), Text())
            table.add_row(*first, stage, rate(found.per_s), *map(seconds, times))
    return table


def _drift(models: list[ModelFigures]) -> Table:
    table = _table("model", "version", "drift")
    for name in ("images", "windows", *(word for one in STATISTICS for word in (one, "at most"))):
        table.add_column(name, justify="right")
    for model in models:
        if (drift := model.drift) is None:
            table.add_row(*_named(model), Text("not watched", "dim"))
            continue
        found = [drift.scores[one] for one in STATISTICS]
        if not drift.windows:
            state = Text("filling")
        else:
            drifted = any(one.alarm for one in found)
            state = Text("drifted", "bold red") if drifted else Text("usual", "green")
        scores = [
            Text("-" if one.score is None else f"{one.score:.3g}", "bold red" if one.alarm else "")
            for one in found
        ]
        limits = [f"{one.threshold:.3g}" for one in found]
        pairs = (cell for pair in zip(scores, limits, strict=True) for cell in pair)
        table.add_row(*_named(model), state, f"{drift.examples:,}", f"{drift.windows:,}", *pairs)
    return table


def _errors(figures: Figures) -> Table:
    table = _table("errors")
    for name in ("/s", "since the start"):
        table.add_column(name, justify="right")
    for error in figures.errors:
        style = "bold red" if error.per_s else ""
        table.add_row(_text(error.kind), Text(rate(error.per_s), style), f"{error.total:,}")
    return table


def _table(*names: str) -> Table:
    table = Table(header_style="bold", box=None, pad_edge=False)
    for name in names:
        table.add_column(name, overflow="fold")
    return table


def _named(model: ModelFigures) -> tuple[Text, Text]:
    return _text(model.model), _text(model.version)


def _text(value: Any) -> Text:
    return Text(_printable(str(value)))


def _printable(words: str) -> str:
    """Return words that cannot steer a terminal, whoever said them."""
    return "".join(sign if sign.isprintable() else "?" for sign in words)
