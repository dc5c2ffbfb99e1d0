"""Decoder-only transformer over tokens, with a preallocated cache for sampling.

Source: Esser et al. 2021, Sec. 3.2 (the architecture is that of GPT-2, Radford et al. 2019).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from cvlib.errors import BookError

__all__ = ["GPT", "KVCache", "attention_mask", "decay_groups"]


class KVCache:
    """Keys and values of the tokens seen so far, so that a sampler pays for each token once.

    ``data`` (L, 2, B, heads, T, dim / heads) is allocated once and written in place; ``length`` tokens of it
    are valid. Memory: 2 L T dim values a sequence.
    """

    def __init__(self, data: Tensor) -> None:
        self.data = data
        self.length = 0

    def reset(self) -> None:
        """Forget all tokens; the memory is kept."""
        self.length = 0

    def write(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store ``k``, ``v`` (B, heads, t, d) behind the valid part; return views of all keys and values."""
        stop = self.length + k.shape[2]
        keys, values = self.data[layer, :, :, :, :stop]
        keys[:, :, self.length :] = k
        values[:, :, self.length :] = v
        return keys, values


def attention_mask(start: int, stop: int, n_unmasked: int, device: torch.device) -> Tensor:
    """Return (stop - start, stop) booleans: True where the query of that row may look at the key.

    Each position looks back, and the first ``n_unmasked`` ones also at each other.

    >>> attention_mask(0, 4, 2, torch.device("cpu")).int()
    tensor([[1, 1, 0, 0],
            [1, 1, 0, 0],
            [1, 1, 1, 0],
            [1, 1, 1, 1]], dtype=torch.int32)
    """
    keys = torch.arange(stop, device=device)
    return (keys <= keys[start:, None]) | (keys < n_unmasked)


class Attention(nn.Module):
    """Multi-head self-attention; queries, keys and values come from one matrix product."""

    def __init__(self, dim: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.n_heads, self.dropout = n_heads, dropout
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None, layer: int, cache: KVCache | None) -> Tensor:
        q, k, v = rearrange(self.qkv(x), "b t (three n d) -> three b n t d", three=3, n=self.n_heads)
        if cache is not None:
            k, v = cache.write(layer, k, v)
            q = q.to(k.dtype)
        is_causal = mask is None and q.shape[2] > 1  # one query may look at everything before it
        dropout = self.dropout if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal)
        return self.proj(rearrange(x, "b n t d -> b t (n d)"))


class Block(nn.Module):
    """Pre-norm transformer layer: attention, then a two-layer perceptron, each added to its input."""

    def __init__(self, dim: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, n_heads, dropout)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None, layer: int, cache: KVCache | None) -> Tensor:
        x = x + self.drop(self.attn(self.norm1(x), mask, layer, cache))
        return x + self.drop(self.mlp(self.norm2(x)))


class GPT(nn.Module):
    """Predict each token from those before it: (B, T) int64 to logits (B, T, vocab_out).

    ``n_unmasked`` first positions see each other in both directions (a condition). ``vocab_out`` (default:
    ``vocab_size``) may leave out tokens that are only ever read, such as class labels. Learned absolute
    positions start at zero, the head is untied and has no bias. ``config`` rebuilds the same network.

    >>> model = GPT(vocab_size=10, block_size=6, n_layers=1, n_heads=2, dim=8).eval()
    >>> cache = model.new_cache(batch=1)
    >>> first = model(torch.tensor([[3, 1]]), cache); second = model(torch.tensor([[4]]), cache)
    >>> cache.length, torch.allclose(second[:, -1], model(torch.tensor([[3, 1, 4]]))[:, -1], atol=1e-6)
    (3, True)
    """

    def __init__(
        self,
        vocab_size: int,
        block_size: int,
        n_layers: int,
        n_heads: int,
        dim: int,
        dropout: float = 0.0,
        n_unmasked: int = 0,
        vocab_out: int | None = None,
    ) -> None:
        super().__init__()
        if dim % n_heads:
            raise BookError(f"width {dim} with {n_heads} heads", "a width that the heads divide")
        self.config: dict[str, Any] = {
            "vocab_size": vocab_size,
            "block_size": block_size,
            "n_layers": n_layers,
            "n_heads": n_heads,
            "dim": dim,
            "dropout": dropout,
            "n_unmasked": n_unmasked,
            "vocab_out": vocab_out,
        }
        self.block_size, self.n_heads, self.n_unmasked = block_size, n_heads, n_unmasked
        self.token_embedding = nn.Embedding(vocab_size, dim)
        self.position_embedding = nn.Parameter(torch.zeros(block_size, dim))
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(dim, n_heads, dropout) for _ in range(n_layers))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, vocab_out or vocab_size, bias=False)
        self.apply(_init_weights)

    def new_cache(self, batch: int, dtype: torch.dtype | None = None) -> KVCache:
        """Return an empty cache for ``batch`` sequences, by default in the type that attention runs in."""
        weight = self.head.weight
        if dtype is None:
            kind = weight.device.type
            dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        shape = (len(self.blocks), 2, batch, self.n_heads, self.block_size, weight.shape[1] // self.n_heads)
        return KVCache(torch.zeros(shape, dtype=dtype, device=weight.device))

    def forward(self, tokens: Tensor, cache: KVCache | None = None, logits_from: int = 0) -> Tensor:
        """Return logits (B, T, vocab_out) for the token after each of ``tokens`` (B, T).

        With a ``cache`` the tokens continue those already in it and are added to it (any T: a prefix at
        once, then one by one); no gradient is recorded. ``logits_from`` skips the head at earlier positions:
        -1 gives (B, 1, vocab_out) for the last one.

        Raises: BookError if the sequence gets longer than ``block_size``, if the cache is for another batch
        size, or if a condition of ``n_unmasked`` tokens reaches the cache in pieces.
        """
        start = 0 if cache is None else cache.length
        stop = start + tokens.shape[1]
        self._check(tokens, cache, stop)
        with torch.set_grad_enabled(torch.is_grad_enabled() and cache is None):
            x = self.drop(self.token_embedding(tokens) + self.position_embedding[start:stop])
            mask = None
            if self.n_unmasked or (start and len(tokens[0]) > 1):
                mask = attention_mask(start, stop, self.n_unmasked, tokens.device)
            for layer, block in enumerate(self.blocks):
                x = block(x, mask, layer, cache)
            if cache is not None:
                cache.length = stop
            return self.head(self.norm(x[:, logits_from:]))

    def _check(self, tokens: Tensor, cache: KVCache | None, stop: int) -> None:
        if stop > self.block_size:
            raise BookError(f"a sequence of {stop} tokens", f"at most block_size = {self.block_size}")
        if cache is None:
            return
        if cache.data.shape[2] != tokens.shape[0]:
            raise BookError(f"{tokens.shape[0]} sequences", f"{cache.data.shape[2]} as in the cache")
        if 0 < cache.length < self.n_unmasked:
            raise BookError(
                f"{cache.length} tokens in the cache", f"the whole condition of {self.n_unmasked} at once"
            )


def _init_weights(module: nn.Module) -> None:
    """Linear and embedding weights from N(0, 0.02), biases zero (Radford et al. 2019)."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return two optimiser groups that share out the parameters: weights of Linear layers decay, others not.

    Biases, norms and embeddings set scales and positions; pulling them to zero regularises nothing.
    """
    linear = [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
    chosen = {id(weight) for weight in linear}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [{"params": linear, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
