from __future__ import annotations

import math

import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from cvlib.errors import BookError
from cvlib.metrics import bits_per_dimension, psnr, ssim


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(3, 3, 24, 31, generator=generator) * 2 - 1
    noise = torch.randn(x.shape, generator=generator) * torch.tensor([0.05, 0.2, 0.6]).view(3, 1, 1, 1)
    return x, (x + noise).clamp(-1, 1)


def test_psnr_is_scikit_images(pair):
    x, y = pair
    peer = [peak_signal_noise_ratio(a.numpy(), b.numpy(), data_range=2) for a, b in zip(x, y, strict=True)]
    torch.testing.assert_close(psnr(x, y), torch.tensor(peer, dtype=torch.float32), rtol=1e-5, atol=1e-4)
    assert psnr(x, x).isinf().all()


def test_ssim_is_scikit_images(pair):
    x, y = pair
    peer = [
        structural_similarity(
            a.double().numpy(), b.double().numpy(), data_range=2, channel_axis=0,
            gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        )
        for a, b in zip(x, y, strict=True)
    ]  # fmt: skip
    torch.testing.assert_close(ssim(x, y), torch.tensor(peer, dtype=torch.float32), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ssim(x[:1], x[:1]), torch.ones(1))


def test_bits_of_a_uniform_code():
    # 64 tokens of 256 equally likely codes are 512 bits, whatever the picture's size
    assert bits_per_dimension(math.log(256), 64, 3 * 32 * 32) == pytest.approx(512 / 3072)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_wrong_images_are_refused(metric):
    x = torch.zeros(2, 3, 16, 16)
    with pytest.raises(BookError, match=r"\(2, 3, 16, 16\) and \(1, 3, 16, 16\)"):
        metric(x, x[:1])
    with pytest.raises(BookError, match="values up to 255"):
        metric(x, x + 255)
    with pytest.raises(BookError, match=r"\[-1, 1\]"):
        metric(x, x + torch.nan)


def test_ssim_needs_a_window():
    with pytest.raises(BookError, match="8 x 16 pixels"):
        ssim(torch.zeros(1, 3, 16, 8), torch.zeros(1, 3, 16, 8))
