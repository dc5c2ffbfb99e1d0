from __future__ import annotations

import copy

import pytest
import torch

from cvlib.errors import BookError
from cvlib.nn.flow import ActNorm


@pytest.mark.parametrize("shape", [(50, 4), (20, 4, 3, 5)])
def test_first_batch_becomes_standard_and_the_second_changes_nothing(shape):
    norm, x = ActNorm(4), 3 * torch.randn(shape) + 7
    y, _ = norm(x)
    rows = y.transpose(0, 1).flatten(1)
    torch.testing.assert_close(rows.mean(1), torch.zeros(4), rtol=0, atol=1e-5)
    torch.testing.assert_close(rows.std(1), torch.ones(4), rtol=1e-4, atol=0)
    before = norm.loc.clone(), norm.scale.clone()
    norm(torch.randn(shape))
    assert torch.equal(before[0], norm.loc) and torch.equal(before[1], norm.scale)


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 2, 1)])
def test_inverse_and_log_determinant(shape, logdet_of):
    norm = ActNorm(4).double()
    norm(3 * torch.randn(30, 4).double() - 2)
    with torch.no_grad():
        norm.scale[1].neg_()  # training may turn a sign
    x = torch.randn(shape).double()
    y, log_diag = norm(x)
    torch.testing.assert_close(norm.inverse(y), x)
    flat = logdet_of(lambda v: norm(v.view(-1, *shape[1:]))[0].flatten(1), x.flatten(1))
    torch.testing.assert_close(log_diag.sum().expand(3), flat)


def test_not_run_again_after_loading_or_copying():
    trained, x = ActNorm(3), torch.randn(10, 3) * 5 + 1
    trained(x)
    loaded = ActNorm(3)
    loaded.load_state_dict(trained.state_dict())
    for norm in (loaded, copy.deepcopy(trained)):
        norm.train()
        y, _ = norm(100 * x[:1])  # one row, far away: a new start would fail or change the scale
        assert torch.equal(y, trained(100 * x[:1])[0])


def test_loading_a_fresh_state_starts_again():
    norm, fresh = ActNorm(3), ActNorm(3).state_dict()
    norm(torch.randn(10, 3) * 5)
    norm.load_state_dict(fresh)
    assert not norm.is_initialized
    assert norm(torch.randn(10, 3) * 9)[0].std().item() == pytest.approx(1, abs=0.2)


def test_a_batch_of_one_is_refused_first_and_served_later():
    norm = ActNorm(3)
    with pytest.raises(BookError, match=r"first batch of 1 value.*at least 2.*larger batch"):
        norm(torch.randn(1, 3))
    assert not norm.is_initialized and torch.equal(norm.scale, torch.ones(3))
    norm(torch.randn(1, 3, 2, 2))  # four values a feature
    assert norm(torch.randn(1, 3))[0].isfinite().all()


def test_nothing_happens_before_the_first_batch():
    norm = ActNorm(3)
    with pytest.raises(BookError, match="before its first batch"):
        norm.inverse(torch.randn(4, 3))
    with pytest.raises(BookError, match="before its first batch"):
        norm.eval()(torch.randn(4, 3))  # validation data must not decide the scale


def test_a_feature_that_does_not_vary_keeps_its_scale():
    norm, x = ActNorm(3), torch.randn(10, 3)
    x[:, 1] = 0.1
    y, log_diag = norm(x)
    assert norm.scale[1] == 1 and log_diag[1] == 0
    torch.testing.assert_close(y[:, 1], torch.zeros(10), rtol=0, atol=1e-7)
    assert y[:, [0, 2]].std(0).tolist() == pytest.approx([1, 1], abs=1e-4)
