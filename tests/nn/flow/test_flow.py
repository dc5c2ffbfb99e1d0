from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from cvlib.errors import BookError
from cvlib.nn.flow import ConditionalFlow, MapEmbedder, VectorEmbedder

KINDS = [("none", "none"), ("vector", "none"), ("label", "none"), ("vector", "lrelu")]


@pytest.mark.parametrize("kind, activation", KINDS)
@pytest.mark.parametrize("dim", [6, 5])
def test_inverse_and_log_determinant(make_flow, logdet_of, kind, activation, dim):
    flow, x, cond = make_flow(dim, kind=kind, activation=activation)
    v, logdet = flow(x, cond)
    torch.testing.assert_close(flow.inverse(v, cond), x, rtol=0, atol=1e-10)
    for k in range(3):
        c = None if cond is None else cond[k : k + 1]
        seen = logdet_of(lambda row, c=c: flow(row, c)[0], x[k : k + 1])
        torch.testing.assert_close(logdet[k : k + 1], seen, rtol=0, atol=1e-8)


def test_density_integrates_to_one(make_flow):
    """A sum over a grid in two dimensions knows nothing of Jacobians."""
    flow, _, cond = make_flow(2, n=200)
    side = torch.linspace(-25, 25, 500).double()
    grid = torch.cartesian_prod(side, side)
    with torch.no_grad():
        p = flow.nll(grid, flow.project(cond[:1])).neg().exp()
    assert p.sum() * (side[1] - side[0]) ** 2 == pytest.approx(1, abs=1e-3)


@pytest.mark.slow
def test_after_a_thousand_steps_the_inverse_of_20_blocks_is_exact(logdet_of):
    """The gate of the book: 1e-4 in fp32, 1e-10 in fp64; log-determinants agree, with autograd too."""
    flow = ConditionalFlow(16, 64, depth=2, n_blocks=20, embedder=VectorEmbedder((4, 32, 8)))
    mix = torch.randn(16, 16)
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-3, betas=(0.5, 0.9), fused=True)
    losses = []
    for _ in range(1000):
        cond = torch.randn(16, 4)
        x = torch.tanh(torch.randn(16, 16) @ mix / 4 + cond.repeat(1, 4))
        losses.append(flow.nll(x, cond).mean())
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert sum(losses[-50:]) < sum(losses[:50]) - 50  # it learned more than a nat
    with torch.no_grad():
        v, logdet = flow(x, cond)
        assert (flow.inverse(v, cond) - x).abs().max() < 1e-4
        flow.double()
        x, cond = x.double(), cond.double()
        v64, logdet64 = flow(x, cond)
        assert (flow.inverse(v64, cond) - x).abs().max() < 1e-10
        torch.testing.assert_close(logdet.double(), logdet64, rtol=0, atol=1e-3)
        one = flow.project(cond[:1])
        drawn = torch.randn(256, 16, dtype=torch.float64)  # where samples come from
        assert (flow(flow.inverse(drawn, one), one)[0] - drawn).abs().max() < 1e-8
    seen = logdet_of(lambda row: flow(row, cond[:1])[0], x[:1])
    torch.testing.assert_close(logdet64[:1], seen, rtol=0, atol=1e-8)


def test_learns_a_gaussian_down_to_its_entropy():
    """x | c ~ N(A c, L L^T): no model can have a mean NLL below the entropy, and this one must reach it."""
    generator = torch.Generator().manual_seed(1)
    a, lower = torch.randn(4, 2, generator=generator), torch.tril(torch.randn(4, 4, generator=generator))
    lower.diagonal().abs_().add_(0.5)
    entropy = 2 * (1 + math.log(2 * math.pi)) + torch.linalg.slogdet(lower)[1].item()

    def draw(n):
        cond = torch.randn(n, 2)
        return torch.randn(n, 4) @ lower.T + cond @ a.T, cond

    flow = ConditionalFlow(4, 32, depth=1, n_blocks=4, embedder=VectorEmbedder((2, 16, 4)))
    optimizer = torch.optim.Adam(flow.parameters(), lr=5e-3, fused=True)
    for step in range(400):
        optimizer.param_groups[0]["lr"] = 5e-3 * (1 - step / 400)
        loss = flow.nll(*draw(256)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        x, cond = draw(20_000)
        gap = flow.nll(x, cond).mean().item() - entropy
        assert -0.03 < gap < 0.08  # sampling error of the mean: sqrt(2 / 20000) = 0.01
        one = torch.tensor([[1.0, -1.0]])
        samples = flow.sample(one, n=20_000)
    torch.testing.assert_close(samples.mean(0), (one @ a.T)[0], rtol=0, atol=0.25)
    cov = lower @ lower.T
    assert (torch.cov(samples.T) - cov).norm() < 0.15 * cov.norm()


def test_nll_of_the_identity_is_that_of_the_standard_normal():
    flow = ConditionalFlow(4, 8, n_blocks=2)
    flow(torch.randn(10, 4))
    with torch.no_grad():
        for block in flow.blocks:
            for p in block.coupling.parameters():
                p.zero_()
            block.norm.loc.zero_()
            block.norm.scale.fill_(1)
        x = torch.randn(7, 4)
        wanted = -torch.distributions.Normal(0, 1).log_prob(x).sum(1)
        torch.testing.assert_close(flow.nll(x), wanted)


def test_labels_equal_one_hot_vectors_and_a_cached_table(make_flow):
    flow, x, labels = make_flow(kind="label")
    by_rows = flow.project(labels)  # the embedder sees all B rows
    table = flow.project(torch.arange(3))
    assert len(by_rows) == 8 and len(table) == 3
    v, logdet = flow(x, labels)
    for c in (by_rows, table[labels]):
        torch.testing.assert_close(flow(x, c), (v, logdet))
        torch.testing.assert_close(flow.inverse(v, c), x)
    loss = flow.nll(x, labels).mean()
    for p, q in zip(
        torch.autograd.grad(loss, list(flow.parameters())),
        torch.autograd.grad(flow.nll(x, by_rows).mean(), list(flow.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(p, q)


def test_the_condition_matters(make_flow):
    for kind in ("vector", "label"):
        flow, x, cond = make_flow(kind=kind)
        assert (flow(x, cond)[0] - flow(x, cond.roll(1, 0))[0]).abs().max() > 1e-2


def test_one_condition_serves_all_samples(make_flow):
    flow, x, cond = make_flow()
    torch.testing.assert_close(flow(x, flow.project(cond[:1])), flow(x, cond[:1].expand(8, -1)))


def test_maps_as_conditions():
    flow = ConditionalFlow(6, 16, n_blocks=2, embedder=MapEmbedder(3, 8, 2, dim=4))
    x, z = torch.randn(5, 6), torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(flow.inverse(flow(x, z)[0], z), x, rtol=1e-4, atol=1e-5)


def test_round_trip_across_modes(make_flow):
    """Forward in training mode, back in evaluation mode: BatchNorm would not return."""
    flow, x, cond = make_flow()
    v, _ = flow.train()(x, cond)
    torch.testing.assert_close(flow.eval().inverse(v, cond), x)


def test_samples_repeat_and_temperature_zero_is_the_mode_of_v(make_flow):
    flow, _, cond = make_flow()
    first, second = (flow.sample(cond, generator=torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(first, second) and first.shape == (8, 6) and not first.requires_grad
    mode = flow.inverse(torch.zeros(8, 6).double(), cond)
    torch.testing.assert_close(flow.sample(cond, temperature=0.0), mode)
    many = flow.sample(cond[:1], n=5)
    assert many.shape == (5, 6) and many.std(0).min() > 0
    with pytest.raises(BookError, match="n = 5 with 8 conditions"):
        flow.sample(cond, n=5)


def test_precision_is_that_of_the_weights(make_flow):
    flow, x, cond = make_flow()
    flow.float()
    plain = flow(x.float(), cond.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        v, logdet = flow(x.float(), cond.float())
    assert v.dtype == logdet.dtype == torch.float32 and torch.equal(v, plain[0])


def test_a_reloaded_flow_gives_the_same_and_takes_a_batch_of_one(make_flow):
    flow, x, cond = make_flow()
    other = ConditionalFlow(6, 16, n_blocks=3, embedder=VectorEmbedder((5, 8, 4))).double()
    other.load_state_dict(flow.state_dict())
    torch.testing.assert_close(other.train()(x[:1], cond[:1]), flow(x[:1], cond[:1]))
    torch.testing.assert_close(other.inverse(x[:1], cond[:1]), flow.inverse(x[:1], cond[:1]))


@pytest.mark.parametrize("kind, dim, cond, n, millions", [
    ("invariances", 128, 128, 20, 188_999_680),
    ("SBERT to BigGAN", 268, 268, 24, 254_338_176),
    ("data biases", 128, 10, 20, 179_333_120),
    ("semantic", 128, 0, 12, 28_391_424),
])  # fmt: skip
def test_sizes_of_the_papers(count, kind, dim, cond, n, millions):
    class Given(nn.Module):
        dim = cond

    with torch.device("meta"):
        width = 512 if kind == "semantic" else 1024
        flow = ConditionalFlow(dim, width, n_blocks=n, embedder=Given() if cond else None)
    assert count(flow) == millions


def test_wrong_shapes_are_refused(make_flow):
    flow, x, cond = make_flow()
    with pytest.raises(BookError, match=r"condition \(8, 4\); wanted \(B, 5\)"):
        flow(x, cond[:, :4])
    with pytest.raises(BookError, match=r"latents \(8, 5\); wanted \(B, 6\)"):
        flow(x[:, :5], cond)
    with pytest.raises(BookError, match=r"latents \(48,\)"):
        flow.inverse(x.flatten(), cond)
    with pytest.raises(BookError, match="3 conditions for 8 samples"):
        flow.inverse(x, cond[:3])
    with pytest.raises(BookError, match="no condition"):
        flow(x)
    flow, x, _ = make_flow(kind="none")
    with pytest.raises(BookError, match="unconditional"):
        flow(x, cond)
    with pytest.raises(BookError, match="labels from 3 to 3; wanted 0 to 2"):
        make_flow(kind="label")[0](x, torch.full((8,), 3))


def test_an_unknown_activation_is_refused():
    with pytest.raises(BookError, match="activation 'relu'"):
        ConditionalFlow(4, 8, activation="relu")


def test_first_batch_of_one_and_inverse_without_one_are_refused():
    flow = ConditionalFlow(4, 8, n_blocks=2)
    with pytest.raises(BookError, match="at least 2, to know a variance"):
        flow(torch.randn(1, 4))
    with pytest.raises(BookError, match="before its first batch"):
        flow.sample(n=3)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_latents_that_are_not_finite_are_named(make_flow, bad):
    flow, x, cond = make_flow()
    x[[2, 5], 1] = bad
    with pytest.raises(BookError, match=r"x is not finite in row\(s\) \[2, 5\]"):
        flow(x, cond)
    with pytest.raises(BookError, match=r"v is not finite in row\(s\) \[2, 5\]"):
        flow.inverse(x, cond)


def test_a_singular_actnorm_is_named(make_flow):
    flow, x, cond = make_flow()
    with torch.no_grad():
        flow.blocks[1].norm.scale[3] = 0
    for direction in (flow, flow.inverse):
        with pytest.raises(BookError, match="block 1 has an ActNorm of scale 0"):
            direction(x, cond)


def test_broken_weights_are_told_from_broken_latents(make_flow):
    flow, x, cond = make_flow()
    with torch.no_grad():
        flow.blocks[0].coupling.first.weight1[0, 0, 0] = math.nan
    with pytest.raises(BookError, match="left the finite numbers"):
        flow(x, cond)
