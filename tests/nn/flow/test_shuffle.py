from __future__ import annotations

import torch

from cvlib.nn.flow import Shuffle


def test_order_back_and_seed():
    shuffle, x = Shuffle(9, torch.Generator().manual_seed(3)), torch.randn(4, 9)
    y = shuffle(x)
    assert torch.equal(y, torch.stack([x[:, i] for i in shuffle.order], dim=1))
    assert torch.equal(shuffle.inverse(y), x) and not torch.equal(y, x)
    assert torch.equal(shuffle.order, Shuffle(9, torch.Generator().manual_seed(3)).order)


def test_the_order_travels_with_the_weights():
    first, second, x = Shuffle(20), Shuffle(20), torch.randn(2, 20)
    assert not torch.equal(first(x), second(x))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(x), second(x)) and torch.equal(second.inverse(first(x)), x)
