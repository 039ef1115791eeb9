"""Lean layers: the figures of the ordinary ones, with little kept for the backward pass."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reskit.errors import ModelError
from reskit.nn.lean import (
    FrozenNorm,
    PackedHardSwish,
    PackedReLU6,
    ShiftNorm,
    ShiftNormHardSwish,
    ShiftNormReLU6,
    freeze_norms,
    memory_order,
    pack_mask,
    unfreeze_norms,
    unpack_mask,
)

NORMS: dict[int, type[nn.modules.batchnorm._BatchNorm]] = {
    2: nn.BatchNorm1d,
    3: nn.BatchNorm1d,
    4: nn.BatchNorm2d,
    5: nn.BatchNorm3d,
}


def used_norm(dims: int, channels: int = 5, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A norm in evaluation mode that is not the identity: as if it had been trained."""
    norm = NORMS[dims](channels)
    with torch.no_grad():
        for tensor in (norm.weight, norm.running_var):
            tensor.uniform_(0.5, 2)
        for tensor in (norm.bias, norm.running_mean):
            tensor.normal_()
    return norm.to(dtype).eval()


def inputs(dims: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn((3, 5, 4, 3, 2)[:dims], dtype=dtype).mul_(3).requires_grad_()


def saved_bytes(call: Callable[[], Tensor]) -> list[int]:
    sizes = []

    def keep(tensor: Tensor) -> Tensor:
        sizes.append(tensor.untyped_storage().nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        call()
    return sizes


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("size", [(0, 4), (), (1,), (7,), (8,), (9,), (3, 5, 7), (2, 16, 3, 3)])
def test_a_mask_comes_back_from_an_eighth_of_its_bytes(size: tuple[int, ...]) -> None:
    mask = torch.rand(size) > 0.5
    packed = pack_mask(mask)
    assert packed.dtype == torch.uint8
    assert packed.numel() == (mask.numel() + 7) // 8
    assert torch.equal(unpack_mask(packed, size), mask)


def test_a_mask_comes_back_in_its_layout() -> None:
    mask = (torch.rand(2, 6, 5, 3) > 0.5).to(memory_format=torch.channels_last)
    back = unpack_mask(pack_mask(mask), mask.shape, memory_order(mask))
    assert torch.equal(back, mask)
    assert back.stride() == mask.stride()
    assert torch.equal(unpack_mask(pack_mask(mask[:, ::2]), (2, 3, 5, 3), memory_order(mask)), mask[:, ::2])


def test_packed_relu6_is_relu6_at_its_corners_too() -> None:
    x = torch.tensor([-1.0, 0.0, 1e-30, 3.0, 5.9999995, 6.0, 7.0, -0.0, torch.inf])
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y = PackedReLU6()(ours)
    assert torch.equal(y, F.relu6(theirs))
    weights = torch.arange(1.0, 10.0)
    (y * weights).sum().backward()
    (F.relu6(theirs) * weights).sum().backward()
    assert torch.equal(ours.grad, theirs.grad)


def test_packed_hard_swish_is_exact_forward_and_a_step_backward() -> None:
    x = torch.linspace(-5, 5, 23).requires_grad_()
    y = PackedHardSwish()(x)
    torch.testing.assert_close(y, F.hardswish(x), rtol=0, atol=0)
    y.sum().backward()
    assert torch.equal(x.grad, (x > 0).float())


@pytest.mark.parametrize("dims", NORMS)
def test_shift_norm_is_the_norm_in_evaluation_mode(dims: int) -> None:
    norm = used_norm(dims)
    lean = ShiftNorm(copy.deepcopy(norm)).train()
    ours = inputs(dims)
    theirs = ours.detach().clone().requires_grad_()
    y, expected = lean(ours), norm(theirs)
    assert torch.equal(y, expected)
    gradient = torch.randn_like(y)
    y.backward(gradient)
    expected.backward(gradient)
    torch.testing.assert_close(ours.grad, theirs.grad)
    torch.testing.assert_close(lean.bias.grad, norm.bias.grad)
    assert lean.weight.grad is None


@pytest.mark.parametrize("dims", NORMS)
@pytest.mark.parametrize("kind", [ShiftNorm, ShiftNormReLU6])
def test_gradients_of_lean_norms_are_exact(kind: type[ShiftNorm], dims: int) -> None:
    lean = kind(used_norm(dims, dtype=torch.float64))

    def call(x: Tensor, bias: Tensor) -> Tensor:
        return torch.func.functional_call(lean, {"bias": bias}, (x,))

    assert torch.autograd.gradcheck(call, (inputs(dims, torch.float64), lean.bias.detach().requires_grad_()))


def test_gradient_of_packed_relu6_is_exact() -> None:
    assert torch.autograd.gradcheck(PackedReLU6(), inputs(4, torch.float64))


@pytest.mark.parametrize(
    ("kind", "activation"), [(ShiftNormReLU6, PackedReLU6), (ShiftNormHardSwish, PackedHardSwish)]
)
def test_fused_is_one_after_the_other(kind: type[ShiftNorm], activation: type[nn.Module]) -> None:
    norm, x = used_norm(4), inputs(4)
    fused, apart = kind(copy.deepcopy(norm)), nn.Sequential(ShiftNorm(norm), activation())
    gradients = []
    for module in (fused, apart):
        leaf = x.detach().clone().requires_grad_()
        y = module(leaf)
        with torch.no_grad():
            assert torch.equal(module(leaf), y)  # the way without gradients
        y.square().sum().backward()
        gradients.append((leaf.grad, *(p.grad for p in module.parameters() if p.requires_grad)))
    torch.testing.assert_close(*gradients)


def test_what_is_kept_is_a_factor_a_channel_and_a_bit_an_element() -> None:
    norm, x = used_norm(4), torch.randn(2, 5, 8, 9, requires_grad=True)
    assert saved_bytes(lambda: ShiftNorm(norm)(x)) == [5 * 4]
    assert saved_bytes(lambda: ShiftNormReLU6(norm)(x)) == [5 * 4, x.numel() // 8]
    assert saved_bytes(lambda: PackedReLU6()(x)) == [x.numel() // 8]
    assert sum(saved_bytes(lambda: F.relu6(norm(x)))) > 2 * x.numel() * 4  # the ordinary pair


@pytest.mark.parametrize("kind", [ShiftNorm, ShiftNormReLU6, ShiftNormHardSwish])
def test_bf16_and_channels_last(kind: type[ShiftNorm]) -> None:
    lean = kind(used_norm(4))
    x = inputs(4).detach().contiguous(memory_format=torch.channels_last)
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        leaf = x.to(dtype, copy=True).detach().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            y = lean(leaf)
        assert y.dtype == dtype
        assert y.is_contiguous(memory_format=torch.channels_last)
        lean.bias.grad = None
        y.sum().backward()
        assert leaf.grad.dtype == dtype
        results.append((y.detach().float(), leaf.grad.float(), lean.bias.grad))
    torch.testing.assert_close(*results, rtol=0.02, atol=0.05)


def test_a_frozen_norm_sleeps_on_and_is_the_same_state() -> None:
    norm = used_norm(4)
    frozen = FrozenNorm(norm)
    before = copy.deepcopy(norm.state_dict())
    x = inputs(4)
    assert torch.equal(nn.Sequential(frozen).train()[0](x), norm(x))
    assert not frozen.training
    assert list(frozen.state_dict()) == list(before)
    for name, value in frozen.state_dict().items():
        assert torch.equal(value, before[name])
    back = frozen.plain()
    assert type(back) is nn.BatchNorm2d
    assert back.weight is norm.weight
    assert back.running_mean is norm.running_mean
    assert (back.eps, back.momentum) == (norm.eps, norm.momentum)


@pytest.mark.parametrize("affine", [True, False])
def test_working_in_place_gives_the_same_and_only_without_gradients(affine: bool) -> None:
    norm = used_norm(4) if affine else nn.BatchNorm2d(5, affine=False).eval()
    frozen = FrozenNorm(norm, inplace=True).requires_grad_(False)
    x = inputs(4).detach()
    expected = norm(x)
    y = frozen(x.clone())
    torch.testing.assert_close(y, expected)
    overwritten, kept = x.clone(), x.clone().requires_grad_()
    assert frozen(overwritten).data_ptr() == overwritten.data_ptr()
    frozen(kept).sum().backward()
    assert torch.equal(kept, x)
    assert frozen(x.bfloat16()).dtype == torch.bfloat16


def test_freeze_norms_changes_norms_only_and_is_undone() -> None:
    net = nn.Sequential(nn.Conv2d(3, 5, 3), used_norm(4), nn.ReLU(), nn.Sequential(used_norm(4))).train()
    original, x = copy.deepcopy(net), torch.randn(4, 3, 6, 6)
    freeze_norms(net)
    net.train()
    assert torch.equal(net(x), original.eval()(x))
    net(x).sum().backward()
    assert {name for name, p in net.named_parameters() if p.grad is not None} == {"0.weight", "0.bias"}
    assert list(net.state_dict()) == list(original.state_dict())
    for name, value in net.state_dict().items():
        assert torch.equal(value, original.state_dict()[name])
    unfreeze_norms(net)
    assert str(net) == str(original)
    assert net[1].training
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_freeze_norms_can_leave_scale_and_shift_trainable() -> None:
    net = nn.Sequential(nn.Conv2d(3, 5, 3), used_norm(4))
    freeze_norms(net, affine=False)
    net.train()(torch.randn(2, 3, 6, 6)).square().sum().backward()
    assert net[1].weight.grad is not None
    assert net[1].bias.grad is not None


def test_norms_that_cannot_be_frozen_are_refused() -> None:
    with pytest.raises(ModelError, match="running statistics"):
        FrozenNorm(nn.BatchNorm2d(3, track_running_stats=False))
    with pytest.raises(ModelError, match="no shift"):
        ShiftNorm(nn.BatchNorm2d(3, affine=False))
