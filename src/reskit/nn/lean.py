"""Layers that keep little for the backward pass, for training where memory is short.

What a convolution needs to learn, its input, has to be kept. What a norm and a rectifier keep besides does
not: a norm whose scale and statistics stay fixed needs one number a channel, a rectifier one bit an element.

Source: Chiang et al., MobileTL: On-Device Transfer Learning with Inverted Residual Blocks, AAAI 2023.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from reskit.errors import ModelError

__all__ = [
    "FrozenNorm",
    "PackedHardSwish",
    "PackedReLU6",
    "ShiftNorm",
    "ShiftNormHardSwish",
    "ShiftNormReLU6",
    "freeze_norms",
    "memory_order",
    "pack_mask",
    "unfreeze_norms",
    "unpack_mask",
]


def memory_order(x: Tensor) -> list[int]:
    """Return the dimensions of `x` from the one with the longest stride to the shortest."""
    return sorted(range(x.dim()), key=x.stride, reverse=True)


def pack_mask(mask: Tensor) -> Tensor:
    """Return a mask with 8 elements a byte, taken in the order they lie in memory.

    Bit `b` of byte `j` is element ``j + b * bytes``: whole runs of memory are combined, which is fast.

    Args:
        mask: bool, of any shape and memory layout.

    Returns:
        uint8, ``(ceil(mask.numel() / 8),)``.
    """
    flat = mask.permute(memory_order(mask)).reshape(-1)
    if missing := -len(flat) % 8:
        flat = F.pad(flat, (0, missing))
    planes = flat.view(torch.uint8).view(8, len(flat) // 8)
    packed = planes[0].clone()
    for bit in range(1, 8):
        packed.add_(planes[bit], alpha=1 << bit)
    return packed


def unpack_mask(packed: Tensor, size: Sequence[int], order: Sequence[int] | None = None) -> Tensor:
    """Undo :func:`pack_mask`.

    Args:
        packed: what it returned.
        size: shape of the mask.
        order: :func:`memory_order` of the mask; by default that of a contiguous one.

    Returns:
        The mask, bool, `size`, laid out in memory as it was.
    """
    order = range(len(size)) if order is None else order
    planes = packed.new_empty(8, len(packed))
    for bit in range(8):
        torch.bitwise_and(packed, 1 << bit, out=planes[bit])
    laid_out = [size[dim] for dim in order]
    flat = planes.ne_(0).view(torch.bool).view(-1)[: torch.Size(laid_out).numel()]
    back = sorted(range(len(size)), key=lambda dim: order[dim])
    return flat.view(laid_out).permute(back)


class _Rectifier(NamedTuple):
    """An activation, and where its gradient is taken to be one; elsewhere it is taken to be zero."""

    apply: Callable[..., Tensor]
    passes: Callable[[Tensor], Tensor]


_RELU6 = _Rectifier(F.relu6, lambda x: (x > 0).logical_and_(x < 6))
_HARD_SWISH = _Rectifier(F.hardswish, lambda x: x > 0)


def _packed(context: Any, rectifier: _Rectifier, x: Tensor) -> Tensor:
    """Return the packed mask of `rectifier` at `x`; its shape and layout are noted in `context`."""
    mask = rectifier.passes(x)
    context.size, context.order = mask.shape, memory_order(mask)
    return pack_mask(mask)


def _masked(context: Any, gradient: Tensor, packed: Tensor) -> Tensor:
    """Return a new tensor, `gradient` where the mask of :func:`_packed` is set and zero elsewhere."""
    # On a CPU several times faster than torch.where, which is not vectorised for a mask of bools.
    return unpack_mask(packed, context.size, context.order).to(gradient.dtype).mul_(gradient)


class _Rectify(torch.autograd.Function):
    """An activation that keeps a packed mask."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rectifier: _Rectifier) -> Tensor:
        ctx.save_for_backward(_packed(ctx, rectifier, x))
        return rectifier.apply(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _masked(ctx, gradient, *ctx.saved_tensors), None


class _Shift(torch.autograd.Function):
    """A norm with fixed statistics, and perhaps an activation, that keeps a factor a channel and a mask.

    ``y = scale * x + ...`` with ``scale = weight / sqrt(variance + eps)``: the gradient of `x` is that of `y`
    times `scale`, that of the bias is its sum over all but the channels; neither needs `x`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        variance: Tensor,
        eps: float,
        rectifier: _Rectifier | None,
    ) -> Tensor:
        y = F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)
        kept = [weight * torch.rsqrt(variance + eps)]
        if rectifier is not None:
            kept.append(_packed(ctx, rectifier, y))
            y = rectifier.apply(y, inplace=True)
        ctx.save_for_backward(*kept)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        scale, *packed = ctx.saved_tensors
        if packed:
            gradient = _masked(ctx, gradient, *packed)
        of_x = of_bias = None
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum([0, *range(2, gradient.dim())], dtype=scale.dtype)
        if ctx.needs_input_grad[0]:
            factor = _by_channel(scale, gradient)
            # What `_masked` made is ours to overwrite; what came from above is not.
            of_x = gradient.mul_(factor) if packed else (gradient * factor).to(gradient.dtype)
        return of_x, None, of_bias, None, None, None, None


def _by_channel(values: Tensor, x: Tensor) -> Tensor:
    """Return `(C,)` values in the shape that meets the channels of `x` `(N, C, ...)`."""
    return values.view(1, -1, *[1] * (x.dim() - 2))


class PackedReLU6(nn.Module):
    """`min(max(x, 0), 6)` that keeps one bit an element; its gradient is exact."""

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` clipped, same shape."""
        return _rectify(x, _RELU6)


class PackedHardSwish(nn.Module):
    """`x * relu6(x + 3) / 6` that keeps one bit an element; its gradient is an approximation.

    Backward it is taken for a step: one where `x` is positive, else zero, the gradient of the rectifier that
    hard-swish smooths. (The paper calls it "a signed function".) The exact gradient, `x / 3 + 1 / 2` between
    -3 and 3, would need `x`. Forward it is exact.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the hard-swish of `x`, same shape."""
        return _rectify(x, _HARD_SWISH)


def _rectify(x: Tensor, rectifier: _Rectifier) -> Tensor:
    # Where nothing will be differentiated there is nothing to keep.
    if torch.is_grad_enabled():
        return _Rectify.apply(x, rectifier)  # type: ignore[no-any-return]
    return rectifier.apply(x)


class FrozenNorm(_BatchNorm):
    """Batch normalisation by running statistics for good: :meth:`train` does not wake it.

    Parameters and buffers are those of the norm it stands for, under the same names.

    Args:
        norm: the norm to stand for; :meth:`plain` gives its like back.
        inplace: whether to overwrite the input where no gradient is asked for, which halves the memory a
            resting layer works in; only for an input that nobody else holds.

    Raises:
        ModelError: `norm` has no running statistics.
    """

    def __init__(self, norm: _BatchNorm, *, inplace: bool = False) -> None:
        if norm.running_mean is None:
            raise ModelError("a norm without running statistics cannot be frozen: it has only the batch's")
        super().__init__(
            norm.num_features, norm.eps, norm.momentum, affine=norm.weight is not None, device="meta"
        )
        _share(norm, self)
        self.plain_type, self.inplace = type(norm), inplace
        self.eval()

    def train(self, mode: bool = True) -> FrozenNorm:
        """Stay in evaluation mode whatever `mode` is, so that training a network leaves this norm alone."""
        return super().train(False)

    def forward(self, input: Tensor) -> Tensor:
        """Return `input` `(N, C, ...)` normalised, same shape."""
        mean, variance = self.running_mean, self.running_var
        assert mean is not None
        assert variance is not None
        tensors = (input, *self.parameters(recurse=False))
        recorded = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
        if not self.inplace or recorded or input.dtype != mean.dtype:
            return super().forward(input)
        scale = torch.rsqrt(variance + self.eps)
        if self.weight is not None:
            scale = scale * self.weight
        shift = -mean * scale if self.bias is None else self.bias - mean * scale
        return input.mul_(_by_channel(scale, input)).add_(_by_channel(shift, input))

    def plain(self) -> _BatchNorm:
        """Return the ordinary norm this one stands for, with the same parameters and buffers."""
        norm = self.plain_type(
            self.num_features, self.eps, self.momentum, affine=self.weight is not None, device="meta"
        )
        _share(self, norm)
        return norm

    def _check_input_dim(self, input: Tensor) -> None:
        """Take any rank; what came before decides it."""


def _share(norm: _BatchNorm, with_norm: _BatchNorm) -> None:
    """Give `with_norm` the very parameters and buffers of `norm`."""
    for name, value in [*norm.named_parameters(recurse=False), *norm.named_buffers(recurse=False)]:
        setattr(with_norm, name, value)


class ShiftNorm(FrozenNorm):
    """A frozen norm of which only the shift is trained; it keeps one number a channel, not its input.

    The forward pass is that of the norm in evaluation mode, bit for bit.

    Args:
        norm: the norm to stand for; its `weight` is set not to require gradients.

    Raises:
        ModelError: `norm` has no running statistics, or no shift to train.
    """

    rectifier: ClassVar[_Rectifier | None] = None

    def __init__(self, norm: _BatchNorm) -> None:
        if norm.weight is None:
            raise ModelError("a norm without scale and shift has no shift to train")
        super().__init__(norm)
        self.weight.requires_grad_(False)

    def forward(self, input: Tensor) -> Tensor:
        """Return `input` `(N, C, ...)` normalised, and rectified where the class says so; same shape."""
        assert self.running_mean is not None
        assert self.running_var is not None
        if torch.is_grad_enabled():
            return _Shift.apply(  # type: ignore[no-any-return]
                input,
                self.weight,
                self.bias,
                self.running_mean,
                self.running_var,
                self.eps,
                self.rectifier,
            )
        y = super().forward(input)
        return y if self.rectifier is None else self.rectifier.apply(y, inplace=True)


class ShiftNormReLU6(ShiftNorm):
    """:class:`ShiftNorm` and then the rectifier clipped at 6; keeps a factor a channel, a bit an element."""

    rectifier = _RELU6


class ShiftNormHardSwish(ShiftNorm):
    """:class:`ShiftNorm` and then hard-swish, with the gradient of :class:`PackedHardSwish`."""

    rectifier = _HARD_SWISH


def freeze_norms(module: nn.Module, *, affine: bool = True) -> None:
    """Make every batch norm inside `module` a :class:`FrozenNorm`, in place; names stay.

    Its running statistics are used and never change, also while the network trains. Right after a
    convolution in a :class:`~torch.nn.Sequential` it works in place where no gradient is asked for.

    Args:
        module: the network, or part of one.
        affine: whether scale and shift are fixed too.
    """
    for parent in list(module.modules()):
        before: nn.Module | None = None
        for name, child in list(parent.named_children()):
            if isinstance(child, _BatchNorm) and not isinstance(child, FrozenNorm):
                inplace = isinstance(parent, nn.Sequential) and isinstance(before, _ConvNd)
                setattr(parent, name, FrozenNorm(child, inplace=inplace).requires_grad_(not affine))
            before = child


def unfreeze_norms(module: nn.Module) -> None:
    """Put an ordinary norm, its parameters trainable, back for every :class:`FrozenNorm` inside `module`."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, FrozenNorm):
                setattr(parent, name, child.plain().requires_grad_(True).train(parent.training))
