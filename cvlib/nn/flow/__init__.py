"""Invertible networks with conditions: the flow that two chapters share, layer by layer."""

from __future__ import annotations

from cvlib.nn.flow.activations import InvertibleLeakyReLU
from cvlib.nn.flow.actnorm import ActNorm
from cvlib.nn.flow.conditioning import LabelEmbedder, MapEmbedder, VectorEmbedder, even_widths
from cvlib.nn.flow.convert import convert_flow, load_flow
from cvlib.nn.flow.coupling import AffineCoupling, TwinNets
from cvlib.nn.flow.flow import ConditionalFlow, FlowBlock, Projection
from cvlib.nn.flow.guess import LinearGuess
from cvlib.nn.flow.semantic import LinearFactors, SemanticFlow, factor_sizes, pair_loss
from cvlib.nn.flow.shuffle import Shuffle

__all__ = [
    "ActNorm",
    "AffineCoupling",
    "ConditionalFlow",
    "FlowBlock",
    "InvertibleLeakyReLU",
    "LabelEmbedder",
    "LinearFactors",
    "LinearGuess",
    "MapEmbedder",
    "Projection",
    "SemanticFlow",
    "Shuffle",
    "TwinNets",
    "VectorEmbedder",
    "convert_flow",
    "even_widths",
    "factor_sizes",
    "load_flow",
    "pair_loss",
]
