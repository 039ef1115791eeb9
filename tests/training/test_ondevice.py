"""On-device transfer: the same network, the same gradients, less memory; and the meter that says so."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reskit.errors import ModelError
from reskit.models import create_model
from reskit.nn.lean import FrozenNorm, ShiftNormReLU6
from reskit.training.memory import measure_training_memory
from reskit.training.ondevice import make_lean, plain_blocks, restore_lean, split_blocks

FLOAT = 4  # bytes


def network() -> nn.Module:
    """A small MobileNetV2 whose norms know the statistics of its maps and are not the identity."""
    torch.manual_seed(0)
    model = create_model("mobilenet_v2", num_classes=3, width_factor=0.35, dropout=0.0)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
        nn.init.uniform_(norm.weight, 0.8, 1.5)
        nn.init.normal_(norm.bias, std=0.2)
    with torch.no_grad():
        model.train()(torch.randn(8, 3, 64, 64))
    for norm in norms:
        norm.momentum = 0.1
    return model


@pytest.fixture
def images() -> Tensor:
    return torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def loss_of(model: nn.Module, images: Tensor) -> Tensor:
    return F.cross_entropy(model(images), torch.arange(len(images)) % 3)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def inner_norms(model: nn.Module) -> Iterator[str]:
    """Names of the norms that a rectifier follows in the last two blocks and the layer after them."""
    yield from ("features.16.conv.0.1", "features.16.conv.1.1", "features.17.conv.0.1")
    yield from ("features.17.conv.1.1", "features.18.1")


def test_lean_network_has_the_same_state_and_the_same_output(images: Tensor) -> None:
    model = network()
    original = copy.deepcopy(model)
    assert make_lean(model, 2) is model
    assert [(k, v.shape) for k, v in model.state_dict().items()] == [
        (k, v.shape) for k, v in original.state_dict().items()
    ]
    for evaluated in (model, restore_lean(copy.deepcopy(model))):
        torch.testing.assert_close(evaluated.eval()(images), original.eval()(images), rtol=1e-4, atol=1e-5)
    original.load_state_dict(model.state_dict())


def test_restored_network_is_the_ordinary_one(images: Tensor) -> None:
    model = network()
    original = copy.deepcopy(model)
    parameters = list(model.parameters())
    restore_lean(make_lean(model, 3))
    assert str(model) == str(original)
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert all(parameter.requires_grad for parameter in model.parameters())
    results = []
    for net in (model, original):
        loss_of(net.train(), images).backward()
        results.append((gradients(net), net.state_dict()))
    torch.testing.assert_close(*results)


def test_gradients_are_those_of_plain_layers_with_frozen_inner_norms(images: Tensor) -> None:
    lean, plain = make_lean(network(), 2), plain_blocks(network(), 2)
    lean.train()
    plain.train()
    for name in inner_norms(plain):
        plain.get_submodule(name).eval()
    for net in (lean, plain):
        loss_of(net, images).backward()
    ours, theirs = gradients(lean), gradients(plain)
    scales = {f"{name}.weight" for name in inner_norms(plain)}
    assert set(theirs) - set(ours) == scales
    for name, gradient in ours.items():
        assert gradient.abs().max() > 1e-4, name
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("convert", [make_lean, plain_blocks])
def test_only_what_should_changes(convert: Callable[..., nn.Module], images: Tensor) -> None:
    model = convert(network(), 2)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    model.train()
    for _ in range(2):
        loss_of(model, images).backward()
        optimizer.step()
        optimizer.zero_grad()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    trained = {name for name in before if name.startswith(("features.16", "features.17", "features.18"))}
    expected = trained | {"classifier.1.weight", "classifier.1.bias"}
    if convert is make_lean:
        fixed = ("weight", "running_mean", "running_var", "num_batches_tracked")
        expected -= {f"{name}.{part}" for name in inner_norms(model) for part in fixed}
    else:  # a shift before a convolution and a norm by the batch's mean is taken off again: no gradient
        expected -= {"features.16.conv.3.bias"}
        changed -= {"features.16.conv.3.bias"}
    assert changed == expected


def test_norms_sleep_where_they_should_in_training_mode() -> None:
    model = make_lean(network(), 2).train()
    norms = {name: m for name, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    awake = {name for name, norm in norms.items() if norm.training}
    assert awake == {"features.16.conv.3", "features.17.conv.3"}
    assert {name for name, norm in norms.items() if isinstance(norm, ShiftNormReLU6)} == set(
        inner_norms(model)
    )


def test_lean_keeps_at_most_055_of_plain(images: Tensor) -> None:
    measured = {}
    for convert in (make_lean, plain_blocks):
        model = convert(network(), 5).train()

        def step(model: nn.Module = model) -> None:
            loss_of(model, images).backward()
            model.zero_grad()

        step()
        measured[convert] = measure_training_memory(step, held=[*model.parameters(), *model.buffers()])
    lean, plain = measured[make_lean], measured[plain_blocks]
    assert lean.activation_bytes <= 0.55 * plain.activation_bytes
    assert lean.peak_bytes <= plain.peak_bytes
    below, _ = split_blocks(network(), 5)
    # Nothing from below the blocks is kept: the first thing saved is what enters them.
    entering = nn.Sequential(*below)(images)
    assert lean.saved[0].shape == tuple(entering.shape)


def test_bf16_and_channels_last_learn_as_float32_does(images: Tensor) -> None:
    losses = {}
    for dtype, layout in ((torch.float32, torch.contiguous_format), (torch.bfloat16, torch.channels_last)):
        model = make_lean(network(), 2).to(memory_format=layout).train()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=0.02, momentum=0.9)
        losses[dtype] = []
        for _ in range(6):
            with torch.autocast("cpu", dtype=dtype, enabled=dtype is torch.bfloat16):
                loss = loss_of(model, images.contiguous(memory_format=layout))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[dtype].append(loss.item())
    assert losses[torch.float32][-1] < 0.8 * losses[torch.float32][0]
    assert losses[torch.bfloat16] == pytest.approx(losses[torch.float32], rel=0.1, abs=0.05)


def test_a_copy_is_lean_too_and_independent(images: Tensor) -> None:
    model = make_lean(network(), 2)
    twin = copy.deepcopy(model).train()
    loss_of(twin, images).backward()
    assert gradients(twin)
    assert not gradients(model)
    assert any(isinstance(module, FrozenNorm) for module in twin.modules())


def test_all_blocks_may_train_and_no_more() -> None:
    below, above = split_blocks(network(), 17)
    assert (len(below), len(above)) == (1, 18)
    for blocks in (0, 18):
        with pytest.raises(ModelError, match=f"17 blocks: train between 1 and all of them, not {blocks}"):
            make_lean(network(), blocks)


@pytest.mark.parametrize("model", [nn.Linear(2, 2), create_model("cifar_resnet20")])
def test_networks_without_such_blocks_are_refused(model: nn.Module) -> None:
    with pytest.raises(ModelError, match="no inverted residual blocks"):
        make_lean(model)


UNIT = 1 << 20  # bytes


def floats(units: int) -> Tensor:
    return torch.empty(units * UNIT // FLOAT)


def test_memory_of_a_step_worked_out_by_hand() -> None:
    weight = torch.zeros(3 * UNIT // FLOAT, requires_grad=True)

    def step() -> None:
        # y = exp(w) is kept, its own derivative; the gradient of the sum is one number, expanded; that of w
        # is new. So 3 units are kept, and when both lie there 6 units are taken.
        weight.exp().sum().backward()
        weight.grad = None

    step()
    memory = measure_training_memory(step)
    assert memory.activation_bytes == 3 * UNIT
    assert 6 * UNIT <= memory.peak_bytes < 6 * UNIT + 4096


def test_memory_that_tensors_share_is_counted_once_and_at_its_whole_size() -> None:
    weight = torch.zeros(UNIT // FLOAT, requires_grad=True)

    def step() -> None:
        y = weight.exp()
        part = y[: len(y) // 2]
        (part * part).sum().backward()  # keeps y for exp, and half of it twice
        weight.grad = None

    step()
    saved = measure_training_memory(step).saved
    assert [(storage.shape, storage.bytes) for storage in saved] == [((UNIT // FLOAT,), UNIT)]


def test_peak_is_the_most_at_one_time() -> None:
    def step() -> None:
        for _ in range(2):
            first = floats(1)
            second = floats(3)
            del first
            third = floats(2)
            del second, third

    assert measure_training_memory(step).peak_bytes == 5 * UNIT


def test_parameters_are_no_activations() -> None:
    layer = nn.Linear(256, 256, bias=False)
    x = torch.randn(8, 256, requires_grad=True)

    def step() -> None:
        layer(x).sum().backward()
        x.grad = layer.weight.grad = None

    step()
    assert measure_training_memory(step, held=layer.parameters()).activation_bytes == x.numel() * FLOAT
    everything = (x.numel() + layer.weight.numel()) * FLOAT
    assert measure_training_memory(step).activation_bytes == everything
