"""AlexNet and ResNet-101, cut where the paper cuts them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import map_coordinates
from torch import nn

from cvlib.errors import BookError
from cvlib.nn.backbones import (
    AlexNet,
    BatchNorm,
    ResNet,
    ResNet101,
    alexnet,
    alexnet_layers,
    resnet50,
    resnet101,
    resnet101_layers,
)
from cvlib.nn.backbones.layered import filled

# split: shape of z, as the paper's configurations have it
RESNET101 = {
    0: (3, 224, 224),
    4: (64, 56, 56),
    5: (256, 56, 56),
    6: (512, 28, 28),
    7: (1024, 14, 14),
    8: (2048, 7, 7),
    9: (2048, 1, 1),
    11: (149, 1, 1),
    12: (149, 1, 1),
}
ALEXNET = {12: (256, 13, 13), 18: (4096, 1, 1), 21: (4096, 1, 1), 22: (1000, 1, 1), 23: (1000, 1, 1)}
NETS = [
    (ResNet101, 149, RESNET101, resnet101_layers()),
    (ResNet101, 10, RESNET101 | {11: (10, 1, 1), 12: (10, 1, 1)}, resnet101_layers(10)),
    (AlexNet, 1000, ALEXNET, alexnet_layers()),
]


class Shallow(ResNet):
    """One block a group, to be quick."""

    name, blocks, layer_size = "shallow", (1, 1, 1, 1), 64


def images(n=2, side=32):
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture(scope="module")
def shallow():
    torch.manual_seed(0)
    net = Shallow(10)
    for module in net.modules():
        if isinstance(module, BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.2)
    return net.eval()


@pytest.fixture(scope="module")
def alex():
    torch.manual_seed(0)
    return AlexNet(7).eval()


@pytest.mark.parametrize(("net", "n", "parameters"), [
    (AlexNet, 1000, 61_100_840),
    (ResNet101, 1000, 44_549_160),
    (ResNet101, 149, 44_549_160 - 851 * 2049),
])  # fmt: skip
def test_published_counts(count, net, n, parameters):
    with torch.device("meta"):
        assert count(net(n)) == parameters


@pytest.mark.parametrize(("kind", "n", "shapes", "layers"), NETS)
def test_z_has_the_papers_shapes_at_its_splits(kind, n, shapes, layers):
    with torch.device("meta"):
        net = kind(n).eval()
        photographs = torch.empty(2, 3, 128, 128)
        assert len(net.layers) == max(shapes)
        for split, shape in shapes.items():
            z = net.encode(photographs, split)
            assert z.shape == (2, *shape)
            assert net.decode(z, split).shape == (2, n)
    assert {layer.split: layer.shape for layer in layers.values()} == shapes


def test_names_are_torchvisions():
    convs = {0: (64, 3, 11, 11), 3: (192, 64, 5, 5), 6: (384, 192, 3, 3), 8: (256, 384, 3, 3)}
    weights = {f"features.{k}": shape for k, shape in {**convs, 10: (256, 256, 3, 3)}.items()}
    weights |= {"classifier.1": (4096, 9216), "classifier.4": (4096, 4096), "classifier.6": (1000, 4096)}
    wanted = {f"{name}.weight": shape for name, shape in weights.items()}
    wanted |= {f"{name}.bias": shape[:1] for name, shape in weights.items()}
    with torch.device("meta"):
        assert {name: tuple(value.shape) for name, value in AlexNet().state_dict().items()} == wanted


@torch.no_grad()
def test_psi_after_phi_is_the_classifier_wherever_it_is_cut(shallow, alex):
    for net, side in ((shallow, 64), (alex, 227)):
        x = images(side=side)
        wanted = net.logits(x).softmax(1)
        assert wanted.std(0).max() > 1e-5  # the pictures differ for it
        for split in range(len(net.layers) + 1):
            z = net.encode(x, split)
            assert z.ndim == 4
            torch.testing.assert_close(net.decode(z, split), wanted)


@torch.no_grad()
def test_alexnet_by_hand_from_its_weights(alex):
    s, x = alex.state_dict(), images(side=227)
    mean, std = (torch.tensor(v)[:, None, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    y = ((x + 1) / 2 - mean) / std
    torch.testing.assert_close(alex.encode(x, 0), y)
    for k, stride, padding in ((0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1)):
        y = F.conv2d(y, s[f"features.{k}.weight"], s[f"features.{k}.bias"], stride, padding).clamp(min=0)
        if k in (0, 3):
            y = F.max_pool2d(y, 3, 2)
    torch.testing.assert_close(alex.encode(x, 12), y)
    y = F.max_pool2d(y, 3, 2)
    assert y.shape[1:] == (256, 6, 6)  # the mean to 6 x 6 has nothing to do
    torch.testing.assert_close(alex(x), y)
    y = y.flatten(1)
    for k, split in ((1, 18), (4, 21), (6, 22)):
        y = F.linear(y, s[f"classifier.{k}.weight"], s[f"classifier.{k}.bias"])
        y = y.clamp(min=0) if k < 6 else y
        torch.testing.assert_close(alex.encode(x, split), y[:, :, None, None])
    torch.testing.assert_close(alex.encode(x, 23)[..., 0, 0], y.exp() / y.exp().sum(1, keepdim=True))


@torch.no_grad()
def test_other_sizes_are_squeezed_bilinearly(shallow):
    """Pixel centres, as scipy interpolates between them; beyond the outermost the edge goes on."""
    x = torch.rand(1, 3, 40, 100) * 2 - 1
    seen = (shallow.encode(x, 0)[0] - shallow.shift) / shallow.scale
    at = [(np.arange(64) + 0.5) * side / 64 - 0.5 for side in (40, 100)]
    places = np.stack(np.meshgrid(*at, indexing="ij"))
    for channel in range(3):
        wanted = map_coordinates(x[0, channel].numpy(), places, order=1, mode="nearest")
        np.testing.assert_allclose(seen[channel].numpy(), wanted, atol=1e-5)


def test_networks_come_in_evaluation_mode():
    with torch.device("meta"):
        assert not alexnet().training and not resnet101(n_classes=10).training


def test_splits_outside_are_refused(shallow):
    for split in (-1, 13):
        with pytest.raises(BookError, match=rf"split {split} of shallow; wanted 0 to 12"):
            shallow.encode(images(), split)
        with pytest.raises(BookError, match=rf"split {split} of shallow"):
            shallow.decode(torch.zeros(2, 10, 1, 1), split)


def test_h_of_each_layer_has_the_papers_size():
    for layer in resnet101_layers().values():
        h = layer.embedder(128)
        z = torch.randn(2, *layer.shape)
        assert h(z).shape == (2, 128)
    linear = [m for m in resnet101_layers()["avgpool"].embedder().modules() if isinstance(m, nn.Linear)]
    assert [m.in_features for m in linear] == [2048, 1664, 1280, 896, 512]
    with torch.device("meta"):
        linear = [m for m in alexnet_layers()["fc6"].embedder(268).modules() if isinstance(m, nn.Linear)]
        assert [m.out_features for m in linear] == [2820, 1544, 268]
        convs = [m for m in alexnet_layers()["conv5"].embedder().modules() if isinstance(m, nn.Conv2d)]
    assert [(m.in_channels, m.out_channels, m.kernel_size[0]) for m in convs] == [
        (256, 64, 4),
        (64, 128, 4),
        (128, 128, 3),
    ]


def test_a_network_trained_on_several_cards_is_read(shallow, tmp_path):
    """As the stylised ResNet-50 lies on the disk: an old archive, names after "module."."""
    state = {f"module.{name}": value for name, value in shallow.state_dict().items()}
    path = tmp_path / "stylised.pth.tar"
    torch.save({"epoch": 60, "state_dict": state}, path, _use_new_zipfile_serialization=False)
    net, x = filled(Shallow(10), path), images(side=64)
    with torch.no_grad():
        assert torch.equal(net.logits(x), shallow.logits(x))


def test_released_files_fit_their_networks(tmp_path):
    """Names and shapes alone, small on the disk."""

    def save(net, before, inside=None):
        state = {f"{before}{k}": torch.zeros((), dtype=v.dtype).expand(v.shape) for k, v in net.items()}
        torch.save({inside: state} if inside else state, tmp_path / "w.pth")
        return tmp_path / "w.pth"

    with torch.device("meta"):
        states = [net.state_dict() for net in (ResNet101(149), AlexNet(1000), resnet50())]
    assert resnet101(save(states[0], "model."), 149).fc.weight.abs().sum() == 0
    assert resnet101(save(states[0], "model.", "model"), 149).fc.out_features == 149
    assert alexnet(save(states[1], "")).classifier[6].weight.abs().sum() == 0
    assert resnet50(save(states[2], "module.", "state_dict")).fc.weight.abs().sum() == 0
    with pytest.raises(BookError, match=r"fc\.weight of shape \(149, 2048\); wanted \(10, 2048\)"):
        resnet101(save(states[0], "model."), 10)
    with pytest.raises(BookError, match="lacks 16 weights"):
        alexnet(save(states[2], ""))
    with pytest.raises(BookError, match=r"none\.pth does not exist; wanted torchvision's weights of alexnet"):
        alexnet(tmp_path / "none.pth")
