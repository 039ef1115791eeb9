"""What the service counts is what happened, in a form Prometheus reads."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from served import Running, png


def read(server: Running) -> dict[tuple[str, ...], float]:
    """Return the samples by name and values of their labels, sorted by label."""
    text = server.get("/metrics").body.decode()
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def asked(running: Callable[..., Running], bundle: Path, images: np.ndarray) -> Running:
    server = running([("digits", bundle)])
    for count in (1, 1, 3):
        assert server.infer(images[:count]).status == 200
    assert server.infer(images[:1, :, :4]).status == 400
    assert server.post("/v1/predict", png(images[0])).status == 200
    assert server.post("/v2/models/nobody/infer", {"inputs": []}).status == 400
    return server


def test_requests_examples_and_errors_are_counted(asked: Running) -> None:
    found = read(asked)
    assert found["reskit_requests_total", "digits", "answered", "rest", "1"] == 3
    assert found["reskit_requests_total", "digits", "bad_request", "rest", "1"] == 1
    assert found["reskit_requests_total", "digits", "answered", "predict", "1"] == 1
    assert found["reskit_examples_total", "digits", "1"] == 6
    assert found["reskit_errors_total", "bad_request"] == 2
    assert found["reskit_batch_size_count", "digits", "1"] == 4
    assert found["reskit_batch_size_bucket", "1.0", "digits", "1"] == 3
    for stage, count in {"queue": 4, "infer": 4, "total": 4, "preprocess": 1}.items():
        assert found["reskit_request_seconds_count", "digits", stage, "1"] == count
        assert 0 < found["reskit_request_seconds_sum", "digits", stage, "1"] < 5
    assert found["reskit_queue_depth", "digits", "1"] == 0
    assert found["reskit_model_ready", "digits", "1"] == 1
    assert found["reskit_model_info", "cifar_resnet8", "torch-fp32", "digits", "1"] == 1
    assert found["reskit_start_time_seconds",] > 1.7e9


def test_a_model_that_is_gone_is_not_reported(asked: Running) -> None:
    asked.post("/v2/repository/models/digits/unload")
    found = read(asked)
    assert ("reskit_model_ready", "digits", "1") not in found
    assert found["reskit_examples_total", "digits", "1"] == 6  # counters never fall


def test_promtool_has_nothing_to_say(asked: Running) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("needs promtool, of the Debian package prometheus")
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=asked.get("/metrics").body, capture_output=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
