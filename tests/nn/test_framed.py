from __future__ import annotations

import math

import pytest
import torch

from cvlib.data.factors import Factors, compose, factor_targets, factors_from, sample_factors
from cvlib.metrics import psnr
from cvlib.nn.experts import freeze
from cvlib.nn.framed import FRAME, factors_in, frame_of, lay_out, lift
from cvlib.nn.vae import VectorAutoencoder

SIDE = 64


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


COLOUR = (150, 110, 95)  # pale: no turn of its hue leaves the colours that there are


def drawing():
    """An upright bar with a foot at the right, premultiplied uint8 (1, 4, SIDE, SIDE)."""
    rgba = torch.zeros(1, 4, SIDE, SIDE, dtype=torch.uint8)
    rgba[:, :, 14:50, 24:34] = rgba[:, :, 42:50, 34:50] = 255
    rgba[:, :3] = torch.where(rgba[:, 3:] > 0, torch.tensor(COLOUR, dtype=torch.uint8)[:, None, None], 0)
    return rgba


def random_table(n, seed=0):
    return sample_factors(n, gen(seed)).tensor()


def test_frames_and_targets_have_inverses_and_unit_variance():
    table = random_table(20_000)
    frame = frame_of(table)
    torch.testing.assert_close(frame.mean(0), torch.zeros(FRAME), atol=0.03, rtol=0)
    torch.testing.assert_close(frame.var(0), torch.ones(FRAME), atol=0.03, rtol=0)
    assert frame.abs().max() <= math.sqrt(3) + 1e-5  # uniform
    torch.testing.assert_close(factors_in(frame), table, atol=1e-5, rtol=0)
    torch.testing.assert_close(factors_from(factor_targets(table)), table, atol=1e-5, rtol=0)
    weak = factor_targets(table)
    weak[:, 3:5] *= 0.1  # a network that is not sure of the hue says less, and still an angle
    torch.testing.assert_close(factors_from(weak), table, atol=1e-4, rtol=0)


def test_any_frame_is_one():
    wild = 100 * torch.randn(50, FRAME, generator=gen())
    assert (factors_in(wild)[:, Factors.NAMES.index("scale")] >= 0).all()
    torch.testing.assert_close(
        frame_of(factors_in(torch.randn(50, FRAME, generator=gen()))).isfinite().all(), torch.tensor(True)
    )


def test_lifting_undoes_what_the_renderer_did():
    """The truth is the drawing itself: composed with any factors and lifted with them, it is there again."""
    table = random_table(12, seed=1)
    rgba = drawing().expand(12, -1, -1, -1)
    lifted = lift(compose(rgba, Factors.from_tensor(table)), table)
    truth = rgba.float() / 255
    inner = truth[:, 3:] == torch.nn.functional.max_pool2d(truth[:, 3:], 5, 1, 2)
    inner &= truth[:, 3:] == -torch.nn.functional.max_pool2d(-truth[:, 3:], 5, 1, 2)  # away from the rim
    error = (lifted - truth).abs() * inner
    far = (table[:, :3] - (2 * torch.tensor(COLOUR) / 255 - 1)).abs().amax(1) > 0.6
    assert far.sum() >= 4
    assert error[far].max() < 0.08


def test_there_and_back_is_the_picture():
    table = random_table(16, seed=2)
    pictures = compose(drawing().expand(16, -1, -1, -1), Factors.from_tensor(table))
    again = lay_out(lift(pictures, table), table)
    right = psnr(again.clamp(-1, 1), pictures)
    assert right.median() > 30
    off = table.clone()
    off[:, 7] += 0.3
    wrong = psnr(lay_out(lift(pictures, table), off).clamp(-1, 1), pictures)
    assert (right > wrong + 5).all()


def test_laying_out_agrees_with_the_renderer_and_is_linear():
    table = random_table(5, seed=3)
    table[:, 3] = 0  # where no colour is cut off
    rgba = drawing().expand(5, -1, -1, -1)
    ours = lay_out(rgba.float() / 255, table)
    torch.testing.assert_close(ours, compose(rgba, Factors.from_tensor(table)), atol=1e-5, rtol=0)
    a, b = torch.randn(2, 5, 4, 16, 16, generator=gen())
    zero = lay_out(0 * a, table)
    both = lay_out(a + 2 * b, table) - zero
    torch.testing.assert_close(both, lay_out(a, table) + 2 * lay_out(b, table) - 3 * zero, atol=1e-4, rtol=0)


class Oracle(torch.nn.Module):
    """A reader that knows the factors of the pictures it is asked about, in their order."""

    def __init__(self, table):
        super().__init__()
        self.table = table

    def forward(self, images):
        return factor_targets(self.table[: len(images)])


def framed(dim=FRAME + 6):
    torch.manual_seed(0)
    return VectorAutoencoder(SIDE, dim, (8, 8), n_blocks=1, thumbnail=32, framed=True)


def test_a_code_of_one_drawing_differs_in_its_frame_alone():
    net, table = framed(), random_table(8, seed=4)
    table[:, 3] = 0
    pictures = compose(drawing().expand(8, -1, -1, -1), Factors.from_tensor(table))
    net.encoder.reader = Oracle(table)
    mean = net.encode(pictures).mean
    torch.testing.assert_close(mean[:, :FRAME], frame_of(table))
    far = (table[:, :3] - (2 * torch.tensor(COLOUR) / 255 - 1)).abs().amax(1) > 0.6
    seen = net.encoder.look(pictures)[1][far]
    assert far.sum() > 1
    whole = pictures[far].flatten(1)
    assert seen.var(0).sum() / seen.square().mean(0).sum() < 0.1  # what is lifted hardly varies
    assert whole.var(0).sum() / whole.square().mean(0).sum() > 0.3  # the pictures do


def test_the_frame_of_a_code_moves_the_picture_and_nothing_else_does():
    net, z = framed(), torch.zeros(2, FRAME + 6)
    with torch.no_grad():
        drawn = (drawing().float() / 255)[0]
        net.decoder.linear.weight.zero_()
        net.decoder.linear.bias.copy_(torch.nn.functional.avg_pool2d(drawn, 2).flatten())
        for parameter in net.decoder.last.parameters():
            parameter.zero_()
        z[1, Factors.NAMES.index("right")] = math.sqrt(3)  # the farthest: a tenth of the side
        middle, right = net.decoder.paint(z)
    table = factors_in(z[:1, :FRAME])
    scale = table[0, 4].item()
    assert scale == pytest.approx(math.sqrt(0.7 * 1.1))
    columns = torch.arange(32.0)
    centre = [
        ((m + 1 - table[0, 0]).abs().sum((0, 1)) * columns).sum() / (m + 1 - table[0, 0]).abs().sum()
        for m in (
            (middle - middle[:, :1, :1]).abs() - 1 + table[0, 0],
            (right - right[:, :1, :1]).abs() - 1 + table[0, 0],
        )
    ]
    assert (centre[1] - centre[0]).item() == pytest.approx(3.2, abs=0.15)


def test_the_reader_is_out_of_reach_of_gradients():
    net = framed()
    freeze(net.encoder.reader)
    net.start_from(torch.rand(20, 3, SIDE, SIDE, generator=gen()) * 2 - 1)
    net.train()
    statistics = {k: v.clone() for k, v in net.encoder.reader.state_dict().items()}
    for parameter in net.decoder.last.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x_hat, q = net(torch.rand(3, 3, SIDE, SIDE, generator=gen()) * 2 - 1)
    (x_hat.square().sum() + q.kl().sum()).backward()
    for name, parameter in net.named_parameters():
        if name.startswith("encoder.reader"):
            assert parameter.grad is None, name
        elif name != "log_variance":  # λ is the loss's
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    assert all(torch.equal(statistics[k], v) for k, v in net.encoder.reader.state_dict().items())
