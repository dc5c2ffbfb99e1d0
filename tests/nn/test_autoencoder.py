from __future__ import annotations

import pytest
import torch
from torch import nn

from cvlib.nn.autoencoder import Architecture, AttnBlock, Decoder, Encoder, GroupNorm


def test_parameter_counts_of_the_paper(count):
    with torch.device("meta"):
        assert count(Encoder()) == 29_298_176
        assert count(Decoder()) == 42_449_795


def test_attention_stands_at_the_nominal_resolution_only():
    def n_attention(module):
        return sum(isinstance(m, AttnBlock) for m in module.modules())

    with torch.device("meta"):
        assert n_attention(Encoder()) == 2 + 1  # the 16 x 16 level and the middle
        assert n_attention(Decoder()) == 3 + 1
        assert n_attention(Encoder(Architecture(resolution=128))) == 2 + 1  # one level earlier
        assert n_attention(Encoder(Architecture(attn_resolutions=()))) == 1


@pytest.mark.parametrize("ch_mult, factor", [((1,), 1), ((1, 2, 2), 4), ((1, 1, 2, 2, 4), 16)])
def test_any_size_divisible_by_f_is_encoded_and_decoded(ch_mult, factor):
    with torch.device("meta"):
        z = Encoder(Architecture(ch_mult=ch_mult))(torch.empty(2, 3, 3 * factor, 5 * factor))
        assert z.shape == (2, 256, 3, 5)
        assert Decoder(Architecture(ch_mult=ch_mult))(z).shape == (2, 3, 3 * factor, 5 * factor)


def test_attention_is_softmax_of_scaled_products():
    block, x = AttnBlock(32).double(), torch.randn(2, 32, 3, 5, dtype=torch.float64)
    q, k, v = block.qkv(block.norm(x)).flatten(2).chunk(3, dim=1)  # (B, C, H W)
    weights = torch.softmax(torch.einsum("bci,bcj->bij", q, k) / 32**0.5, dim=-1)
    gathered = torch.einsum("bij,bcj->bci", weights, v).view_as(x)
    torch.testing.assert_close(block(x), x + block.proj(gathered))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_group_norm_keeps_bf16_and_sums_in_fp32(memory_format):
    norm = GroupNorm(48)
    # mean 20, deviation 1: sums kept in bf16 (8 bits) would lose the deviation altogether
    x = (torch.randn(2, 48, 16, 16) + 20).bfloat16().to(memory_format=memory_format)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = norm(x)
    groups = x.double().reshape(2, norm.num_groups, -1)
    exact = (groups - groups.mean(2, keepdim=True)) / groups.std(2, correction=0, keepdim=True)
    assert y.dtype == torch.bfloat16 and y.is_contiguous(memory_format=memory_format)
    # half a unit in the last place at |y| < 4 is 2^-7, and as much again for the affine step's rounding
    torch.testing.assert_close(y.double(), exact.view_as(x), rtol=0, atol=2**-5)


def test_group_norm_is_the_papers_at_its_widths_and_groups_at_least_group_width():
    n_groups = {dim: [GroupNorm(dim, width).num_groups for width in (1, 4)] for dim in (16, 24, 128, 512)}
    assert n_groups == {16: [16, 4], 24: [8, 2], 128: [32, 32], 512: [32, 32]}


@pytest.mark.parametrize("group_width, keeps", [(1, False), (4, True)])
def test_only_wide_groups_keep_the_strength_of_a_colour(group_width, keeps):
    # two flat images that differ in the balance of their channels alone
    x = torch.tensor([[1.0, 2, 3, 4], [4, 3, 2, 1]]).repeat(1, 4)[..., None, None].expand(2, 16, 8, 8)
    y = GroupNorm(16, group_width)(x)
    assert torch.allclose(y[0], y[1], atol=1e-3) is not keeps


def test_last_layer_is_the_convolution_that_makes_the_image():
    decoder = Decoder(Architecture(ch=32, ch_mult=(1, 2), z_channels=4, attn_resolutions=()))
    z = torch.randn(1, 4, 4, 4)
    before = decoder(z)
    with torch.no_grad():
        decoder.last_layer.mul_(2)
    bias = decoder.head[-1].bias.view(1, 3, 1, 1)
    torch.testing.assert_close(decoder(z) - bias, 2 * (before - bias))


def test_dropout_acts_in_training_only():
    encoder, x = (
        Encoder(Architecture(ch=32, ch_mult=(1,), z_channels=4, dropout=0.5)),
        torch.randn(1, 3, 8, 8),
    )
    assert not torch.equal(encoder(x), encoder(x))
    encoder.eval()
    assert torch.equal(encoder(x), encoder(x))


def test_residual_shortcut_is_a_convolution_only_where_widths_differ():
    encoder = Encoder(Architecture(ch=32, ch_mult=(1, 2), n_res_blocks=2))
    kinds = [type(level.res0.shortcut) for level in encoder.levels]
    assert kinds == [nn.Identity, nn.Conv2d]
    assert isinstance(encoder.levels[1].res1.shortcut, nn.Identity)
