"""Residual learning: the mapping, its shortcuts and its blocks, for vectors and 1-D, 2-D and 3-D inputs."""

from reskit.nn.convolution import (
    BasicBlock,
    BlockOptions,
    Bottleneck,
    CausalBlock,
    ConvolutionBlock,
    DilatedBlock,
)
from reskit.nn.dense import DenseBlock, DenseLayer, Transition
from reskit.nn.layers import SqueezeExcitation, StochasticDepth, make_conv, make_norm, make_pool, zero_init_
from reskit.nn.normfree import NormFreeBlock
from reskit.nn.pointwise import InvertedResidual, MlpConv
from reskit.nn.preactivation import PreActBasicBlock, PreActBottleneck, WideBlock
from reskit.nn.residual import Residual
from reskit.nn.shortcuts import NoShortcut, ShortcutKind, ZeroPad, make_shortcut
from reskit.nn.upscale import BicubicUpscale
from reskit.nn.vector import ResidualMLP

__all__ = [
    "BasicBlock",
    "BicubicUpscale",
    "BlockOptions",
    "Bottleneck",
    "CausalBlock",
    "ConvolutionBlock",
    "DenseBlock",
    "DenseLayer",
    "DilatedBlock",
    "InvertedResidual",
    "MlpConv",
    "NoShortcut",
    "NormFreeBlock",
    "PreActBasicBlock",
    "PreActBottleneck",
    "Residual",
    "ResidualMLP",
    "ShortcutKind",
    "SqueezeExcitation",
    "StochasticDepth",
    "Transition",
    "WideBlock",
    "ZeroPad",
    "make_conv",
    "make_norm",
    "make_pool",
    "make_shortcut",
    "zero_init_",
]
