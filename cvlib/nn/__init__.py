"""Networks shared by chapters: one object of a paper per file."""

from __future__ import annotations

from cvlib.nn.autoencoder import Architecture, Decoder, Encoder, GroupNorm
from cvlib.nn.discriminator import (
    PatchDiscriminator,
    hinge_d_loss,
    hinge_g_loss,
    vanilla_d_loss,
    vanilla_g_loss,
)
from cvlib.nn.flow import ConditionalFlow, LabelEmbedder, MapEmbedder, SemanticFlow, VectorEmbedder
from cvlib.nn.perceptual import PerceptualDistance, lpips_vgg16_hed, vgg_loss
from cvlib.nn.quantizer import CodeUsage, Quantized, VectorQuantizer, straight_through
from cvlib.nn.transformer import GPT, KVCache, decay_groups
from cvlib.nn.vgg import VGG, Frozen, vgg16_hed, vgg19
from cvlib.nn.vqmodel import VQModel

__all__ = [
    "GPT",
    "VGG",
    "Architecture",
    "CodeUsage",
    "ConditionalFlow",
    "Decoder",
    "Encoder",
    "Frozen",
    "GroupNorm",
    "KVCache",
    "LabelEmbedder",
    "MapEmbedder",
    "PatchDiscriminator",
    "PerceptualDistance",
    "Quantized",
    "SemanticFlow",
    "VQModel",
    "VectorEmbedder",
    "VectorQuantizer",
    "decay_groups",
    "hinge_d_loss",
    "hinge_g_loss",
    "lpips_vgg16_hed",
    "straight_through",
    "vanilla_d_loss",
    "vanilla_g_loss",
    "vgg16_hed",
    "vgg19",
    "vgg_loss",
]
