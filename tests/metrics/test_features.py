from __future__ import annotations

import pytest
import torch
from torch import nn

from cvlib.errors import BookError
from cvlib.metrics import feature_batches


class Taps(nn.Module):
    """Two maps and a vector, with a BatchNorm that would betray training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(3)

    def forward(self, x):
        x = self.norm(x)
        return {"a": x, "b": self.conv(x), "c": x.amax((2, 3))}


def test_features_are_those_of_one_big_batch():
    torch.manual_seed(0)
    net, x = Taps(), torch.randn(7, 3, 9, 9)
    features = feature_batches(net, x, batch_size=3)
    parts = net.eval()(x)
    truth = torch.cat([parts["a"].mean((2, 3)), parts["b"].mean((2, 3)), parts["c"]], dim=1)
    torch.testing.assert_close(features, truth.detach())
    assert not features.requires_grad and features.shape == (7, 10)
    torch.testing.assert_close(feature_batches(net, iter([x[:5], x[5:]])), features)


@pytest.mark.parametrize("mode", [True, False])
def test_net_is_put_back_as_it_was(mode):
    net = Taps().train(mode)
    before = net.norm.running_mean.clone()
    feature_batches(net, torch.randn(4, 3, 8, 8))
    assert net.training is mode and net.norm.training is mode
    torch.testing.assert_close(net.norm.running_mean, before)


def test_nothing_to_see_is_an_error():
    with pytest.raises(BookError, match="no image"):
        feature_batches(Taps(), [])
    with pytest.raises(BookError, match=r"features \(2, 3, 5\)"):
        feature_batches(nn.Flatten(2), torch.zeros(2, 3, 5, 1))
