from __future__ import annotations

import pytest
import torch

from cvlib.errors import BookError
from cvlib.nn.convert import convert_vqgan
from cvlib.nn.vqmodel import VQModel

CONFIG = {"n_codes": 32, "dim_z": 8, "ch": 32, "ch_mult": (1, 2), "n_res_blocks": 1, "z_channels": 16}
CONFIG |= {"attn_resolutions": (16,), "resolution": 32}


@pytest.fixture
def original(golden):
    """Ours with the original's weights, and what the original computed."""
    arrays, state = golden("vqgan")
    model = VQModel(**CONFIG, legacy=True)
    model.load_state_dict(convert_vqgan(state))
    return model, arrays


def test_golden_reconstruction(original):
    model, wanted = original
    torch.testing.assert_close(model.features(wanted["x"]), wanted["h"], rtol=1e-4, atol=1e-5)
    y, quantized = model(wanted["x"])
    assert torch.equal(quantized.indices.flatten(), wanted["indices"])
    torch.testing.assert_close(quantized.z_q, wanted["z_q"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(y, wanted["y"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("legacy", [True, False])
def test_golden_loss(original, legacy):
    # both terms have the same value, so both places of beta give the same sum: gradients tell them apart
    model, wanted = original
    model.quantizer.legacy = legacy
    loss = model.encode(wanted["x"]).loss
    torch.testing.assert_close(loss, wanted["quantizer_loss_legacy"], rtol=1e-4, atol=0)


def test_conversion_leaves_out_the_loss_and_refuses_strangers(golden):
    _, state = golden("vqgan")
    extra = {"loss.perceptual_loss.lin0.weight": torch.zeros(1)}
    assert convert_vqgan(state | extra).keys() == convert_vqgan(state).keys()
    for stranger in ("encoder.down.0.block.0.conv.weight.old", "decoder.tail.weight", "ema.decay"):
        with pytest.raises(BookError, match=stranger):
            convert_vqgan(state | {stranger: torch.zeros(1)})


def test_config_rebuilds_the_model():
    model = VQModel(**CONFIG, cosine=True)
    again = VQModel(**model.config)
    again.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 16, 16)
    assert torch.equal(model(x)[0], again(x)[0])
    assert again.config == model.config


def test_indices_decode_to_the_reconstruction():
    model, x = VQModel(**CONFIG), torch.randn(2, 3, 16, 24)
    y, quantized = model(x)
    assert quantized.indices.shape == (2, 8, 12)
    torch.testing.assert_close(model.decode_indices(quantized.indices), y)


def test_sides_that_f_does_not_divide_are_refused():
    with pytest.raises(BookError, match="15 x 16 px; wanted sides divisible by 2"):
        VQModel(**CONFIG).encode(torch.randn(1, 3, 15, 16))


def test_every_parameter_learns_from_the_reconstruction():
    model = VQModel(**CONFIG)
    y, quantized = model(torch.randn(2, 3, 32, 32))
    (y.square().mean() + quantized.loss).backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


def test_bf16_channels_last_computes_the_same(original):
    model, wanted = original
    model.to(memory_format=torch.channels_last)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        z = model.features(wanted["x"].contiguous(memory_format=torch.channels_last))
        y = model.decode(wanted["z_q"])
    # 8 bits of mantissa through some 20 layers: a few per cent of the typical size
    assert (z.float() - wanted["h"]).std() < 0.03 * wanted["h"].std()
    assert (y.float() - wanted["y"]).std() < 0.03 * wanted["y"].std()
