"""What a search shows while it goes, and the table at its end."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from reskit.backends.plan import Plan

__all__ = ["Watch", "choices_table", "engines_table"]


class Watch:
    """A progress bar on a terminal, and what was said above it; elsewhere lines only.

    Args:
        console: where to print; standard error unless given.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._task = self._bar.add_task("", total=1.0)

    def say(self, text: str) -> None:
        """Print a line."""
        self.console.print(text, soft_wrap=True, markup=False)

    def step(self, title: str, part: float) -> None:
        """Show what is done next, and which part of all is behind."""
        self._bar.update(self._task, description=title, completed=part)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()


def engines_table(plan: Plan) -> Table:
    """Return what was measured as a table for the terminal, the fastest first."""
    guard = plan.guard
    table = Table(
        header_style="bold",
        box=None,
        pad_edge=False,
        caption=f"ms are medians and 95th percentiles; {guard.metric} over {guard.examples:,} examples"
        f" ({guard.on}), float32: {guard.float32:.4f}; * beaten by no other in all respects",
        caption_justify="left",
    )
    table.add_column("engine", no_wrap=True)
    table.add_column("threads", no_wrap=True)
    for figures in plan.engines[0].batches:
        table.add_column(f"ms, batch {figures.batch}", justify="right")
    for name in ("examples/s", "MiB", "file", guard.metric.split()[0]):
        table.add_column(name, justify="right", no_wrap=True)
    for engine in sorted(plan.engines, key=lambda engine: engine.latency_ms):
        table.add_row(
            f"{'*' if engine.pareto else ' '} {engine.name}",
            f"{engine.threads}" + (f", {engine.streams} streams" if engine.streams > 1 else ""),
            *(f"{_short(figures.p50_ms)} {_short(figures.p95_ms)}" for figures in engine.batches),
            f"{engine.images_per_s:,.0f}",
            f"{engine.memory_mib:,.0f}",
            f"{engine.file_mib:.1f}",
            f"{engine.metric:.4f}",
        )
    return table


def choices_table(plan: Plan) -> Table:
    """Return which engine was chosen for which goal, and its gain over float32 eager where that was timed."""
    eager = next((e for e in plan.engines if e.name == "torch-fp32"), None)
    table = Table(box=None, show_header=False, pad_edge=False)
    for goal in plan.chosen:
        engine = plan.engine(goal)
        figure = {
            "latency": f"{_short(engine.latency_ms)} ms",
            "throughput": f"{engine.images_per_s:,.0f} examples/s",
            "memory": f"{engine.memory_mib:,.0f} MiB",
            "size": f"{engine.file_mib:.1f} MiB",
        }[goal]
        gain = ""
        if eager is not None and goal in ("latency", "throughput"):
            ratio = {
                "latency": eager.latency_ms / engine.latency_ms,
                "throughput": engine.images_per_s / eager.images_per_s,
            }[goal]
            gain = f"x{ratio:.2f} of eager float32"
        table.add_row(f"for {goal}", engine.name, figure, gain, style="bold" if goal == plan.goal else None)
    return table


def _short(milliseconds: float) -> str:
    return f"{milliseconds:.2f}" if milliseconds < 10 else f"{milliseconds:.1f}"
