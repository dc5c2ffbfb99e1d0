from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning.losses import ContrastiveLoss as PeerLoss

from cvlib.nn.objectives import ContrastiveLoss


@pytest.mark.parametrize("margins", [(0.0, 1.0), (1.0, 1.5)])
def test_equals_the_peer(margins, batch, agree):
    e, labels = batch((4, 3, 1, 5, 3))
    d = torch.cdist(F.normalize(e), F.normalize(e))[labels[:, None] == labels]
    assert margins[0] == 0 or ((d > 0.1) & (d < 1)).any()  # inactive ones do not count
    agree(ContrastiveLoss(*margins)(e, labels), PeerLoss(*margins)(e, labels), e)


def test_a_side_without_pairs_is_left_out(batch, agree):
    e, _ = batch((2, 2, 2))
    d = torch.pdist(F.normalize(e))
    agree(ContrastiveLoss()(e, torch.zeros(6, dtype=int)), d.mean(), e)
    push = (1.6 - torch.pdist(F.normalize(e))).clamp(min=0)
    agree(ContrastiveLoss(0, 1.6)(e, torch.arange(6)), push[push > 0].mean(), e)
