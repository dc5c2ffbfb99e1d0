"""The linear guess is what linear algebra says it is, and leaves the flow as invertible as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cvlib.errors import BookError
from cvlib.nn.flow import ConditionalFlow, LinearGuess, Projection, VectorEmbedder


def correlated(n: int, dim_in: int, dim: int, noise: float = 0.1):
    """Conditions (n, dim_in) of unequal scales and noisy samples (n, dim) that are linear in them."""
    g = torch.Generator().manual_seed(0)
    c = torch.randn(n, dim_in, generator=g, dtype=torch.float64) * torch.linspace(0.5, 2, dim_in) + 1
    w = torch.randn(dim_in, dim, generator=g, dtype=torch.float64)
    return c, c @ w - 3 + noise * torch.randn(n, dim, generator=g, dtype=torch.float64)


def with_guess(flow: ConditionalFlow, c, x) -> ConditionalFlow:
    """The flow with a guess that was fitted to the samples."""
    flow.guess = LinearGuess(c.shape[1], x.shape[1]).double()
    flow.guess.fit(c, x)
    return flow


def test_without_a_penalty_it_is_least_squares():
    c, x = correlated(200, 5, 3)
    guess = LinearGuess(5, 3).double()
    guess.fit(c, x, strength=0.0)
    design = np.hstack([c.numpy(), np.ones((200, 1))])
    best = np.linalg.lstsq(design, x.numpy(), rcond=None)[0]
    np.testing.assert_allclose(guess(c).detach().numpy(), design @ best, atol=1e-8)


def test_the_penalty_is_that_of_the_normal_equations_and_knows_no_scale():
    c, x = correlated(60, 5, 3)
    a, b = c - c.mean(0), x - x.mean(0)
    penalty = 0.2 * 60 * a.square().mean() * torch.eye(5, dtype=torch.float64)
    wanted = a @ torch.linalg.solve(a.T @ a + penalty, a.T @ b) + x.mean(0)
    for scale in (1.0, 1000.0):
        guess = LinearGuess(5, 3).double()
        guess.fit(scale * c, x, strength=0.2)
        torch.testing.assert_close(guess(scale * c), wanted)


def test_before_its_fit_it_changes_nothing(make_flow):
    flow, x, cond = make_flow()
    before = flow(x, cond)
    flow.guess = LinearGuess(5, 6).double()
    assert (flow.guess(cond) == 0).all()
    torch.testing.assert_close(flow(x, cond), before, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["vector", "label"])
def test_forward_inverse_and_determinant_with_a_guess(make_flow, logdet_of, kind):
    flow, x, cond = make_flow(kind=kind, n=6)
    known = cond if kind == "vector" else torch.eye(3, dtype=torch.float64)[cond]
    plain, _ = flow(x - 2 * known[:, :1], cond)
    flow.guess = LinearGuess(known.shape[1], 6).double()
    with torch.no_grad():
        flow.guess.linear.weight[:, 0] = 2.0  # twice the first entry, in all dimensions
    v, logdet = flow(x, cond)
    torch.testing.assert_close(v, plain)
    torch.testing.assert_close(flow.inverse(v, cond), x, rtol=0, atol=1e-10)
    one = flow.project(cond[:1])
    torch.testing.assert_close(logdet_of(lambda y: flow(y, one)[0], x[:1])[0], logdet[0])


@pytest.mark.parametrize("kind", ["vector", "label"])
def test_a_cached_projection_carries_the_guess(make_flow, kind):
    flow, x, cond = make_flow(kind=kind)
    flow.guess = LinearGuess(5 if kind == "vector" else 3, 6).double()
    torch.nn.init.normal_(flow.guess.linear.weight)
    table = flow.project(cond if kind == "vector" else torch.arange(3))
    order = torch.arange(7, -1, -1) if kind == "vector" else cond
    given = cond[order] if kind == "vector" else cond
    torch.testing.assert_close(flow(x, table[order]), flow(x, given))
    torch.testing.assert_close(flow.inverse(x, table[order]), flow.inverse(x, given))
    one = flow.project(cond[:1])
    draws = [flow.sample(c, n=4, generator=torch.Generator().manual_seed(1)) for c in (one, cond[:1])]
    torch.testing.assert_close(*draws)


def test_a_flow_that_starts_at_the_guess_is_ahead_from_the_first_batch():
    c, x = correlated(2000, 5, 6)

    def start(guess: bool) -> float:
        torch.manual_seed(0)
        flow = ConditionalFlow(6, 16, n_blocks=2, embedder=VectorEmbedder((5, 8, 4))).double()
        flow = with_guess(flow, c[:1000], x[:1000]) if guess else flow
        with torch.no_grad():
            flow(x[:1000], c[:1000])
            return flow.eval().nll(x[1000:], c[1000:]).mean().item()

    entropy = 6 * (0.5 * np.log(2 * np.pi * np.e) + np.log(0.1))  # of what the condition leaves open
    assert entropy < start(True) < entropy + 1.5 < start(False) - 6


def test_it_learns_on_with_the_flow_and_travels_with_its_weights(make_flow):
    flow, x, cond = make_flow()
    with_guess(flow, cond, x)
    flow.nll(x, cond).mean().backward()
    assert flow.guess.linear.weight.grad.abs().sum() > 0
    other, _, _ = make_flow()
    other.guess = LinearGuess(5, 6).double()
    other.load_state_dict(flow.state_dict())
    torch.testing.assert_close(other(x, cond), flow(x, cond), rtol=0, atol=0)


def test_maps_are_taken_entry_by_entry():
    guess = LinearGuess(2 * 3 * 3, 4)
    torch.nn.init.normal_(guess.linear.weight)
    maps = torch.randn(5, 2, 3, 3)
    torch.testing.assert_close(guess(maps), maps.flatten(1) @ guess.linear.weight.T)


def test_refusals(make_flow):
    guess = LinearGuess(5, 6)
    with pytest.raises(BookError, match=r"\(2, 4\).*floating, 5 numbers"):
        guess(torch.zeros(2, 4))
    with pytest.raises(BookError, match="int64"):
        guess(torch.zeros(2, 5, dtype=torch.long))
    with pytest.raises(BookError, match="3 conditions for 4 samples"):
        guess.fit(torch.zeros(3, 5), torch.zeros(4, 6))
    with pytest.raises(BookError, match="not finite"):
        guess.fit(torch.full((4, 5), torch.nan), torch.zeros(4, 6))
    assert (guess.linear.weight == 0).all()
    with pytest.raises(BookError, match="guess without an embedder"):
        ConditionalFlow(6, 16, n_blocks=2, guess=guess)
    flow, x, cond = make_flow()
    bare = flow.project(cond)
    flow.guess = guess.double()
    with pytest.raises(BookError, match=r"no guess.*one of 6"):
        flow(x, bare)
    with pytest.raises(BookError, match="a guess of 4 numbers"):
        flow(x, Projection(bare.data, torch.zeros(8, 4).double()))
    flow.guess = None
    with pytest.raises(BookError, match=r"a guess of 6 numbers.*none"):
        flow.inverse(x, Projection(bare.data, torch.zeros(8, 6).double()))
