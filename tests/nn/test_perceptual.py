from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from skimage import data
from skimage.transform import resize
from torch import nn

from cvlib.assets import ASSETS, problem
from cvlib.errors import BookError
from cvlib.nn.perceptual import LPIPS_LAYERS, PerceptualDistance, lpips_vgg16_hed, vgg_loss
from cvlib.nn.vgg import VGG, vgg16_hed, vgg19

DEEP = ("relu4_3", "relu5_3")


def needs(*names):
    absent = [name for name in names if problem(ASSETS[name]) != ""]
    return pytest.mark.skipif(bool(absent), reason=f"assets {absent} absent: cvlib assets fetch quick")


needs_vgg19 = needs("vgg19-8bit")
needs_hed = needs("vgg16-hed", "lpips-linear")


@pytest.fixture(scope="module")
def photos():
    """Four photographs, 96 px, in [-1, 1]."""
    images = [data.astronaut(), data.chelsea(), data.coffee(), data.rocket()]
    squares = [torch.tensor(resize(image, (96, 96), anti_aliasing=True)) for image in images]
    return torch.stack(squares).permute(0, 3, 1, 2).float() * 2 - 1


@pytest.fixture(
    scope="module", params=[pytest.param("vgg", marks=needs_vgg19), pytest.param("hed", marks=needs_hed)]
)
def trained(request):
    return vgg_loss() if request.param == "vgg" else lpips_vgg16_hed()


def blurred(x, sigma):
    offsets = torch.arange(-12.0, 13.0)
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = (kernel[:, None] * kernel / kernel.sum() ** 2).expand(3, 1, 25, 25)
    return F.conv2d(F.pad(x, (12,) * 4, mode="reflect"), kernel, groups=3)


def noisy(x, sigma):
    return x + sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))


# ---- the networks


def by_the_book(net: VGG, depths, x):
    """VGG again, out of modules, as Keras feeds it: BGR in 0..255 minus the mean colour."""
    weights = iter([(getattr(net, f"weight{n}"), getattr(net, f"bias{n}")) for n in net.names])
    layers, width_in, first = [], 3, True
    for block, depth in enumerate(depths):
        layers += [nn.MaxPool2d(2)] if block else []
        for _ in range(depth):
            weight, bias = next(weights)
            conv = nn.Conv2d(width_in, len(weight), 3, padding=1)
            conv.weight.data, conv.bias.data = (weight.flip(1) if first else weight), bias
            layers += [conv, nn.ReLU()]
            width_in, first = len(weight), False
    pixels = (x + 1) / 2 * 255
    bgr = torch.stack([pixels[:, 2] - 103.939, pixels[:, 1] - 116.779, pixels[:, 0] - 123.68], dim=1)
    return nn.Sequential(*layers)(bgr)


@pytest.mark.parametrize("make, depths, last", [(vgg16_hed, (2, 2, 3, 3, 3), 3), (vgg19, (2, 2, 4, 4, 4), 4)])
def test_vgg_by_the_book(make, depths, last):
    net, x = make(pretrained=False), torch.rand(2, 3, 32, 32) * 2 - 1
    features = net(x, [f"relu5_{last}"])[f"relu5_{last}"]
    assert features.shape == (2, 512, 2, 2) and features.std() > 0.1
    torch.testing.assert_close(features, by_the_book(net, depths, x), rtol=1e-4, atol=1e-3)


def test_layers_come_alone_or_together_and_strangers_are_refused():
    net, x = vgg19(pretrained=False), torch.rand(1, 3, 16, 16)
    together = net(x, LPIPS_LAYERS)
    assert tuple(together) == LPIPS_LAYERS
    assert [f.shape[1] for f in together.values()] == [64, 128, 256, 512, 512]
    assert torch.equal(net(x, ["relu2_2"])["relu2_2"], together["relu2_2"])
    with pytest.raises(BookError, match="relu3_9"):
        net(x, ["relu3_9"])


def test_nothing_above_the_highest_layer_is_computed():
    net = vgg19(pretrained=False)
    net.weight3_4 = torch.zeros(0)  # any use of it would fail
    net(torch.rand(1, 3, 16, 16), ["relu3_3"])
    with pytest.raises(RuntimeError):
        net(torch.rand(1, 3, 16, 16), ["relu3_4"])


def test_random_weights_are_the_same_each_time():
    assert torch.equal(vgg19(pretrained=False).weight3_1, vgg19(pretrained=False).weight3_1)


# ---- frozen for ever


def test_nothing_unfreezes_it():
    owner = nn.Module()
    owner.distance, owner.own = vgg_loss(pretrained=False), nn.Linear(2, 2)
    owner.requires_grad_(True).train()
    owner.distance.train(True)
    owner.distance.net.requires_grad_(True)
    assert owner.own.training and not any(m.training for m in owner.distance.modules())
    assert not any(b.requires_grad for b in owner.distance.buffers())
    assert {name for name, _ in owner.named_parameters()} == {"own.weight", "own.bias"}
    assert set(owner.state_dict()) == {"own.weight", "own.bias"}  # and no checkpoint repeats 80 MB
    assert len(list(owner.distance.buffers())) == 2 * 16 + 1


def test_gradient_reaches_the_image():
    distance, (x, y) = vgg_loss(pretrained=False), torch.rand(2, 1, 3, 16, 16)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(distance(x, y).sum(), x)
    assert gradient.abs().mean() > 0


# ---- the distance


def test_distance_by_hand():
    net, (x, y) = vgg16_hed(pretrained=False), torch.rand(2, 3, 3, 16, 16) * 2 - 1
    linear = [torch.rand(c) for c in (64, 128, 256, 512, 512)]
    expected = torch.zeros(3, dtype=torch.float64)
    fx, fy = net(x, LPIPS_LAYERS), net(y, LPIPS_LAYERS)
    for layer, weight in zip(LPIPS_LAYERS, linear, strict=True):
        a, b = fx[layer].double(), fy[layer].double()
        a, b = a / a.square().sum(1, keepdim=True).sqrt(), b / b.square().sum(1, keepdim=True).sqrt()
        expected += torch.einsum("bchw,c->bhw", (a - b) ** 2, weight.double()).mean((1, 2))
    distance = PerceptualDistance(net, LPIPS_LAYERS, linear)(x, y)
    torch.testing.assert_close(distance.double(), expected, rtol=1e-4, atol=0)
    with pytest.raises(BookError, match="5 sets of weights for 2 layers"):
        PerceptualDistance(net, DEEP, linear)


def test_zero_symmetric_and_bounded():
    distance, (x, y) = vgg_loss(pretrained=False), torch.rand(2, 3, 3, 16, 16) * 2 - 1
    assert not distance(x, x).any()
    torch.testing.assert_close(distance(x, y), distance(y, x))
    assert ((distance(x, y) > 0) & (distance(x, y) <= 2 * 3)).all()


def test_known_features_save_a_pass():
    distance, (x, y) = vgg_loss(pretrained=False), torch.rand(2, 1, 3, 16, 16)
    x.requires_grad_()
    calls = []
    distance.net.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        known = distance.features(y)
    (fast,) = torch.autograd.grad(distance(x, known).sum(), x)
    assert len(calls) == 2
    (slow,) = torch.autograd.grad(distance(x, y).sum(), x)
    torch.testing.assert_close(fast, slow)


def test_scaled_in_fp32_under_autocast():
    distance, x = vgg_loss(pretrained=False), torch.rand(2, 3, 16, 16) * 2 - 1
    y = noisy(x, 0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features, mixed = distance.features(x), distance(x, y)
    for f in features:
        assert f.dtype == torch.float32
        torch.testing.assert_close(f.norm(dim=1), torch.ones_like(f[:, 0]), rtol=0, atol=1e-5)
    torch.testing.assert_close(mixed, distance(x, y), rtol=0.1, atol=0)


# ---- what trained weights must know


def test_more_damage_is_further_and_another_photo_furthest(trained, photos):
    with torch.no_grad():
        known = trained.features(photos)
        for damage, levels in ((blurred, (0.5, 1, 2, 4)), (noisy, (0.05, 0.1, 0.2, 0.4))):
            far = torch.stack([trained(damage(photos, level), known) for level in levels])
            assert (far.diff(dim=0) > 0).all()
            assert (far[-1] < trained(photos.roll(1, 0), known)).all()


def test_trained_nets_see_green_best_and_blue_worst(trained):
    # photographs vary most in luminance, of which green is the largest part: a wrong channel order shows
    red, green, blue = trained.net.weight1_1.square().sum((0, 2, 3)).tolist()
    assert green > red > blue


@needs_vgg19
def test_vgg19_takes_a_mirror_image_for_the_same_but_not_one_upside_down(photos):
    # it was trained with horizontal flips; transposed kernels would exchange the two
    net = vgg19()

    def code(x):
        return net(x, ["relu5_3"])["relu5_3"].mean((2, 3))

    with torch.no_grad():
        mirrored = F.cosine_similarity(code(photos), code(photos.flip(3)))
        inverted = F.cosine_similarity(code(photos), code(photos.flip(2)))
    assert mirrored.min() > 0.95 and inverted.max() < 0.9


@needs_vgg19
def test_vgg19_has_256_values_a_layer():
    net = vgg19()
    assert all(len(getattr(net, f"weight{name}").unique()) == 256 for name in net.names if name != "1_1")


@needs_hed
def test_vgg16_hed_starts_from_the_published_filters():
    # first filter of the original VGG-16, blue channel; fine-tuning moved it by some 10 %
    published = [[0.4295, 0.3735, -0.0614], [0.2748, 0.0387, -0.3672], [-0.0575, -0.2622, -0.3501]]
    ours = vgg16_hed().weight1_1[0, 2]
    assert torch.corrcoef(torch.stack([ours.flatten(), torch.tensor(published).flatten()]))[0, 1] > 0.99


@needs_hed
def test_lpips_vgg16_hed_ranks_alike_whatever_the_order_of_linear_weights(photos):
    # the linear weights were learned for another VGG-16: their order within a layer must not decide
    weighted, shuffled = lpips_vgg16_hed(), lpips_vgg16_hed()
    for layer in LPIPS_LAYERS:
        linear = getattr(shuffled, f"linear_{layer}")
        assert (linear >= 0).all()
        linear.copy_(linear[:, torch.randperm(linear.shape[1])])
    photos = photos[:2]
    damaged = [blurred(photos, s) for s in (0.5, 1, 2)] + [noisy(photos, s) for s in (0.05, 0.1, 0.2)]
    with torch.no_grad():
        both = [torch.cat([d(x, photos) for x in damaged]) for d in (weighted, shuffled)]
    assert spearmanr(*both).statistic > 0.98
