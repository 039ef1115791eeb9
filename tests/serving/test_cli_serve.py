"""`reskit serve` parses and passes on; what is wrong is one line and exit code 1."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from served import Running

import reskit.serving
from reskit.cli import _serving
from reskit.errors import MissingExtraError


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `serve` was called with, instead of serving."""
    called: dict[str, Any] = {}
    monkeypatch.setattr(
        reskit.serving, "serve", lambda bundles, **more: called.update(bundles=bundles, **more)
    )
    return called


def test_options_become_settings(cli: Callable[..., Any], served: dict[str, Any]) -> None:
    words = ["--no-grpc", "--max-body", "2", "--timeout", "5", "--token-file", "t", "--engine", "latency"]
    assert cli("serve", "a=x/y", "z", "b=c=d", *words).code == 0
    assert served["bundles"] == [("a", "x/y"), (None, "z"), ("b=c", "d")]
    assert cli("serve", "s3://b/x?y=z", "c=gs://b/x=y").code == 0
    assert served["bundles"] == [(None, "s3://b/x?y=z"), ("c", "gs://b/x=y")]
    assert cli("serve", "a=x/y", *words).code == 0
    del served["bundles"], served["started"]
    settings = reskit.serving.Settings.of(served)
    assert settings == reskit.serving.Settings(
        grpc_port=None, max_body_mib=2, timeout_s=5, token_file=Path("t"), engine="latency"
    )
    assert cli("serve", "z").code == 0
    del served["bundles"], served["started"]
    assert reskit.serving.Settings.of(served) == reskit.serving.Settings()


def test_the_start_is_told(cli: Callable[..., Any], shared: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reskit.serving, "serve", lambda bundles, started, **_: started(shared.server))
    plain = cli("serve", "x")
    assert plain.out == ""
    first, second = plain.err.splitlines()
    assert first.startswith(f"serving: rest {shared.server.urls['rest']}, grpc {shared.server.urls['grpc']};")
    assert second.startswith("digits version 1: cifar_resnet8 by torch-fp32, threads ")
    opened = shared.server.settings.model_copy(update={"host": "0.0.0.0"})
    monkeypatch.setattr(shared.server, "settings", opened)
    assert "anyone who reaches this address may ask" in cli("serve", "x").err
    monkeypatch.setattr(shared.server, "settings", opened.model_copy(update={"token_file": Path("t")}))
    assert "anyone" not in cli("serve", "x").err
    monkeypatch.undo()
    monkeypatch.setattr(reskit.serving, "serve", lambda bundles, started, **_: started(shared.server))
    told = json.loads(cli("serve", "x", "--json").out)
    assert told["urls"] == shared.server.urls
    assert told["models"][0]["name"] == "digits"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "is not a bundle and holds none"),
        (["{bundle}", "--queue", "0"], "queue"),
        (["{bundle}", "--tls-cert", "x"], "TLS needs both"),
        (["{bundle}", "--token-file", "nowhere"], "cannot be read"),
        (["{bundle}", "--host", "192.0.2.1"], "cannot listen at 192.0.2.1"),
        (["{bundle}", "--port", "8123", "--grpc-port", "8123"], "cannot share port 8123"),
        (["={bundle}"], "has no name before the ="),
    ],
)
def test_what_is_wrong_is_one_line(
    cli: Callable[..., Any], bundle: Path, words: list[str], message: str
) -> None:
    ran = cli("serve", *(word.format(bundle=bundle) for word in words))
    assert (ran.code, ran.out) == (1, "")
    assert message in ran.err
    assert ran.err.count("\n") == 1


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib
    import sys

    for name in [name for name in sys.modules if name.startswith("reskit.serving")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tritonclient", None)
    monkeypatch.delitem(sys.modules, "tritonclient.grpc", raising=False)
    with pytest.raises(MissingExtraError, match=r"tritonclient is not installed: .*reskit\[serve\]"):
        importlib.import_module("reskit.serving")


def test_the_last_line_of_training_serves_what_was_trained(
    cli: Callable[..., Any], digits_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reskit.training.train", lambda recipe, **values: digits_run)
    says, _, command = cli("train", "digits-resnet8").out.splitlines()[-1].partition(": ")
    words = shlex.split(command)
    assert (says, words[1:]) == ("to serve it", ["serve", str(digits_run.bundle)])
    process = subprocess.Popen(
        [sys.executable, "-m", "reskit", *words[1:], "--port", "0", "--grpc-port", "0", "--json"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        told = iter(process.stdout.readline, "}\n")
        url = json.loads("".join(told) + "}")["urls"]["rest"]
        with urllib.request.urlopen(f"{url}/v2/health/ready") as reply:
            assert reply.status == 200
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 0


def test_without_the_extra_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reskit.cli.find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "reskit"), "train"])
    assert _serving(Path("my runs/bundle")) == (
        f"{tmp_path}/pip install 'reskit[serve]' && {tmp_path}/reskit serve 'my runs/bundle'"
    )
