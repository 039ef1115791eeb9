"""The promises of models for those that take no images: tokens of a text, rows of a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from reskit.errors import ModelError
from reskit.models import MODELS, Backbone, create_model
from reskit.nn import Residual

TOKENS = 11
SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "words": ("text_resnet8", {"width": [8, 12, 12], "embedding": 6}),
    "one_stage": ("text_resnet8", {"depths": [2], "width": 8, "embedding": 8, "se": 4}),
    "characters": ("char_resnet9", {"depths": [1, 2], "width": 8, "shortcut": "D"}),
    "numbers": ("tabular_resnet", {"depth": 2, "width": 12}),
    "categories": ("tabular_resnet", {"depth": 2, "width": 12, "categories": [3, 40], "se": 4}),
    "categories_alone": ("tabular_resnet", {"depth": 1, "width": 12, "categories": [3, 4]}),
}
NUMBERS = {"numbers": 5, "categories": 5, "categories_alone": 0}


def build(small: str, **arguments: Any) -> Backbone:
    name, changes = SMALL[small]
    torch.manual_seed(0)
    channels = NUMBERS.get(small, TOKENS)
    return create_model(name, **{"num_classes": 5, "in_channels": channels, **changes, **arguments})


def inputs(small: str, batch: int = 3, length: int = 17) -> Tensor:
    generator = torch.Generator().manual_seed(batch)
    if small not in NUMBERS:
        return torch.randint(0, TOKENS, (batch, length), generator=generator)
    counts = SMALL[small][1].get("categories", ())
    codes = [torch.randint(0, count, (batch, 1), generator=generator).float() for count in counts]
    return torch.cat([torch.randn(batch, NUMBERS[small], generator=generator), *codes], 1)


def settled(small: str, **arguments: Any) -> Backbone:
    model = build(small, **arguments)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.momentum = 1.0
    with torch.no_grad():
        model(inputs(small, 32))
    return model.eval()


def residuals(model: nn.Module) -> list[Residual]:
    return [module for module in model.modules() if isinstance(module, Residual)]


def numbers(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_every_family_is_here() -> None:
    families = {MODELS.get(name).build for name in MODELS if MODELS.get(name).task in ("text", "tabular")}
    assert families == {MODELS.get(name).build for name, _ in SMALL.values()}


@pytest.mark.parametrize("small", SMALL)
def test_forward_and_finite_gradients(small: str) -> None:
    model = build(small)
    outputs = model(inputs(small, 8))
    assert outputs.shape == (8, 5)
    outputs.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("small", SMALL)
def test_features(small: str) -> None:
    model = settled(small, features_only=True)
    x = inputs(small, length=32)
    with torch.inference_mode():
        maps, pooled = model(x), model.pooled(x)
    sides = () if small in NUMBERS else (32,)
    expected = [
        (3, c, *(side // s for side in sides)) for c, s in zip(model.channels, model.strides, strict=True)
    ]
    assert [tuple(found.shape) for found in maps] == expected
    torch.testing.assert_close(pooled, maps[-1].amax(2) if sides else maps[-1])


@pytest.mark.parametrize("small", SMALL)
def test_safetensors_round_trip(small: str, tmp_path: Path) -> None:
    model = settled(small)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    torch.manual_seed(1)
    rebuilt = create_model(**model.architecture, weights=tmp_path / "model.safetensors").eval()
    assert load_file(tmp_path / "model.safetensors").keys() == rebuilt.state_dict().keys()
    with torch.inference_mode():
        assert torch.equal(rebuilt(inputs(small)), model(inputs(small)))


@pytest.mark.parametrize("small", SMALL)
def test_plain_twin_lacks_the_shortcuts_and_nothing_else(small: str) -> None:
    model, twin = build(small), build(small, residual=False)
    shortcuts = sum(numbers(m) for n, m in model.named_modules() if n.endswith("downsample"))
    assert numbers(model) - numbers(twin) == shortcuts
    assert all(block.plain for block in residuals(twin))
    own = {k: v for k, v in model.state_dict().items() if ".downsample." not in k}
    twin.load_state_dict(own, strict=True)
    assert not torch.equal(twin.eval()(inputs(small)), model.eval()(inputs(small)))


@pytest.mark.parametrize("small", SMALL)
def test_zero_init_starts_every_block_as_its_shortcut(small: str) -> None:
    model, seen = build(small, zero_init=True), []

    def check(block: nn.Module, given: tuple[Tensor], output: Tensor) -> None:
        assert isinstance(block, Residual)
        seen.append(torch.equal(output, block.activation(block.shortcut(given[0]).clone())))

    for block in residuals(model):
        block.register_forward_hook(check)
    model.eval()(inputs(small))
    assert seen
    assert all(seen)


@pytest.mark.parametrize("small", SMALL)
def test_export_with_dynamic_batch(small: str) -> None:
    model = settled(small)
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(model, (inputs(small, 2),), dynamic_shapes=({0: batch},)).module()
    for size in (1, 3):
        torch.testing.assert_close(exported(inputs(small, size)), model(inputs(small, size)))


@pytest.mark.parametrize("small", SMALL)
def test_bfloat16(small: str) -> None:
    model = settled(small)
    with torch.inference_mode():
        assert model(inputs(small)).std() > 1e-3
        with torch.autocast("cpu", torch.bfloat16):
            assert model(inputs(small)).isfinite().all()


@pytest.mark.parametrize("arguments", [{"depths": []}, {"width": [8]}, {"dropout": 1.0}, {"in_channels": 1}])
def test_bad_arguments_of_text(arguments: dict[str, Any]) -> None:
    with pytest.raises(ModelError):
        build("words", **arguments)


@pytest.mark.parametrize("arguments", [{"depth": 0}, {"width": 0}, {"categories": [0]}, {"in_channels": 0}])
def test_bad_arguments_of_tables(arguments: dict[str, Any]) -> None:
    with pytest.raises(ModelError):
        build("numbers", **arguments)


def test_what_lies_behind_the_end_alters_nothing_far_before_it() -> None:
    model = settled("one_stage", features_only=True, se=0)
    x = inputs("one_stage", length=40)
    padded = torch.cat([x, torch.zeros(3, 24, dtype=torch.int64)], 1)
    reach = 1 + 4  # of the first convolution and of two blocks of two
    with torch.inference_mode():
        torch.testing.assert_close(model(padded)[0][:, :, : 40 - reach], model(x)[0][:, :, : 40 - reach])


def test_training_takes_tokens_for_unknown_ones_and_evaluation_does_not() -> None:
    model = build("words", token_dropout=0.5, dropout=0.0)
    x = torch.full((4, 200), 7)
    seen = []
    model.embedding.table.register_forward_hook(lambda _module, given, _made: seen.append(given[0]))
    model.train()(x)
    model.eval()(x)
    dropped = float((seen[0] == 1).float().mean())
    assert 0.4 < dropped < 0.6
    assert torch.equal(seen[1], x)
