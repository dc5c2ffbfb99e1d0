"""FrEIA's version of a flow with the same weights: RNVPCouplingBlock has separate nets S and T, as ours.

Run as a script it prints how many times as fast ours is: CPU time of one thread, both in turn.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from itertools import pairwise

import FrEIA.framework as ff
import FrEIA.modules as fm
import torch
from torch import Tensor, nn

from cvlib.nn.flow import ConditionalFlow, LabelEmbedder, Projection, TwinNets, VectorEmbedder


def copy_net(twin: TwinNets, which: int, cond_weight: Tensor, cond_bias: Tensor, net: nn.Sequential) -> None:
    """Write S (0) or T (1) of ``twin`` into the Linear layers of ``net``."""
    linear = [layer for layer in net if isinstance(layer, nn.Linear)]
    weights = [p[which] if twin.is_wide else p[which].T for k, p in twin.named_parameters() if "weight" in k]
    biases = [p[which, 0] for k, p in twin.named_parameters() if "bias" in k]
    linear[0].weight.copy_(torch.cat([weights[0], cond_weight.T], dim=1))
    linear[0].bias.copy_(cond_bias[0])
    for layer, weight, bias in zip(linear[1:], weights[1:], biases, strict=True):
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)


class FreiaFlow(nn.Module):
    """``flow`` (even width, no activation) in FrEIA; its halves lie the other way round there."""

    def __init__(self, flow: ConditionalFlow) -> None:
        super().__init__()
        dim, width, depth = (flow.config[key] for key in ("dim", "width", "depth"))
        half = dim // 2
        self.swap = torch.arange(dim).roll(half)
        cond = {} if flow.embedder is None else {"cond": 0, "cond_shape": (flow.embedder.dim,)}
        self.inn = ff.SequenceINN(dim)

        def net(n_in: int, n_out: int) -> nn.Sequential:
            sizes = [n_in, *[width] * (depth + 1), n_out]
            layers: list[nn.Module] = []
            for i, (before, after) in enumerate(pairwise(sizes)):
                layers += [nn.LeakyReLU(0.01)] * (i > 0) + [nn.Linear(before, after)]
            return nn.Sequential(*layers)

        for i, block in enumerate(flow.blocks):
            self.inn.append(fm.ActNorm)
            self.inn.append(
                fm.RNVPCouplingBlock, subnet_constructor=net, clamp=1.0, clamp_activation="TANH", **cond
            )
            self.inn.append(fm.PermuteRandom)
            norm, coupling, shuffle = self.inn[3 * i : 3 * i + 3]
            weight, bias = flow.cond_weight[4 * i : 4 * i + 4], flow.cond_bias[4 * i : 4 * i + 4]
            with torch.no_grad():
                norm.init_on_next_batch = False
                norm.scale.copy_(block.norm.scale[self.swap].log())
                norm.bias.copy_((block.norm.loc * block.norm.scale)[self.swap])
                nets = [coupling.subnet_s2, coupling.subnet_t2, coupling.subnet_s1, coupling.subnet_t1]
                for j, net_ in enumerate(nets):
                    twin = block.coupling.first if j < 2 else block.coupling.second
                    copy_net(twin, j % 2, weight[j], bias[j], net_)
                is_last = i == len(flow.blocks) - 1
                order = block.shuffle.order if is_last else block.shuffle.order[self.swap]
                shuffle.perm.copy_(order)
                shuffle.perm_inv.copy_(order.argsort())

    def forward(self, x: Tensor, h: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return v and log|det|, as ours does; ``h`` is the embedded condition."""
        return self.inn(x[:, self.swap], None if h is None else [h])

    def inverse(self, v: Tensor, h: Tensor | None = None) -> Tensor:
        return self.inn(v, None if h is None else [h], rev=True)[0][:, self.swap]


def race(ours: Callable[[], object], peer: Callable[[], object], rounds: int, calls: int = 1) -> float:
    """Return the median over rounds of peer's CPU time / ours, both in turn.

    Five rounds go before: in the first ones of a training the memory allocator still asks for pages.
    """
    ratios = []
    for i in range(rounds + 5):
        seconds = []
        for call in (ours, peer):
            start = time.process_time()
            for _ in range(calls):
                call()
            seconds.append(time.process_time() - start)
        if i >= 5:
            ratios.append(seconds[1] / seconds[0])
    return statistics.median(ratios)


def train_step(
    flow: nn.Module, x: Tensor, cond: Callable[[], Tensor], params: list[Tensor]
) -> Callable[[], None]:
    """Return a call: forward, backward, one step of Adam in its fused form, the faster one for either."""
    optimizer = torch.optim.Adam(params, lr=1e-5, betas=(0.5, 0.9), fused=True)

    def step() -> None:
        v, logdet = flow(x, cond())
        optimizer.zero_grad()
        (v.square().sum(1) / 2 - logdet).mean().backward()
        optimizer.step()

    return step


def compare(batch: int, dim: int, width: int, n_blocks: int, labels: int = 0, rounds: int = 7) -> str:
    """Return a line: how many times as fast ours is forward, back and in a training step.

    With ``labels`` classes ours takes the cached projection of each; the peer embeds those of the batch.
    """
    flow = ConditionalFlow(dim, width, n_blocks=n_blocks, embedder=embedder_for(dim, labels))
    embed = flow.embedder
    cond = torch.arange(batch) % labels if labels else torch.randn(batch, dim)
    x = torch.randn(batch, dim)
    flow(torch.randn(32, dim), torch.arange(32) % labels if labels else torch.randn(32, dim))
    peer = FreiaFlow(flow)
    ours_step = train_step(flow, x, lambda: cond, list(flow.parameters()))
    peer_params = [p for p in peer.parameters() if p.requires_grad] + list(embed.parameters())
    peer_step = train_step(peer, x, lambda: embed(cond), peer_params)
    with torch.no_grad():
        torch.testing.assert_close(flow(x, cond), peer(x, embed(cond)), rtol=1e-5, atol=1e-5)
        table = flow.project(torch.arange(labels)) if labels else None

        def given() -> Tensor | Projection:
            return cond if table is None else table[cond]

        forward = race(lambda: flow(x, given()), lambda: peer(x, embed(cond)), rounds)
        inverse = race(lambda: flow.inverse(x, given()), lambda: peer.inverse(x, embed(cond)), rounds)
    step = race(ours_step, peer_step, rounds)
    name = f"batch {batch}, dim {dim}, width {width}, {n_blocks} blocks" + f", {labels} labels" * bool(labels)
    return f"{name}: forward {forward:.2f}, inverse {inverse:.2f}, step {step:.2f}"


def embedder_for(dim: int, labels: int = 0) -> VectorEmbedder:
    """Return the published form of H: two more layers of width 256; labels become 10 numbers."""
    return LabelEmbedder((labels, 256, 256, 256, 10)) if labels else VectorEmbedder((dim, 256, 256, 256, dim))


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    cases = [(1, 32, 64, 20), (16, 32, 64, 20), (16, 64, 128, 20), (16, 64, 256, 20), (1, 64, 256, 20)]
    cases += [(16, 64, 256, 6), (64, 64, 256, 5), (256, 64, 256, 3), (16, 128, 1024, 3), (256, 128, 1024, 1)]
    for case in cases:
        print(compare(*case), flush=True)
    for case in ((16, 16, 64, 20), (16, 32, 64, 20), (16, 64, 128, 20), (16, 64, 256, 20), (256, 32, 64, 5)):
        print(compare(*case, labels=3), flush=True)
