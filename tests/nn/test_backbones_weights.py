"""The networks against plain functional re-computations, their files, and known answers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cvlib.assets import ASSETS, member, problem
from cvlib.data.pictures import read_picture
from cvlib.errors import BookError
from cvlib.nn.backbones import BatchNorm, ResNet50, ResNet101, efficientnet_lite0, resnet50
from cvlib.train.weights import save_weights

ABSENT = [name for name in ("efficientnet-lite0", "photos-skimage") if problem(ASSETS[name]) != ""]
needs_weights = pytest.mark.skipif(
    bool(ABSENT), reason=f"assets {ABSENT} absent: cvlib assets fetch {' '.join(ABSENT)}"
)
FILE = "efficientnet-lite0-57934424.pth"


@pytest.fixture(scope="module")
def lite0():
    return efficientnet_lite0()


@pytest.fixture(scope="module")
def stored():
    return torch.load(member("efficientnet-lite0", FILE), map_location="cpu", weights_only=True)


def photo(name: str, asset: str = "photos-skimage") -> torch.Tensor:
    picture = torch.from_numpy(read_picture(member(asset, name)).copy())
    picture = picture[..., None].expand(-1, -1, 3) if picture.ndim == 2 else picture[..., :3]
    return picture.permute(2, 0, 1)[None].float() / 127.5 - 1


# ---- EfficientNet-Lite0


def norm(x, stored, name, eps):
    numbers = [stored[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
    return F.batch_norm(x, *numbers, training=False, eps=eps)


def same(x, weight, stride):
    """Convolution that sees the pixels a strided one under "SAME" sees: the extra zero comes last."""
    kernel, groups = weight.shape[-1], x.shape[1] // weight.shape[1]
    for axis in (3, 2):
        missing = max(0, ((x.shape[axis] + stride - 1) // stride - 1) * stride + kernel - x.shape[axis])
        shape = list(x.shape)
        shape[axis] = missing // 2
        before = torch.zeros(shape)
        shape[axis] = missing - missing // 2
        x = torch.cat([before, x, torch.zeros(shape)], axis)
    return F.conv2d(x, weight, stride=stride, groups=groups)


def lite0_from_the_file(x, stored):
    """The whole network written down once more, from the file's own names; strides of the 16 blocks."""
    x = norm(same(x, stored["_conv_stem.weight"], 2), stored, "_bn0", 1e-3).clamp(0, 6)
    strides = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1]
    outs = []
    for i, stride in enumerate(strides):
        name, y = f"_blocks.{i}.", x
        if f"{name}_expand_conv.weight" in stored:
            y = F.conv2d(y, stored[f"{name}_expand_conv.weight"])
            y = norm(y, stored, f"{name}_bn0", 1e-3).clamp(0, 6)
        y = norm(same(y, stored[f"{name}_depthwise_conv.weight"], stride), stored, f"{name}_bn1", 1e-3)
        y = norm(F.conv2d(y.clamp(0, 6), stored[f"{name}_project_conv.weight"]), stored, f"{name}_bn2", 1e-3)
        x = x + y if x.shape == y.shape else y
        outs.append(x)
    x = norm(F.conv2d(x, stored["_conv_head.weight"]), stored, "_bn1", 1e-3).clamp(0, 6)
    return outs, x, F.linear(x.mean((2, 3)), stored["_fc.weight"], stored["_fc.bias"])


@needs_weights
@pytest.mark.parametrize("size", [(64, 64), (65, 51)])
@torch.no_grad()
def test_lite0_is_the_file_computed_by_hand(lite0, stored, size):
    x = torch.rand(1, 3, *size) * 2 - 1
    blocks, features, scores = lite0_from_the_file(((x + 1) * 127.5 - 127) / 128, stored)
    close = {"rtol": 1e-3, "atol": 1e-3}
    torch.testing.assert_close(lite0.run(x, stop=3), blocks[2], **close)
    torch.testing.assert_close(lite0.run(x, stop=6), blocks[10], **close)
    torch.testing.assert_close(lite0(x), features, **close)
    torch.testing.assert_close(lite0.logits(x), scores, **close)
    assert not lite0.training and scores.std() > 0.3


@needs_weights
@pytest.mark.parametrize(
    ("name", "classes", "share"),
    [
        ("chelsea.png", {281, 282, 285}, 0.85),  # tabby, tiger cat, Egyptian cat
        ("coffee.png", {967}, 0.8),  # espresso
        ("camera.png", {872}, 0.8),  # tripod
        ("motorcycle_left.png", {665, 670}, 0.5),  # moped, motor scooter
        ("rocket.jpg", {657, 744}, 0.35),  # missile, projectile
    ],
)
@torch.no_grad()
def test_known_answers_on_photographs(lite0, name, classes, share):
    chances = lite0.logits(lite0.crop(photo(name))).softmax(1)[0]
    assert int(chances.argmax()) in classes
    assert float(chances[list(classes)].sum()) > share


@needs_weights
@torch.no_grad()
def test_chelsea_is_an_egyptian_cat(lite0):
    """Seen whole, 451 x 300 squeezed to a square."""
    whole = F.interpolate(photo("chelsea.png"), (224, 224), mode="bicubic", antialias=True)
    chances = lite0.logits(whole.clamp(-1, 1)).softmax(1)[0]
    assert int(chances.argmax()) == 285 and chances[285] > 0.6


@needs_weights
@torch.no_grad()
def test_colours_of_the_weights_own_framework_serve_best(lite0):
    """Another network's mean and deviation (ImageNet's) make the known answers less likely."""
    names = {"coffee.png": 967, "rocket.jpg": 657, "motorcycle_left.png": 665, "motorcycle_right.png": 665}
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (ResNet50.mean, ResNet50.std))
    own = other = 0.0
    for name, label in names.items():
        x = lite0.crop(photo(name))
        own += float(lite0.logits(x).log_softmax(1)[0, label])
        y = (((x + 1) / 2 - mean) / std - lite0.shift) / lite0.scale  # undoes what the network does first
        other += float(lite0.logits(y).log_softmax(1)[0, label])
    assert own > other + 0.5


def test_random_weights_need_no_asset(monkeypatch):
    monkeypatch.setattr("cvlib.nn.backbones.efficientnet.member", lambda *_: pytest.fail("asked for it"))
    features = efficientnet_lite0(pretrained=False)(torch.rand(2, 3, 64, 64))
    assert features.isfinite().all() and features.std() > 0


# ---- ResNet-50 and ResNet-101


def torchvision_names(counts=(3, 4, 6, 3)):
    """Names and shapes of torchvision's state dict, written down from its layout."""

    def bn(name, n):
        sizes = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (n,))
        return {f"{name}.{part}": size for part, size in (sizes | {"num_batches_tracked": ()}).items()}

    names = {"conv1.weight": (64, 3, 7, 7), **bn("bn1", 64), "fc.weight": (1000, 2048), "fc.bias": (1000,)}
    inside = 64
    for layer, blocks in enumerate(counts, 1):
        mid, out = 32 * 2**layer, 128 * 2**layer
        for block in range(blocks):
            name = f"layer{layer}.{block}."
            for i, shape in enumerate([(mid, inside, 1, 1), (mid, mid, 3, 3), (out, mid, 1, 1)], 1):
                names |= {f"{name}conv{i}.weight": shape} | bn(f"{name}bn{i}", shape[0])
            if block == 0:
                names |= {f"{name}downsample.0.weight": (out, inside, 1, 1)} | bn(f"{name}downsample.1", out)
            inside = out
    return names


def test_resnet_has_torchvisions_names():
    with torch.device("meta"):
        nets = ResNet50(), ResNet101()
    seen, deeper = ({k: tuple(v.shape) for k, v in net.state_dict().items()} for net in nets)
    assert seen == torchvision_names() and len(seen) == 320
    assert deeper == torchvision_names((3, 4, 23, 3)) and len(deeper) == 320 + 17 * 18


def resnet_from_the_file(x, s):
    mean, std = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    x = ((x + 1) / 2 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    x = norm(F.conv2d(x, s["conv1.weight"], stride=2, padding=3), s, "bn1", 1e-5).relu()
    x = F.max_pool2d(x, 3, 2, 1)
    for layer, blocks in enumerate((3, 4, 6, 3), 1):
        for block in range(blocks):
            name, stride = f"layer{layer}.{block}.", 2 if layer > 1 and block == 0 else 1
            y = norm(F.conv2d(x, s[f"{name}conv1.weight"]), s, f"{name}bn1", 1e-5).relu()
            y = F.conv2d(y, s[f"{name}conv2.weight"], stride=stride, padding=1)
            y = F.conv2d(norm(y, s, f"{name}bn2", 1e-5).relu(), s[f"{name}conv3.weight"])
            if f"{name}downsample.0.weight" in s:
                x = F.conv2d(x, s[f"{name}downsample.0.weight"], stride=stride)
                x = norm(x, s, f"{name}downsample.1", 1e-5)
            x = (x + norm(y, s, f"{name}bn3", 1e-5)).relu()
    return x, F.linear(x.mean((2, 3)), s["fc.weight"], s["fc.bias"])


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A state dict as old files have it, without counts of batches, on the disk."""
    torch.manual_seed(0)
    net = ResNet50()
    for module in net.modules():
        if isinstance(module, BatchNorm):
            nn.init.uniform_(module.weight, 0.1, 0.6)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    state = {k: v for k, v in net.state_dict().items() if not k.endswith("tracked")}
    path = tmp_path_factory.mktemp("weights") / "resnet50.pth"
    torch.save(state, path)
    save_weights(path.with_suffix(".safetensors"), net)
    return state, path


@torch.no_grad()
def test_resnet_is_its_file_computed_by_hand(weights):
    state, path = weights
    net, x = resnet50(path), torch.rand(1, 3, 80, 64) * 2 - 1
    features, scores = resnet_from_the_file(x, state)
    assert features.shape == (1, 2048, 3, 2) and not net.training
    torch.testing.assert_close(net(x), features, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(net.logits(x), scores, rtol=1e-3, atol=1e-4)
    other = resnet50(str(path.with_suffix(".safetensors")))
    assert torch.equal(other.logits(x), net.logits(x))


def test_files_that_are_not_these_weights(weights, tmp_path):
    state, path = weights
    with pytest.raises(BookError, match=r"none\.pth does not exist; wanted torchvision's"):
        resnet50(tmp_path / "none.pth")
    cut = tmp_path / "cut.pth"
    cut.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(BookError, match=r"cut\.pth cannot be read as weights"):
        resnet50(cut)
    cut.write_bytes(b"")
    with pytest.raises(BookError, match="cannot be read"):
        resnet50(cut)
    state = {k: torch.zeros(()).expand(v.shape) for k, v in state.items()}  # small on the disk
    torch.save({k: v for k, v in state.items() if k != "layer3.2.conv1.weight"}, cut)
    with pytest.raises(BookError, match=r"lacks 1 weights \(layer3\.2\.conv1\.weight\)"):
        resnet50(cut)
    torch.save(state | {"fc.weight": torch.zeros(10, 2048)}, cut)
    with pytest.raises(BookError, match=r"fc\.weight of shape \(10, 2048\); wanted \(1000, 2048\)"):
        resnet50(cut)
    torch.save([1, 2], cut)
    with pytest.raises(BookError, match="holds a list"):
        resnet50(cut)
