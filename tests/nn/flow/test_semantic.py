from __future__ import annotations

import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.linear_model import LinearRegression

from cvlib.errors import BookError
from cvlib.nn.flow import LinearFactors, SemanticFlow, factor_sizes, pair_loss

SIZES = (2, 1, 3)


def factors(n):
    return torch.randn(n, sum(SIZES)).double().split(SIZES, dim=1)


@pytest.mark.parametrize("sigma", [0.3, 0.975])
def test_pair_loss_is_the_joint_density_of_correlated_gaussians(sigma):
    e_a, e_b, shared = factors(5), factors(5), torch.tensor([0, 1, 2, 2, 1])
    seen = pair_loss(e_a, e_b, shared, sigma)
    for k in range(5):
        wanted = 0.0
        for i, size in enumerate(SIZES):
            rho = sigma if i == shared[k] else 0.0
            cov = torch.eye(2 * size)
            cov[:size, size:] = cov[size:, :size] = rho * torch.eye(size)
            both = torch.cat([e_a[i][k], e_b[i][k]])
            density = multivariate_normal(cov=cov.numpy())
            wanted += density.logpdf(torch.zeros(2 * size)) - density.logpdf(both)
        assert seen[k].item() == pytest.approx(wanted)


def test_several_shared_factors():
    e_a, e_b = factors(4), factors(4)
    one = torch.nn.functional.one_hot(torch.tensor([2, 0, 1, 1]), 3).bool()
    torch.testing.assert_close(pair_loss(e_a, e_b, one), pair_loss(e_a, e_b, torch.tensor([2, 0, 1, 1])))
    none = pair_loss(e_a, e_b, torch.zeros(4, 3, dtype=torch.bool))
    torch.testing.assert_close(none, sum(e.square().sum(1) for e in (*e_a, *e_b)) / 2)


def test_the_flow_adds_its_log_determinants(logdet_of):
    flow = SemanticFlow(SIZES, width=8, n_blocks=2).double()
    x_a, x_b, shared = torch.randn(5, 6).double(), torch.randn(5, 6).double(), torch.tensor([0, 1, 2, 0, 1])
    seen = flow.pair_loss(x_a, x_b, shared)
    logdet = sum(logdet_of(lambda x: flow.flow(x)[0], x) for x in (x_a, x_b))
    torch.testing.assert_close(seen, pair_loss(flow(x_a)[0], flow(x_b)[0], shared) - logdet)


def test_swapping_a_factor_and_back():
    flow = SemanticFlow(SIZES, width=8, n_blocks=3).double()
    x, other = torch.randn(5, 6).double(), torch.randn(5, 6).double()
    (e_0, e_1, e_2), _ = flow(x)
    torch.testing.assert_close(flow.inverse((e_0, e_1, e_2)), x)
    edited = flow.inverse((e_0, flow(other)[0][1], e_2))
    assert (edited - x).abs().max() > 1e-3
    (_, new, kept), _ = flow(edited)
    torch.testing.assert_close(new, flow(other)[0][1])
    torch.testing.assert_close(kept, e_2)


def test_pairs_teach_which_factor_is_which():
    """Two hidden sources, mixed; pairs share one of them. Each must end in its factor and in no other."""
    mix = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(2)))[0]

    def draw(n):
        a, b, shared = torch.randn(n, 4), torch.randn(n, 4), torch.randint(1, 3, (n,))
        b[shared == 1, 0] = a[shared == 1, 0]
        b[shared == 2, 1] = a[shared == 2, 1]
        return a @ mix, b @ mix, shared, a

    flow = SemanticFlow((2, 1, 1), width=16, n_blocks=4, depth=1)
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2, fused=True)
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / 300)
        x_a, x_b, shared, _ = draw(128)
        loss = flow.pair_loss(x_a, x_b, shared, 0.9).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        x, _, _, source = draw(3000)
        (_, e_1, e_2), _ = flow(x)

    def explained(e, i):
        return LinearRegression().fit(e.numpy(), source[:, i].numpy()).score(e.numpy(), source[:, i].numpy())

    assert min(explained(e_1, 0), explained(e_2, 1)) > 0.7
    assert max(explained(e_1, 1), explained(e_2, 0)) < 0.1


def test_sizes_follow_what_pairs_share():
    shared = torch.randn(4000, 20)
    alike = (shared, shared + 1)  # covariance = variance: score 1
    strangers = (torch.randn(4000, 20), torch.randn(4000, 20))  # score near 0
    # softmax of (1, 1, 0) is (.422, .422, .155)
    assert factor_sizes([alike, strangers]) == [9, 8, 3]
    with pytest.raises(BookError, match="2 features for 2 concepts"):
        factor_sizes([tuple(x[:, :2] for x in pair) for pair in (alike, strangers)])


def test_mistakes_are_refused():
    e = factors(2)
    with pytest.raises(BookError, match="factors from 0 to 3; wanted 0 to 2"):
        pair_loss(e, e, torch.tensor([0, 3]))
    with pytest.raises(BookError, match=r"sigma_ab 1\.0"):
        pair_loss(e, e, torch.tensor([0, 1]), 1.0)
    with pytest.raises(BookError, match=r"\(2, 0\)"):
        SemanticFlow((2, 0))
    flow = SemanticFlow(SIZES, width=8, n_blocks=1)
    with pytest.raises(BookError, match=r"\[2, 3, 1\]; wanted \[2, 1, 3\]"):
        flow.inverse([torch.randn(4, s) for s in (2, 3, 1)])


def mixed_pairs(n=4000):
    """Eight numbers behind an invertible matrix; pairs share numbers 0 and 1, or number 5."""
    chance = torch.Generator().manual_seed(3)
    mixing = torch.randn(8, 8, generator=chance).double()

    def pair(shared):
        a, b = torch.randn(2, n, 8, generator=chance).double()
        b[:, shared] = a[:, shared]
        return a @ mixing.T, b @ mixing.T

    return mixing, [pair([0, 1]), pair([5])]


def test_linear_factors_are_the_numbers_that_pairs_share():
    mixing, pairs = mixed_pairs()
    start = LinearFactors(pairs).double()
    assert start.sizes == [5, 2, 1]
    hidden = torch.randn(3000, 8).double()
    e, logdet = start(hidden @ mixing.T)
    for block, known in ((e[:, 5:7], hidden[:, :2]), (e[:, 7:], hidden[:, 5:6])):
        assert LinearRegression().fit(known, block).score(known, block) > 0.98
        others = hidden[:, [2, 3, 4, 6, 7]]
        assert LinearRegression().fit(others, block).score(others, block) < 0.02
    torch.testing.assert_close(e.T.cov(), torch.eye(8).double(), atol=0.12, rtol=0)
    jacobian = torch.autograd.functional.jacobian(lambda x: start(x[None])[0][0], hidden[0])
    torch.testing.assert_close(jacobian.slogdet().logabsdet, logdet[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(start.inverse(e), hidden @ mixing.T, atol=1e-10, rtol=0)


def test_a_factor_that_no_direction_belongs_to_is_told():
    _, pairs = mixed_pairs(400)
    strangers = tuple(torch.randn(2, 400, 8).double())
    with pytest.raises(BookError, match=r"no direction that pairs of factor 3 agree on by more than 0\.5"):
        LinearFactors([*pairs, strangers])


def test_a_flow_begins_where_its_start_ends(logdet_of):
    """Random couplings are near the identity: blocks come out where they came in. And back; one Jacobian."""
    mixing, pairs = mixed_pairs()
    start = LinearFactors(pairs).double()
    flow = SemanticFlow(start.sizes, width=16, n_blocks=5, start=start).double()
    x = torch.randn(500, 8).double() @ mixing.T
    with torch.no_grad():
        (_, first, second), logdet = flow(x)
        linear = start(x)[0]
    for seen, known in ((first, linear[:, 5:7]), (second, linear[:, 7:])):
        assert LinearRegression().fit(known, seen).score(known, seen) > 0.8
    torch.testing.assert_close(flow.inverse(flow(x)[0]), x, atol=1e-9, rtol=0)
    wanted = logdet_of(lambda some: torch.cat(flow(some)[0], 1), x[:5])
    torch.testing.assert_close(logdet[:5], wanted.detach(), atol=1e-6, rtol=0)
    with pytest.raises(BookError, match="a start with factors of sizes"):
        SemanticFlow([4, 3, 1], width=8, n_blocks=1, start=start)


def test_a_start_out_of_a_file_has_its_own_jacobian_and_keeps_its_type_under_autocast():
    _, pairs = mixed_pairs()
    start, other = LinearFactors(pairs), LinearFactors([tuple(3 * x for x in pair) for pair in pairs])
    x = torch.randn(4, 8)
    assert (start(x)[1] - other(x)[1]).abs().min() > 1
    other.load_state_dict(start.state_dict())
    torch.testing.assert_close(other(x), start(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(start(x), other(x), atol=0, rtol=0)
        torch.testing.assert_close(start.inverse(start(x)[0]), x, atol=1e-4, rtol=0)
