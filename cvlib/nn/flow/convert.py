"""Names of the original flows' checkpoints mapped to ours, so that the published weights can be loaded.

Source: the released models of Rombach et al. 2020a (Making Sense of CNNs) and 2020b (Network-to-Network
Translation). S and T, two nets there, are one weight here; 1x1 convolutions of vectors are linear layers.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from cvlib.errors import BookError
from cvlib.nn.checkpoints import read_state
from cvlib.nn.flow.coupling import twin_weight
from cvlib.nn.flow.flow import ConditionalFlow
from cvlib.train.weights import load_into

__all__ = ["convert_flow", "load_flow"]

_PLAIN = {
    "norm_layer.loc": "norm.loc",
    "norm_layer.scale": "norm.scale",
    "shuffle.forward_shuffle_idx": "shuffle.order",
    "shuffle.backward_shuffle_idx": "shuffle.back",
}
_TRAINED = torch.tensor(True)  # what is released was trained, whether or not it says so


def load_flow(flow: ConditionalFlow, path: str | os.PathLike[str], prefix: str = "") -> ConditionalFlow:
    """Fill ``flow`` from a released file and return it in evaluation mode; see :func:`convert_flow`.

    Those of Rombach et al. 2020a have 20 blocks of width 1024, ``dim`` 128, or 268 for the texture bias, and
    an embedder of that ``dim`` (:meth:`cvlib.nn.backbones.Layer.embedder`). The file is any that
    :func:`cvlib.nn.checkpoints.read_state` takes.

    Raises: BookError if the file is absent or damaged, holds more than tensors, or is of another flow; the
    flow is then unchanged.
    """
    state = convert_flow(read_state(path, "the released weights of a conditional flow"), prefix)
    load_into(flow, state, str(path))
    return flow.eval()


def convert_flow(state: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """Return the state of :class:`cvlib.nn.flow.ConditionalFlow` from an original one's.

    ``prefix`` is what stands before ``sub_layers`` or before ``flow.sub_layers`` and ``embedder``, for
    example the name of the module in a larger checkpoint; entries without it are left out. Embedders of
    vectors, ``embedder.main.*`` (2020b) and ``embedder.net.*`` (2020a), go to a
    :class:`~cvlib.nn.flow.VectorEmbedder` of the same widths, the latter with norm "actnorm" and slope 0.2;
    ``embedder.feature_layers.*`` and ``embedder.dense_encode.*`` to a :class:`~cvlib.nn.flow.MapEmbedder`.

    Raises: BookError at an unknown or missing entry.
    """
    flow: dict[str, Tensor] = {}
    embedder: dict[str, Tensor] = {}
    for key, value in state.items():
        if not key.startswith(prefix):
            continue
        name = key.removeprefix(prefix)
        if found := re.fullmatch(r"(?:flow\.)?sub_layers\.(\d+\..+)", name):
            flow[found[1]] = value
        elif name.startswith("embedder."):
            embedder[name.removeprefix("embedder.")] = value
        else:
            raise BookError(f"entry {key} in the checkpoint", "sub_layers and embedder of a flow")
    result = _embedder(embedder)
    n_blocks = 1 + max((int(key.split(".")[0]) for key in flow), default=-1)
    if not n_blocks:
        raise BookError(f"no entry {prefix}sub_layers.* in the checkpoint", "the weights of a flow")
    i = 0
    try:
        for i in range(n_blocks):
            result |= _block(flow, i)
    except KeyError as error:
        seen = f"no entry sub_layers.{error.args[0]} in the checkpoint"
        raise BookError(seen, "all weights of a flow") from error
    except (ValueError, RuntimeError, IndexError) as error:  # S and T of other depths or widths
        raise BookError(
            f"block {i} of the checkpoint does not fit ({error})", "the blocks of a flow"
        ) from error
    if flow:
        raise BookError(f"entry sub_layers.{next(iter(flow))} in the checkpoint", "the blocks of a flow")
    for name in ("cond_weight", "cond_bias"):
        result[name] = torch.cat([result.pop(f"blocks.{i}.{name}") for i in range(n_blocks)])
    return result


def _embedder(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return our entries of the network H, whichever of the three it is."""
    result: dict[str, Tensor] = {}
    n_down = 1 + max(
        (int(i) for key in state for i in re.findall(r"^feature_layers\.(\d+)\.", key)), default=-1
    )
    for key, value in state.items():
        if found := re.fullmatch(r"(main|net)\.(\d+)\.(\w+)", key):
            at, name = int(found[2]), found[3]
            if found[1] == "net" and name == "weight":
                value = value.flatten(1)
        elif found := re.fullmatch(r"feature_layers\.(\d+)\.sub_layers\.([01])\.(\w+)", key):
            at, name = 3 * int(found[1]) + int(found[2]), found[3]  # convolution, norm, activation each
        elif found := re.fullmatch(r"dense_encode\.sub_layers\.0\.(weight|bias)", key):
            at, name = 3 * n_down, found[1]
        else:
            raise BookError(f"entry embedder.{key} in the checkpoint", "main, net, or feature_layers")
        if name in ("loc", "scale"):
            value = value.flatten()
            result.setdefault(f"embedder.layers.{at}.initialized", _TRAINED)
        elif name == "initialized":
            value = value.bool()
        result[f"embedder.layers.{at}.{name}"] = value
    return result


def _block(flow: dict[str, Tensor], i: int) -> dict[str, Tensor]:
    """Take the entries of block ``i`` out of ``flow`` and return ours."""
    block = {ours: flow.pop(f"{i}.{theirs}").flatten() for theirs, ours in _PLAIN.items()}
    block["norm.initialized"] = flow.pop(f"{i}.norm_layer.initialized", _TRAINED).bool()
    dim = len(block["norm.loc"])
    weights, biases = [], []
    for j, (half, dim_in) in enumerate((("first", dim - dim // 2), ("second", dim // 2))):
        s_net, t_net = (_linear(flow, f"{i}.coupling.{net}.{j}.main.") for net in "st")
        for weight, bias in (s_net[0], t_net[0]):  # inputs: a half of x, then the condition
            weights.append(weight[:, dim_in:].T)
            biases.append(bias[None])
        width = len(s_net[0][1])
        for k, ((s, s_bias), (t, t_bias)) in enumerate(zip(s_net, t_net, strict=True)):
            if k == 0:
                s, t = s[:, :dim_in], t[:, :dim_in]
            else:
                block[f"coupling.{half}.bias{k}"] = torch.stack([s_bias, t_bias])[:, None]
            block[f"coupling.{half}.weight{k}"] = twin_weight(s, t, width)
    block |= {"cond_weight": torch.stack(weights), "cond_bias": torch.stack(biases)}
    return {f"blocks.{i}.{name}": value for name, value in block.items()}


def _linear(flow: dict[str, Tensor], prefix: str) -> list[tuple[Tensor, Tensor]]:
    """Take out weight and bias of each Linear of one perceptron, in order: entries 0, 2, 4, ..."""
    count = sum(key.startswith(prefix) and key.endswith(".weight") for key in flow)
    names = [f"{prefix}{2 * k}" for k in range(max(1, count))]
    return [(flow.pop(f"{name}.weight"), flow.pop(f"{name}.bias")) for name in names]
