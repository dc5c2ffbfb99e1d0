from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning import losses as peers

from cvlib.errors import BookError
from cvlib.nn.objectives import NormSoftmaxLoss, ProxyAnchorLoss, ProxyNCALoss


@pytest.mark.parametrize(
    "ours, peer",
    [
        (ProxyNCALoss(10, 16), peers.ProxyNCALoss(10, 16)),
        (ProxyNCALoss(10, 16, scale=9), peers.ProxyNCALoss(10, 16, softmax_scale=9)),
        (ProxyAnchorLoss(10, 16), peers.ProxyAnchorLoss(10, 16)),
        (ProxyAnchorLoss(10, 16, 0.2, 8), peers.ProxyAnchorLoss(10, 16, margin=0.2, alpha=8)),
        (NormSoftmaxLoss(10, 16), peers.NormalizedSoftmaxLoss(10, 16)),
        (NormSoftmaxLoss(10, 16, 0.2), peers.NormalizedSoftmaxLoss(10, 16, temperature=0.2)),
    ],
)
def test_equals_the_peer(ours, peer, batch, agree):
    e, labels = batch((4, 3, 1, 5, 3))  # and five proxies without any embedding
    # the peer's softmax keeps its proxies as columns
    theirs = peer.W if hasattr(peer, "W") else peer.proxies
    with torch.no_grad():
        theirs.copy_(ours.proxies.T if hasattr(peer, "W") else ours.proxies)
    mine, other = ours(e, labels), peer(e, labels)
    (of_mine,), (of_other,) = (
        torch.autograd.grad(x, leaf, retain_graph=True) for x, leaf in ((mine, ours.proxies), (other, theirs))
    )
    agree(mine, other, e)
    assert of_other.abs().max() > 1e-4
    torch.testing.assert_close(of_mine, of_other.T if hasattr(peer, "W") else of_other, rtol=1e-4, atol=1e-6)


def test_proxy_nca_of_the_paper_leaves_the_own_proxy_out(batch, agree):
    e, labels = batch()
    objective = ProxyNCALoss(8, 16, negatives_only=True)
    d = torch.cdist(F.normalize(e), F.normalize(objective.proxies)).square()
    truth = torch.stack(
        [
            d[i, y] + sum((-d[i, z]).exp() for z in range(8) if z != y).log()
            for i, y in enumerate(labels.tolist())
        ]
    ).mean()
    agree(objective(e, labels), truth, e, objective.proxies)
    with pytest.raises(BookError, match="two classes"):
        ProxyNCALoss(1, 16, negatives_only=True)


@pytest.mark.parametrize("make, lr", [(ProxyNCALoss, 5e-4), (ProxyAnchorLoss, 1e-3), (NormSoftmaxLoss, 1e-5)])
def test_proxies_have_a_learning_rate_of_their_own(make, lr):
    objective = make(4, 8)
    (group,) = objective.parameter_groups(1e-5)
    assert group["params"][0] is objective.proxies and group["weight_decay"] == 0
    assert group["lr"] == pytest.approx(lr)


@pytest.mark.parametrize("make", [ProxyNCALoss, ProxyAnchorLoss, NormSoftmaxLoss])
def test_another_width_is_named(make):
    with pytest.raises(BookError, match="width 6; wanted 8 as the proxies"):
        make(4, 8)(torch.randn(3, 6), torch.tensor([0, 1, 2]))
