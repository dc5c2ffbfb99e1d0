"""VQGAN's autoencoder: images to a grid of code indices and back (the first stage).

Source: Esser et al. 2021, Sec. 3.1. The losses that train it stand on the page "taming".
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from torch import Tensor, nn

from cvlib.errors import BookError
from cvlib.nn.autoencoder import Architecture, Decoder, Encoder
from cvlib.nn.quantizer import Quantized, VectorQuantizer

__all__ = ["VQModel"]


class VQModel(nn.Module):
    """Encoder, 1x1 convolution, quantizer, 1x1 convolution, decoder.

    Images are (B, C, H, W) in [-1, 1] with H and W divisible by ``factor`` = 2^(levels - 1); the token grid
    is (B, H / factor, W / factor). ``architecture`` are the fields of :class:`Architecture`, which encoder
    and decoder share; the defaults are the paper's ImageNet model (K = 1024, f = 16). ``config`` holds the
    arguments: ``VQModel(**model.config)`` builds the same network.

    >>> model = VQModel(n_codes=8, dim_z=4, ch=32, ch_mult=(1, 2), z_channels=8, attn_resolutions=())
    >>> import torch; model.encode(torch.zeros(2, 3, 16, 12)).indices.shape
    torch.Size([2, 8, 6])
    """

    def __init__(
        self,
        *,
        n_codes: int = 1024,
        dim_z: int = 256,
        in_channels: int = 3,
        out_channels: int = 3,
        beta: float = 0.25,
        legacy: bool = False,
        cosine: bool = False,
        **architecture: Any,
    ) -> None:
        super().__init__()
        shape = Architecture(**architecture)
        ch_mult, attn_resolutions = list(shape.ch_mult), list(shape.attn_resolutions)
        codes: dict[str, Any] = {"n_codes": n_codes, "dim_z": dim_z}
        codes |= {"beta": beta, "legacy": legacy, "cosine": cosine}
        self.config: dict[str, Any] = codes | {"in_channels": in_channels, "out_channels": out_channels}
        self.config |= asdict(shape) | {"ch_mult": ch_mult, "attn_resolutions": attn_resolutions}
        self.factor = 2 ** (len(ch_mult) - 1)
        self.encoder = Encoder(shape, in_channels)
        self.quant_conv = nn.Conv2d(shape.z_channels, dim_z, 1)
        self.quantizer = VectorQuantizer(**codes)
        self.post_quant_conv = nn.Conv2d(dim_z, shape.z_channels, 1)
        self.decoder = Decoder(shape, out_channels)

    def features(self, x: Tensor) -> Tensor:
        """Return the features (B, dim_z, H / f, W / f) of images before they are quantized."""
        if x.shape[-2] % self.factor or x.shape[-1] % self.factor:
            height, width = x.shape[-2:]
            raise BookError(
                f"images of {height} x {width} px", f"sides divisible by {self.factor}", "crop or resize them"
            )
        return self.quant_conv(self.encoder(x))

    def encode(self, x: Tensor) -> Quantized:
        """Return codes, indices and quantizer loss of images; see :class:`Quantized`."""
        return self.quantizer(self.features(x))

    def decode(self, z_q: Tensor) -> Tensor:
        """Return images (B, C, f h, f w) for codes (B, dim_z, h, w); not clamped to [-1, 1]."""
        return self.decoder(self.post_quant_conv(z_q))

    def decode_indices(self, indices: Tensor) -> Tensor:
        """Return images for a grid of code indices (B, h, w)."""
        return self.decode(self.quantizer.lookup(indices))

    def forward(self, x: Tensor) -> tuple[Tensor, Quantized]:
        """Return reconstruction and quantizer output of images."""
        quantized = self.encode(x)
        return self.decode(quantized.z_q), quantized

    @property
    def last_layer(self) -> nn.Parameter:
        """Weight of the decoder's last convolution (Esser et al. 2021, Eq. 7)."""
        return self.decoder.last_layer
