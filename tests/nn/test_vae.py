"""The autoencoder with a vector for an image: its Gaussian, its shapes, its loss."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from cvlib.errors import BookError
from cvlib.nn.vae import DiagonalGaussian, VectorAutoencoder, calibrated_nll


def test_kl_is_that_of_torch():
    moments = torch.randn(5, 12)
    q = DiagonalGaussian(moments)
    mean, log_variance = moments.chunk(2, 1)
    theirs = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(q.kl(), theirs)


def test_samples_have_the_moments_and_carry_gradients():
    moments = torch.tensor([[1.0, -2.0, math.log(0.25), math.log(4.0)]]).repeat(20_000, 1).requires_grad_()
    z = DiagonalGaussian(moments).sample(torch.Generator().manual_seed(0))
    torch.testing.assert_close(z.mean(0), torch.tensor([1.0, -2.0]), atol=0.05, rtol=0)
    torch.testing.assert_close(z.std(0), torch.tensor([0.5, 2.0]), atol=0.05, rtol=0)
    (grad,) = torch.autograd.grad(z.sum(), moments)
    torch.testing.assert_close(grad[:, :2], torch.ones(20_000, 2))
    torch.testing.assert_close(grad[:, 2:], (z - moments[:, :2]).detach() / 2)  # dz/dlog s^2 = s eps / 2


def test_log_variances_stay_within_the_limits():
    q = DiagonalGaussian(torch.tensor([[0.0, 0.0, -99.0, 99.0]], dtype=torch.bfloat16))
    assert (
        q.log_variance.tolist() == [[-30, 10]] and q.kl().isfinite().all() and q.mean.dtype == torch.float32
    )


@pytest.mark.parametrize(
    "side, widths, n_blocks", [(16, (8,), 0), (32, (8, 16, 8), 1), (64, (8, 8, 16, 16), 2)]
)
def test_shapes_and_gradients_reach_everything(side, widths, n_blocks):
    net = VectorAutoencoder(side, 6, widths, n_blocks)
    x = torch.rand(3, 3, side, side) * 2 - 1
    x_hat, q = net(x)
    assert x_hat.shape == x.shape and q.mean.shape == (3, 6)
    torch.testing.assert_close(net.decode(q.mean[:, :, None, None]), net.decode(q.mean))
    loss = calibrated_nll((x - x_hat).abs().mean((1, 2, 3)), net.log_variance, x[0].numel()) + q.kl().mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert net.decoder.last_layer.grad.abs().sum() > 0


def test_rows_do_not_see_each_other():
    net = VectorAutoencoder(16, 4, (8, 8)).eval()
    x = torch.randn(4, 3, 16, 16)
    torch.testing.assert_close(net.encode(x).mean[2:3], net.encode(x[2:3]).mean)


def test_the_learned_weight_finds_the_mean_error():
    error, lam = torch.tensor([0.02, 0.04]), torch.zeros((), requires_grad=True)
    optimizer = torch.optim.Adam([lam], lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        calibrated_nll(error, lam, 100).backward()
        optimizer.step()
    assert lam.item() == pytest.approx(math.log(0.03), abs=0.01)


@pytest.mark.parametrize("side, widths", [(64, ()), (48, (8,) * 5), (10, (8, 8))])
def test_widths_that_do_not_fit_are_told(side, widths):
    with pytest.raises(BookError, match=f"of {side} px"):
        VectorAutoencoder(side, 4, widths)


def test_an_image_of_another_size_is_told():
    with pytest.raises(BookError, match=r"\(2, 3, 8, 8\).*16, 16"):
        VectorAutoencoder(16, 4, (8,)).encode(torch.zeros(2, 3, 8, 8))


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_patches_keep_the_shape_and_see_every_pixel(patch):
    torch.manual_seed(0)
    net = VectorAutoencoder(side=16, dim=5, widths=(8, 8), patch=patch)
    x = torch.randn(2, 3, 16, 16, requires_grad=True)
    x_rec = net.decode(net.encode(x).mean)
    assert x_rec.shape == x.shape
    x_rec.square().sum().backward()
    assert (x.grad[0] != 0).all()
    assert (net.decode(torch.zeros(1, 5)) != net.decode(torch.ones(1, 5))).all()


def test_patches_must_divide_what_the_widths_halve():
    with pytest.raises(BookError, match="patches of 8"):
        VectorAutoencoder(side=16, dim=5, widths=(8, 8), patch=8)


def test_the_first_posterior_is_narrow():
    torch.manual_seed(0)
    q = VectorAutoencoder(side=16, dim=64, widths=(8, 16)).encode(torch.randn(4, 3, 16, 16).clamp(-1, 1))
    assert q.log_variance.mean() < -3
