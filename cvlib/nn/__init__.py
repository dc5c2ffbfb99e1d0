"""Networks shared by chapters: one object of a paper per file."""

from __future__ import annotations

from cvlib.nn.autoencoder import Decoder, Encoder
from cvlib.nn.quantizer import CodeUsage, Quantized, VectorQuantizer
from cvlib.nn.transformer import GPT, KVCache, decay_groups
from cvlib.nn.vqmodel import VQModel

__all__ = [
    "GPT",
    "CodeUsage",
    "Decoder",
    "Encoder",
    "KVCache",
    "Quantized",
    "VQModel",
    "VectorQuantizer",
    "decay_groups",
]
