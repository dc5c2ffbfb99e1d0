from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from cvlib.nn.refining import LinearEncoder, RefiningDecoder, enlarge, shrink


def pictures(n=3, side=16):
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_the_mean_is_linear_in_the_picture():
    torch.manual_seed(0)
    encoder, x = LinearEncoder(6, 8), pictures(2)
    zero = encoder(torch.zeros(1, 3, 16, 16)).mean
    a, b, both = (encoder(p[None]).mean - zero for p in (x[0], x[1], 0.3 * x[0] + 2 * x[1]))
    torch.testing.assert_close(both, 0.3 * a + 2 * b)
    assert (encoder(x).log_variance == encoder.log_variance).all()


def test_shrinking_is_the_mean_of_squares_and_enlarging_keeps_planes():
    x = pictures(2, 8)
    torch.testing.assert_close(shrink(x, 4)[:, :, 1, 2], x[:, :, 2:4, 4:6].mean((2, 3)))
    slope = torch.arange(4.0).expand(1, 3, 4, 4)
    torch.testing.assert_close(enlarge(slope, 8)[0, 0, 0, 1:-1].diff(), torch.full((5,), 0.5))


@pytest.mark.parametrize("widths", [(8,), (8, 16), (8, 8, 16)])
def test_without_refinement_it_paints_the_linear_picture_enlarged(widths):
    torch.manual_seed(0)
    decoder, z = RefiningDecoder(32, 5, 16, widths, n_blocks=1), torch.randn(2, 5)
    for parameter in decoder.last.parameters():
        torch.nn.init.zeros_(parameter)
    small = (z @ decoder.linear.weight.T + decoder.linear.bias).view(2, 3, 16, 16)
    wanted = F.interpolate(small, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(decoder(z), wanted)


def test_refinement_sees_around_each_pixel_and_reaches_every_parameter():
    torch.manual_seed(0)
    decoder = RefiningDecoder(32, 5, 16, (8, 16), n_blocks=1)
    decoder(torch.randn(2, 5)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in decoder.parameters())
    assert decoder.last_layer is decoder.last.weight


def test_it_learns_to_sharpen_what_the_linear_picture_smears():
    """Random half planes: the network must find the edge that a coarse picture blurs."""
    torch.manual_seed(0)
    side, n = 16, 256
    angle, place = torch.rand(2, n, 1, 1) * torch.tensor([6.28, 6.0]).view(2, 1, 1, 1)
    grid = torch.arange(side) - side / 2 + 0.5
    edge = angle.cos() * grid[None, :, None] + angle.sin() * grid[None, None, :] - place + 3
    x = torch.where(edge > 0, 1.0, -1.0)[:, None].expand(-1, 3, -1, -1)
    decoder = RefiningDecoder(side, 3 * 16, 4, (16,), n_blocks=1)
    with torch.no_grad():
        decoder.linear.weight.copy_(torch.eye(48))
        decoder.linear.bias.zero_()
        z = shrink(x, 4).flatten(1)
        smeared = (enlarge(z.view(n, 3, 4, 4), side) - x).abs()[192:].mean()
    optimizer = torch.optim.Adam([p for n, p in decoder.named_parameters() if "linear" not in n], 3e-3)
    for _ in range(200):
        optimizer.zero_grad()
        (decoder(z[:192]) - x[:192]).abs().mean().backward()
        optimizer.step()
    with torch.no_grad():
        assert (decoder(z[192:]) - x[192:]).abs().mean() < 0.7 * smeared  # edges it never saw
