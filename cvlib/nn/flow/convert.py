"""Names of the original flows' checkpoints mapped to ours, so that the authors' published weights can be loaded.

Source: the released models of Rombach et al. 2020 and 2020b. S and T, two nets there, are one weight here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from cvlib.errors import BookError
from cvlib.nn.flow.coupling import twin_weight

__all__ = ["convert_flow"]

_PLAIN = {
    "norm_layer.loc": "norm.loc",
    "norm_layer.scale": "norm.scale",
    "norm_layer.initialized": "norm.initialized",
    "shuffle.forward_shuffle_idx": "shuffle.order",
    "shuffle.backward_shuffle_idx": "shuffle.back",
}


def convert_flow(state: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """Return the state of :class:`cvlib.nn.flow.ConditionalFlow` from an original one's.

    ``prefix`` is what stands before ``sub_layers`` or before ``flow.sub_layers`` and ``embedder``, for example
    the name of the module in a larger checkpoint; entries without it are left out. ``embedder.main.*`` goes to
    a :class:`~cvlib.nn.flow.VectorEmbedder` of the same widths and norm.

    Raises: BookError at an unknown or missing entry.
    """
    flow: dict[str, Tensor] = {}
    result: dict[str, Tensor] = {}
    for key, value in state.items():
        if not key.startswith(prefix):
            continue
        name = key.removeprefix(prefix)
        if found := re.fullmatch(r"(?:flow\.)?sub_layers\.(.+)", name):
            flow[found[1]] = value
        elif found := re.fullmatch(r"embedder\.main\.(\d+\.\w+)", name):
            result[f"embedder.layers.{found[1]}"] = value
        else:
            raise BookError(f"entry {key} in the checkpoint", "sub_layers and embedder.main of a flow")
    n_blocks = 1 + max((int(key.split(".")[0]) for key in flow), default=-1)
    if not n_blocks:
        raise BookError(f"no entry {prefix}sub_layers.* in the checkpoint", "the weights of a flow")
    weights, biases = [], []
    try:
        for i in range(n_blocks):
            for theirs, ours in _PLAIN.items():
                value = flow.pop(f"{i}.{theirs}")
                result[f"blocks.{i}.{ours}"] = value.bool() if value.dim() == 0 else value.flatten()
            dim = len(result[f"blocks.{i}.norm.loc"])
            for j, half in enumerate(("first", "second")):
                nets = [_layers(flow, f"{i}.coupling.{net}.{j}.main.") for net in "st"]
                x_width = dim - dim // 2 if j == 0 else dim // 2
                for first, _ in (net[0] for net in nets):  # inputs: the half of x, then the condition
                    weights.append(first[:, x_width:].T)
                biases += [net[0][1][None] for net in nets]
                name = f"blocks.{i}.coupling.{half}"
                width = nets[0][0][0].shape[0]
                for k, ((s, s_bias), (t, t_bias)) in enumerate(zip(*nets, strict=True)):
                    if k == 0:
                        s, t = s[:, :x_width], t[:, :x_width]
                    else:
                        result[f"{name}.biases.{k - 1}"] = torch.stack([s_bias, t_bias])[:, None]
                    result[f"{name}.weights.{k}"] = twin_weight(s, t, width)
    except KeyError as error:
        raise BookError(f"no entry sub_layers.{error.args[0]} in the checkpoint", "all weights of a flow") from error
    if flow:
        raise BookError(f"entry sub_layers.{next(iter(flow))} in the checkpoint", "the blocks of a flow")
    return result | {"cond_weight": torch.stack(weights), "cond_bias": torch.stack(biases)}


def _layers(flow: dict[str, Tensor], prefix: str) -> list[tuple[Tensor, Tensor]]:
    """Take out the weights and biases of one perceptron, in order: Linear at 0, 2, 4, ..."""
    found = [key for key in flow if key.startswith(prefix) and key.endswith(".weight")]
    names = [f"{prefix}{2 * k}" for k in range(max(1, len(found)))]
    return [(flow.pop(f"{name}.weight"), flow.pop(f"{name}.bias")) for name in names]
