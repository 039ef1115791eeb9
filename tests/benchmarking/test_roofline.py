from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import reskit
from reskit.backends.servable import servable
from reskit.benchmarking.peak import Peak
from reskit.benchmarking.roofline import LayerTime, _work, layers_of_eager, layers_of_openvino

PEAK = Peak(threads=1, gflops={"fp32": 50.0, "int8": 400.0}, copy_gb_s=2.0, by={})
REST = "all else"


@pytest.fixture(scope="module")
def bundle(digits_run: Any) -> reskit.Bundle:
    return reskit.load(digits_run.bundle)


def weighted(bundle: reskit.Bundle) -> list[str]:
    modules = servable(bundle).named_modules()
    return [name for name, m in modules if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]


def check(layers: list[LayerTime], bundle: reskit.Bundle, batch: int) -> None:
    assert {layer.name for layer in layers} == {*weighted(bundle), REST}
    assert layers[-1].name == REST
    assert layers[-1].roof_fraction is None
    work = _work(bundle)
    for layer in layers[:-1]:
        assert layer.ms > 0
        assert layer.gflops == pytest.approx(batch * work[layer.name].operations / layer.ms / 1e6)
        roof = min(PEAK.gflops[layer.precision], layer.intensity * 2.0)
        assert layer.roof_fraction == pytest.approx(layer.gflops / roof)


def test_work_is_that_of_the_network(bundle: reskit.Bundle) -> None:
    work = _work(bundle)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        servable(bundle)(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
    assert sum(layer.operations for layer in work.values()) == counter.get_total_flops()
    first = bundle.model.conv1  # 1 channel in, 8 x 8 both sides
    assert work["model.conv1"].values == 64 + 64 * first.out_channels
    assert work["model.conv1"].weights == first.weight.numel()


def test_layers_in_pytorch(bundle: reskit.Bundle) -> None:
    layers = layers_of_eager(bundle, batch=4, threads=1, peak=PEAK)
    check(layers, bundle, 4)
    assert {layer.precision for layer in layers} == {"fp32"}
    conv = layers[0]
    work = _work(bundle)[conv.name]
    assert conv.intensity == pytest.approx(4 * work.operations / (4 * (4 * work.values + work.weights)))


def test_layers_in_openvino(bundle: reskit.Bundle, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    from reskit.backends import BACKENDS
    from reskit.backends.writing import write_checked

    path = tmp_path / "digits.xml"
    write_checked(bundle, BACKENDS.get("openvino"), "fp32", path)
    layers = layers_of_openvino(bundle, path, precision="fp32", batch=2, threads=1, peak=PEAK)
    check(layers, bundle, 2)
    assert {layer.engine for layer in layers} == {"openvino-fp32"}
