"""The fastest way to run is measured, and never at the price of another loss."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from reskit.config import RuntimeConfig
from reskit.errors import ConfigError
from reskit.training.runtime import Runtime, Step, choose_runtime, clone_for_trial, keep_freed_memory

CPU = torch.device("cpu")


class Clock:
    """Stands for the `time` module: it runs only when a step says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("reskit.training.runtime.time", clock)
    return clock


Table = dict[str, float]
Choose = Callable[..., tuple[str, list[str]]]


@pytest.fixture
def choose(clock: Clock) -> Choose:
    """Choose among candidates that take and lose what the table says; names are ``precision layout``."""

    def run(config: RuntimeConfig, milliseconds: Table, losses: Table) -> tuple[str, list[str]]:
        made: list[str] = []

        def make_step(runtime: Runtime) -> Step:
            name = f"{runtime.precision} {runtime.layout}"
            made.append(name)

            def step() -> Tensor:
                clock.now += milliseconds.get(name, 12) / 1000
                return torch.tensor(losses.get(name, 2.0))

            return step

        chosen, _ = choose_runtime(config, device=CPU, make_step=make_step, batch_size=8)
        return f"{chosen.precision} {chosen.layout}", made

    return run


def test_the_fastest_is_taken(choose: Choose) -> None:
    chosen, made = choose(RuntimeConfig(), {"bf16 channels_last": 4}, {})
    assert chosen == "bf16 channels_last"
    assert made == ["fp32 nchw", "fp32 channels_last", "bf16 nchw", "bf16 channels_last"]


@pytest.mark.parametrize("loss", [2.5, float("nan"), float("inf")])
def test_the_fastest_is_left_if_it_trains_otherwise(choose: Choose, loss: float) -> None:
    milliseconds = {"bf16 channels_last": 3, "bf16 nchw": 6}
    assert choose(RuntimeConfig(), milliseconds, {"bf16 channels_last": loss})[0] == "bf16 nchw"


def test_a_small_gain_is_not_worth_leaving_float32(choose: Choose) -> None:
    assert choose(RuntimeConfig(), dict.fromkeys(["bf16 nchw"], 11.8), {})[0] == "fp32 nchw"


def test_without_any_usable_loss_training_itself_will_say_so(choose: Choose) -> None:
    nan = dict.fromkeys(["fp32 nchw", "fp32 channels_last", "bf16 nchw", "bf16 channels_last"], float("nan"))
    assert choose(RuntimeConfig(), {"bf16 nchw": 1}, nan)[0] == "fp32 nchw"


def test_what_the_recipe_fixes_is_not_measured(choose: Choose) -> None:
    assert choose(RuntimeConfig(precision="bf16"), {"bf16 nchw": 3}, {}) == (
        "bf16 nchw",
        ["bf16 nchw", "bf16 channels_last"],
    )
    assert choose(RuntimeConfig(precision="fp32", layout="channels_last"), {}, {}) == (
        "fp32 channels_last",
        [],
    )


def test_fp16_needs_a_gpu(choose: Choose) -> None:
    with pytest.raises(ConfigError, match="fp16 needs a GPU; on a CPU use bf16"):
        choose(RuntimeConfig(precision="fp16"), {}, {})


def test_measuring_leaves_network_and_generator_as_they_were() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.5))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()

    def make_step(runtime: Runtime) -> Step:
        trial = clone_for_trial(model, runtime)
        optimizer = torch.optim.SGD(trial.parameters(), lr=0.1)

        def step() -> Tensor:
            loss = trial(torch.randn(2, 1, 5, 5)).square().mean()
            loss.backward()
            optimizer.step()
            return loss.detach()

        return step

    choose_runtime(RuntimeConfig(), device=CPU, make_step=make_step, batch_size=2)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


def test_autocast_and_layout_are_those_named() -> None:
    runtime = Runtime(device="cpu", precision="bf16", layout="channels_last")
    model = runtime.place(nn.Conv2d(3, 4, 3))
    with runtime.autocast():
        out = model(torch.zeros(1, 3, 8, 8).contiguous(memory_format=runtime.memory_format))
    assert out.dtype == torch.bfloat16
    assert model.weight.is_contiguous(memory_format=torch.channels_last)
    with Runtime(device="cpu").autocast():
        assert nn.Conv2d(3, 4, 3)(torch.zeros(1, 3, 8, 8)).dtype == torch.float32


def test_the_allocator_hint_is_taken_or_declined_quietly() -> None:
    assert keep_freed_memory() in (True, False)
