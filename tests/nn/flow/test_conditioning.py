from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cvlib.errors import BookError
from cvlib.nn.flow import LabelEmbedder, MapEmbedder, VectorEmbedder


@pytest.mark.parametrize("norm", ["none", "actnorm"])
def test_rows_are_embedded_alone_and_in_both_modes_alike(norm):
    embedder, cond = VectorEmbedder((5, 8, 8, 3), norm=norm), torch.randn(6, 5)
    h = embedder(cond)  # the first batch of ActNorm
    assert h.shape == (6, 3)
    torch.testing.assert_close(embedder.eval()(cond), h)
    torch.testing.assert_close(embedder(cond[2:3, :, None, None]), h[2:3])


def test_batch_norm_is_not():
    """The trap of the published translators: why it is not the default."""
    embedder, cond = VectorEmbedder((5, 8, 3), norm="batch"), torch.randn(6, 5)
    assert (embedder(cond) - embedder.eval()(cond)).abs().max() > 1e-2


def test_widths_of_the_published_networks(count):
    linear = [
        m for m in VectorEmbedder((3, 256, 256, 256, 10), norm="batch").modules() if isinstance(m, nn.Linear)
    ]
    assert [(m.in_features, m.out_features) for m in linear] == [(3, 256), (256, 256), (256, 256), (256, 10)]
    # Network-to-Network Translation: the embedder of SBERT to BigGAN has 398,860 parameters
    assert count(VectorEmbedder((768, 256, 256, 256, 268), norm="batch")) == 398_860


def test_labels_are_one_hot_vectors():
    embedder, labels = LabelEmbedder((4, 8, 3)), torch.tensor([2, 0, 3, 2])
    torch.testing.assert_close(embedder(labels), embedder.layers(F.one_hot(labels, 4).float()))
    with pytest.raises(BookError, match=r"labels from 0 to 4; wanted 0 to 3"):
        embedder(torch.tensor([0, 4]))
    with pytest.raises(BookError, match="labels from -1 to 2"):
        embedder(torch.tensor([2, -1]))
    with pytest.raises(BookError, match=r"float32; wanted integers \(B,\)"):
        embedder(torch.ones(3))
    assert embedder.is_rowwise
    batch = LabelEmbedder((4, 8, 3), norm="batch")
    assert not batch.is_rowwise and batch.eval().is_rowwise


@pytest.mark.parametrize("side, n_down", [(14, 2), (7, 1), (13, 2), (4, 0), (8, 3)])
def test_maps_of_any_side_become_vectors(side, n_down):
    embedder = MapEmbedder(6, side, n_down, dim=5)
    assert embedder(torch.randn(2, 6, side, side)).shape == (2, 5)
    convs = [m for m in embedder.modules() if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convs] == [*[64, 128, 256][:n_down], 5]
    assert [m.bias is None for m in convs] == [True] * n_down + [False]


def test_other_shapes_are_refused():
    with pytest.raises(BookError, match=r"condition \(2, 4\); wanted \(B, 5\)"):
        VectorEmbedder((5, 8, 3))(torch.randn(2, 4))
    with pytest.raises(BookError, match=r"condition \(2, 6, 8, 7\); wanted \(B, 6, 8, 8\)"):
        MapEmbedder(6, 8, 1, 3)(torch.randn(2, 6, 8, 7))
    with pytest.raises(BookError, match="3 halvings of a map of side 4"):
        MapEmbedder(6, 4, 3, 3)
