"""Outputs that are computed when they are asked for, beside those that are kept."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cvlib.data import load
from cvlib.data.base import derived_generator
from cvlib.data.fresh import Fresh
from cvlib.data.outputs import Outputs
from cvlib.errors import BookError


@pytest.fixture(scope="module")
def data():
    return load("emoji", "test", 16, sets=["fxemoji"], factors="full")


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Conv2d(3, 2, 4, stride=4)


def columns(net):
    return ("map", "mean"), lambda x: {"map": net(x), "mean": x.mean((1, 2, 3))}


@pytest.fixture
def both(data, net, tmp_path, monkeypatch):
    monkeypatch.setattr("cvlib.data.outputs.cache_root", lambda: tmp_path)
    return Fresh(data, *columns(net), {"net": net}), Outputs(data, *columns(net), {"net": net})


def test_rows_are_those_of_the_first_view_that_would_be_kept(both):
    fresh, kept = both
    rows = torch.tensor([3, 0, 7])
    assert len(fresh) == len(kept) and fresh.shapes == kept.shapes
    assert torch.equal(fresh.pictures(rows), kept.pictures(rows))
    for name in ("map", "mean", "factors"):
        for some in (rows, None):  # what is kept is rounded
            torch.testing.assert_close(
                fresh.column(name, some), kept.column(name, some), rtol=1e-3, atol=1e-3
            )
    found, wanted = (one.only("mean").render(rows, None) for one in both)
    assert found.keys() == wanted.keys() == {"mean"} and found["mean"].shape == wanted["mean"].shape
    assert {k: v.tolist() for k, v in fresh.labels.items()} == {k: v.tolist() for k, v in kept.labels.items()}


def test_batches_show_the_data_sets_own_and_never_twice_the_same(both, data, net):
    fresh = both[0]
    batches, own = fresh.batches(5, seed=2), data.batches(5, seed=2)
    for _ in range(2):
        batch, wanted = next(batches), next(own)
        assert torch.equal(batch["concept"], wanted["concept"])
        torch.testing.assert_close(batch["map"], net(wanted["image"]).detach())
        torch.testing.assert_close(batch["factors"], wanted["factors"])
    first = fresh.render(batch["index"], fresh.draw(batch["index"], derived_generator(0, "x"), True))
    assert (first["map"] - batch["map"]).abs().max() > 0.01
    still = fresh.render(batch["index"], fresh.draw(batch["index"], None, False))
    torch.testing.assert_close(still["map"], fresh.column("map", batch["index"]))


def test_other_weights_or_pictures_have_another_hash(data, net):
    first = Fresh(data, *columns(net), {"net": net})
    assert first.hash != Fresh(data.subset(torch.arange(9)), *columns(net), {"net": net}).hash
    with torch.no_grad():
        net.bias[0] += 1
    assert first.hash != Fresh(data, *columns(net), {"net": net}).hash


def test_what_cannot_be_is_told(data, net):
    with pytest.raises(BookError, match="0 columns; wanted at least 1 of each"):
        Fresh(data, [], lambda x: {}, {})
    with pytest.raises(BookError, match="columns mean; wanted map"):
        Fresh(data, ["map"], lambda x: {"mean": x.mean((1, 2, 3))}, {})
    with pytest.raises(BookError, match="column depth"):
        Fresh(data, *columns(net), {"net": net}).only("depth")
