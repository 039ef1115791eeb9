"""What every test may ask for."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

import pytest

if TYPE_CHECKING:
    from reskit.training import TrainResult

SHARED = Path(os.environ.get("RESKIT_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data and published weights; tests that need it skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the shared data folder, which is not at {SHARED}; set RESKIT_SHARED_DATA")
    return SHARED


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """Two epochs on the embedded digits, shared by all tests: read it, copy it, never write to it."""
    import reskit

    overrides = ["training.epochs=2", "runtime.precision=fp32", "runtime.layout=nchw"]
    return reskit.train("digits-resnet8", out=tmp_path_factory.mktemp("digits") / "run", overrides=overrides)


class Ran(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run `reskit` in this process, as the installed command does, with its streams kept apart."""
    from reskit.cli import main

    def run(*arguments: object, stdin: bytes = b"") -> Ran:
        monkeypatch.setattr(sys, "argv", ["reskit", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capfd.readouterr()
        code: object = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        if isinstance(code, str):  # as the interpreter does with such an exit
            print(code, file=sys.stderr)
        captured = capfd.readouterr()
        return Ran(code if isinstance(code, int) else 1, captured.out, captured.err)

    return run
