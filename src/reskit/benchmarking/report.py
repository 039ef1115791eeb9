"""What a bench found: rows, and how they are written down."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from reskit.benchmarking.peak import Peak
from reskit.benchmarking.peers import PEERS
from reskit.benchmarking.roofline import LayerTime
from reskit.files import to_json, write_text
from reskit.optimization.candidates import Skipped

__all__ = ["BenchReport", "Row"]

_HOW = (
    "Each row ran in a process of its own; the processes took turns. Latency is the median of single calls;"
    " images a second are the median over the rounds. The part of the peak counts the multiply-adds of"
    " convolutions and matrix products twice and holds them against what this machine reached in the row's"
    " precision. Peers get float32 tensors that are ready; reskit's rows get uint8 pixels and normalise them."
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One contender at one batch size.

    Attributes:
        name: such as ``torchvision/eager`` or ``reskit/openvino-int8``.
        batch: images a call.
        precision: what it computed in.
        streams: calls, or parts of a call, worked on at once.
        latency_ms: median milliseconds of a call.
        p95_ms: 95 of 100 calls took no longer.
        images_per_s: median over the rounds.
        images_per_s_by_round: round by round, for ratios.
        gflops: G operations a second.
        peak_fraction: of the machine's peak in that precision; None where none was measured.
    """

    name: str
    batch: int
    precision: str
    streams: int
    latency_ms: float
    p95_ms: float
    images_per_s: float
    images_per_s_by_round: tuple[float, ...]
    gflops: float
    peak_fraction: float | None


@dataclass(frozen=True, kw_only=True)
class BenchReport:
    """The outcome of `bench`.

    Attributes:
        target: what was asked for.
        model: name of the network.
        input_shape: ``(C, H, W)``.
        macs: multiply-adds of an image.
        threads: processors used by reskit's rows.
        rounds: turns of each contender.
        peak: what the machine can do.
        rows: by batch size, the fastest first.
        skipped: who did not take part, and why.
        layers: times of single layers, where asked for.
        machine: what was measured on.
        versions: of the libraries.
    """

    target: str
    model: str
    input_shape: tuple[int, int, int]
    macs: int
    threads: int
    rounds: int
    peak: Peak
    rows: tuple[Row, ...]
    skipped: tuple[Skipped, ...]
    layers: tuple[LayerTime, ...]
    machine: Mapping[str, Any]
    versions: Mapping[str, str]

    def row(self, name: str, batch: int) -> Row:
        """Return a row.

        Raises:
            KeyError: it was not measured.
        """
        found = [row for row in self.rows if (row.name, row.batch) == (name, batch)]
        if not found:
            raise KeyError(f"{name} at batch {batch}")
        return found[0]

    def ratio(self, name: str, other: str, batch: int) -> dict[str, float]:
        """Return how many times the images a second of another one makes: median, least, most of the rounds.

        Raises:
            KeyError: one of them was not measured.
        """
        pairs = zip(
            self.row(name, batch).images_per_s_by_round,
            self.row(other, batch).images_per_s_by_round,
            strict=True,
        )
        ratios = [a / b for a, b in pairs]
        return {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)

    def markdown(self) -> str:
        """Return the report as a page."""
        _, height, width = self.input_shape
        lines = [
            f"# {self.model}, {height} x {width} pixels",
            "",
            f"{self.macs / 1e6:,.0f} million multiply-adds an image, on {self.machine['processor']}"
            f" ({self.machine['cores']} processors).",
            "",
            "## Peak",
            "",
            *_markdown(_peak_cells(self.peak)),
        ]
        for batch in dict.fromkeys(row.batch for row in self.rows):
            rows = [row for row in self.rows if row.batch == batch]
            lines += ["", f"## Batch {batch}", "", *_markdown(map(_cells, rows))]
        lines += ["", f"{_HOW} {self.rounds} rounds."]
        peers = [name for name in dict.fromkeys(row.name for row in self.rows) if name in PEERS]
        if peers:
            lines += ["", "Peers are set up so:", "", *(f"- {name}: {PEERS[name].setting}" for name in peers)]
        if self.layers:
            lines += ["", "## Layers", "", *_markdown(map(_layer_cells, self.layers))]
        if self.skipped:
            lines += ["", "## Left out", "", *(f"- {item.name}: {item.reason}" for item in self.skipped)]
        return "\n".join([*lines, ""])

    def write(self, folder: Path) -> dict[str, Path]:
        """Write page, figures and pictures into a folder; return the files by name.

        Raises:
            OutputError: the file system refuses.
        """
        from reskit.plots.bench import roofline, speeds

        files = {"report": folder / "bench.md", "figures": folder / "bench.json"}
        write_text(files["report"], self.markdown())
        write_text(files["figures"], to_json(self.as_dict()))
        title = f"{self.model}, {self.input_shape[1]} x {self.input_shape[2]} pixels"
        if self.rows:
            rows = [asdict(row) for row in self.rows]
            files["speeds"] = speeds(rows, folder / "bench.png", title=title)
        if self.layers:
            layers = [asdict(layer) for layer in self.layers]
            files["roofline"] = roofline(
                layers,
                folder / "roofline.png",
                gflops=self.peak.gflops,
                copy_gb_s=self.peak.copy_gb_s,
                title=title,
            )
        return files

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Show it on a terminal."""
        yield _table("peak of this machine", _peak_cells(self.peak))
        for batch in dict.fromkeys(row.batch for row in self.rows):
            yield ""
            yield _table(f"batch {batch}", [_cells(row) for row in self.rows if row.batch == batch])
        for item in self.skipped:
            yield Text(f"{item.name} was left out: {item.reason}", style="dim")


def _peak_cells(peak: Peak) -> list[dict[str, str]]:
    cells = [
        {"precision": name, "reached": f"{rate:,.0f} G op/s", "by": peak.by[name]}
        for name, rate in peak.gflops.items()
    ]
    if peak.copy_gb_s is not None:
        cells.append(
            {"precision": "memory", "reached": f"{peak.copy_gb_s:.1f} GB/s copied", "by": peak.by["copy"]}
        )
    return cells


def _cells(row: Row) -> dict[str, str]:
    return {
        "": row.name,
        "precision": row.precision,
        "latency ms": f"{row.latency_ms:.2f}",
        "p95 ms": f"{row.p95_ms:.2f}",
        "images/s": f"{row.images_per_s:,.1f}",
        "of peak": "" if row.peak_fraction is None else f"{row.peak_fraction:.0%}",
    }


def _layer_cells(layer: LayerTime) -> dict[str, str]:
    counted = layer.gflops > 0
    return {
        "layer": layer.name,
        "runs on": layer.engine,
        "ms": f"{layer.ms:.3f}",
        "G op/s": f"{layer.gflops:,.1f}" if counted else "",
        "op/byte": f"{layer.intensity:.1f}" if counted else "",
        "of roof": "" if layer.roof_fraction is None else f"{layer.roof_fraction:.0%}",
    }


_WORDS = {"", "precision", "by", "layer", "runs on"}


def _markdown(rows: Iterable[Mapping[str, str]]) -> list[str]:
    """Return a table in Markdown; figures to the right."""
    rows = list(rows)
    if not rows:
        return []
    columns = list(rows[0])
    rules = ["---" if name in _WORDS else "---:" for name in columns]
    body = [list(row.values()) for row in rows]
    return [f"| {' | '.join(cells)} |" for cells in (columns, rules, *body)]


def _table(title: str, rows: Sequence[Mapping[str, str]]) -> Table:
    """Return a table for the terminal; figures to the right."""
    table = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for name in rows[0] if rows else ():
        table.add_column(name, justify="left" if name in _WORDS else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row.values())
    return table
