"""Names of the original checkpoints mapped to ours, so that the authors' published weights can be loaded.

Source: the released models of Esser et al. 2021. Queries, keys and values, three layers there, are one here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from cvlib.errors import BookError

__all__ = ["convert_gpt", "convert_patchgan", "convert_vqgan"]

_RESIDUAL = {"norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3", "conv2": "residual.6"}
_PARTS = {**_RESIDUAL, "nin_shortcut": "shortcut", "norm": "norm", "proj_out": "proj"}
_MIDDLE = {"block_1": "0", "attn_1": "1", "block_2": "2"}
_OUTER = {"conv_in": "conv_in", "norm_out": "head.0", "conv_out": "head.2"}
_PLAIN = {"quantize.embedding.weight": "quantizer.codebook", "quantize.embed.weight": "quantizer.codebook"}


def _fuse(state: dict[str, Tensor], names: tuple[str, str, str]) -> dict[str, Tensor]:
    """Replace the three entries ``prefix.{names}.weight|bias`` by one ``prefix.qkv.weight|bias``."""
    result: dict[str, Tensor] = {}
    pattern = re.compile(rf"(.*\.)({'|'.join(names)})\.(weight|bias)")
    for key, value in state.items():
        found = pattern.fullmatch(key)
        if not found:
            result[key] = value
        elif found[2] == names[0]:
            parts = [state[f"{found[1]}{name}.{found[3]}"] for name in names]
            result[f"{found[1]}qkv.{found[3]}"] = torch.cat(parts)
    return result


def _strip(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _vqgan_name(key: str, n_levels: int) -> str:
    """Our name for one entry, e.g. ``decoder.up.0.block.1.conv2.bias``."""
    if key in _PLAIN:
        return _PLAIN[key]
    if re.fullmatch(r"(post_)?quant_conv\.(weight|bias)", key):
        return key
    if found := re.fullmatch(r"(encoder|decoder)\.(\w+)\.(weight|bias)", key):
        return f"{found[1]}.{_OUTER[found[2]]}.{found[3]}"
    if found := re.fullmatch(r"(encoder|decoder)\.mid\.(\w+)\.(\w+)\.(weight|bias)", key):
        return f"{found[1]}.middle.{_MIDDLE[found[2]]}.{_PARTS.get(found[3], found[3])}.{found[4]}"
    if found := re.fullmatch(r"(encoder|decoder)\.(?:down|up)\.(\d+)\.(down|up)sample\.(conv\.\w+)", key):
        return f"{found[1]}.levels.{_order(found[1], int(found[2]), n_levels)}.{found[3]}.{found[4]}"
    if found := re.fullmatch(r"(\w+)\.(?:down|up)\.(\d+)\.(block|attn)\.(\d+)\.(\w+)\.(weight|bias)", key):
        level = _order(found[1], int(found[2]), n_levels)
        kind = {"block": "res", "attn": "attn"}[found[3]]
        return f"{found[1]}.levels.{level}.{kind}{found[4]}.{_PARTS.get(found[5], found[5])}.{found[6]}"
    raise KeyError(key)


def _order(half: str, level: int, n_levels: int) -> int:
    """The original decoder counts its levels from the large grid, ours in the order of computation."""
    return level if half == "encoder" else n_levels - 1 - level


def convert_vqgan(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state of :class:`cvlib.nn.vqmodel.VQModel` from an original VQGAN checkpoint's.

    Entries of the training loss (``loss.*``: discriminator and LPIPS) are left out. Build the model with
    ``legacy=True`` to go on training as the authors did. Raises: BookError at an unknown entry.
    """
    kept = {key: value for key, value in state.items() if not key.startswith("loss.")}
    n_levels = 1 + max(
        (int(i) for key in kept for i in re.findall(r"^encoder\.down\.(\d+)\.", key)), default=0
    )
    renamed: dict[str, Tensor] = {}
    for key, value in kept.items():
        try:
            renamed[_vqgan_name(key, n_levels)] = value
        except KeyError as error:
            raise BookError(
                f"entry {key} in the checkpoint", "encoder, decoder, quantize of a VQGAN"
            ) from error
    return _fuse(renamed, ("q", "k", "v"))


def convert_patchgan(state: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """Return the state of :class:`cvlib.nn.discriminator.PatchDiscriminator` from an original one's.

    In a VQGAN checkpoint it lies under ``prefix="loss.discriminator."``.
    """
    return {key.replace("main.", "layers.", 1): value for key, value in _strip(state, prefix).items()}


def convert_gpt(state: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """Return the state of :class:`cvlib.nn.transformer.GPT` from an original transformer's.

    In a checkpoint of the second stage it lies under ``prefix="transformer."``. The causal masks stored there
    are left out.
    """
    names = {"tok_emb.": "token_embedding.", "pos_emb": "position_embedding", "ln_f.": "norm."}
    names |= {".ln1.": ".norm1.", ".ln2.": ".norm2."}
    renamed: dict[str, Tensor] = {}
    for key, value in _strip(state, prefix).items():
        if key.endswith("attn.mask"):
            continue
        for old, new in names.items():
            key = key.replace(old, new)
        renamed[key] = value[0] if key == "position_embedding" else value  # (1, T, d) there
    return _fuse(renamed, ("query", "key", "value"))
