from __future__ import annotations

import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.linear_model import LinearRegression

from cvlib.errors import BookError
from cvlib.nn.flow import SemanticFlow, factor_sizes, pair_loss

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
