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


def with_a_linear_path() -> VectorAutoencoder:
    torch.manual_seed(0)
    return VectorAutoencoder(16, 5, (8, 8), thumbnail=8)


def test_it_starts_as_principal_components():
    net, generator = with_a_linear_path(), torch.Generator().manual_seed(0)
    codes, basis = torch.randn(60, 12, generator=generator), torch.randn(12, 3 * 8 * 8, generator=generator)
    small = (codes * torch.linspace(3, 0.5, 12)) @ basis + 0.3
    images = small.unflatten(1, (3, 8, 8)).repeat_interleave(2, 2).repeat_interleave(2, 3)
    net.start_from(images)
    q = net.encode(images)
    torch.testing.assert_close(q.mean.mean(0), torch.zeros(5), atol=1e-3, rtol=0)
    torch.testing.assert_close(
        q.mean.T.cov() + q.log_variance[0].exp().diag(), torch.eye(5), atol=1e-3, rtol=0
    )
    _, s, v = torch.linalg.svd(small - small.mean(0), full_matrices=False)  # exact, not the randomised one
    noise = s[5] / 2  # half as noisy as the first that is left out
    left = (noise**2 / (s[:5] ** 2 + noise**2)).log()
    torch.testing.assert_close(q.log_variance[0], left, atol=1e-2, rtol=0)
    torch.manual_seed(1)
    again = net.decode(net.encode(images).sample())
    assert net.log_variance.exp().item() == pytest.approx((again - images).abs().mean().item(), rel=0.05)
    gain = s[:5] ** 2 / (s[:5] ** 2 + noise**2)  # the best guess of a component from its noisy value
    best = small.mean(0) + (small - small.mean(0)) @ v[:5].T @ gain.diag() @ v[:5]
    theirs = torch.nn.functional.interpolate(best.unflatten(1, (3, 8, 8)), scale_factor=2, mode="bilinear")
    torch.testing.assert_close(net.decode(q.mean), theirs, atol=1e-2, rtol=0)


def test_gradients_reach_a_network_that_starts_from_components():
    net = with_a_linear_path()
    net.start_from(torch.randn(20, 3, 16, 16))
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    for _ in range(
        2
    ):  # what was set to zero moves in the first step and lets gradients through in the second
        optimizer.zero_grad()
        x_hat, q = net(torch.randn(3, 3, 16, 16))
        (x_hat.square().sum() + q.kl().sum()).backward()
        optimizer.step()
    assert all(
        p.grad.abs().sum() > 0 for n, p in net.named_parameters() if n != "log_variance"
    )  # λ is the loss's


def test_components_that_cannot_be_had_are_told():
    with pytest.raises(BookError, match="without thumbnails"):
        VectorAutoencoder(16, 4, (8,)).start_from(torch.zeros(9, 3, 16, 16))
    with pytest.raises(BookError, match="5 images for 5 components"):
        with_a_linear_path().start_from(torch.zeros(5, 3, 16, 16))
    with pytest.raises(BookError, match="a frame, 8 features"):
        VectorAutoencoder(32, 8, (8,), thumbnail=16, framed=True)
    with pytest.raises(BookError, match="7 px for 16 px"):
        VectorAutoencoder(16, 4, (8,), thumbnail=7)


@torch.no_grad()
@pytest.mark.parametrize("framed", [False, True])
def test_the_first_numbers_are_a_code_too(framed):
    torch.manual_seed(0)
    net = VectorAutoencoder(32, 12, (8, 8), n_blocks=1, thumbnail=16, framed=framed).eval()
    z = torch.randn(3, 12)
    short = torch.cat([z[:, :9], torch.zeros(3, 3)], 1)
    torch.testing.assert_close(net.decode(z[:, :9]), net.decode(short))
    assert not torch.allclose(net.decode(z), net.decode(short), atol=1e-4)
    torch.testing.assert_close(net.decode(z[:, :, None, None]), net.decode(z))
    with pytest.raises(BookError, match=r"\(3, 13\).*\(B, 12\), or fewer"):
        net.decode(torch.randn(3, 13))


@torch.no_grad()
@pytest.mark.parametrize("framed", [False, True])
def test_the_first_numbers_can_have_an_autoencoder_of_their_own(framed):
    torch.manual_seed(0)
    whole = VectorAutoencoder(32, 12, (8, 8), n_blocks=1, thumbnail=16, framed=framed).eval()
    whole.encoder.log_variance.copy_(torch.linspace(-5, -1, 12))
    part, x = whole.first(9).eval(), torch.rand(4, 3, 32, 32) * 2 - 1
    assert part.config == {**whole.config, "dim": 9}
    of_part, of_whole = part.encode(x), whole.encode(x)
    torch.testing.assert_close(of_part.mean, of_whole.mean[:, :9])
    torch.testing.assert_close(of_part.log_variance, of_whole.log_variance[:, :9])
    torch.testing.assert_close(part.decode(of_part.mean), whole.decode(of_whole.mean[:, :9]))
    part.decoder.last.weight.add_(1)  # a copy, not a view
    torch.testing.assert_close(whole.first(9).decode(of_part.mean), whole.decode(of_whole.mean[:, :9]))
    with pytest.raises(BookError, match=r"first 13 numbers.*to 12 numbers"):
        whole.first(13)
    with pytest.raises(BookError, match="the first 0 numbers"):
        whole.first(0)
    with pytest.raises(BookError, match="linear code"):
        VectorAutoencoder(32, 12, (8, 8)).first(5)
