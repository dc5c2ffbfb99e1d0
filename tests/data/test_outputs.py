from __future__ import annotations

import pytest
import torch
from torch import nn

from cvlib.data import load
from cvlib.data.base import derived_generator
from cvlib.data.outputs import Outputs, weights_digest
from cvlib.errors import BookError


@pytest.fixture(scope="module")
def data():
    return load("emoji", "test", 16, sets=["fxemoji"], factors="full")


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Conv2d(3, 2, 4, stride=4)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch, data):
    monkeypatch.setattr("cvlib.data.outputs.cache_root", lambda: tmp_path_factory.mktemp("cache"))


def columns(net):
    return ("map", "mean"), lambda x: {"map": net(x), "mean": x.mean((1, 2, 3))}


def test_columns_are_what_the_networks_say_of_the_pictures(data, net):
    found = Outputs(data, *columns(net), {"net": net}, 2)
    rows = torch.tensor([3, len(data) + 5, 0])
    pictures = found.pictures(rows)
    torch.testing.assert_close(found.column("map", rows), net(pictures).detach(), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(
        found.column("mean", rows)[:, 0], pictures.mean((1, 2, 3)), rtol=1e-3, atol=1e-3
    )
    assert found.shapes == {"map": (2, 4, 4), "mean": (), "factors": (8,)}


def test_pictures_are_the_views_that_the_generator_of_their_number_draws(data, net):
    found = Outputs(data, *columns(net), {"net": net}, 2)
    drawn = data.images(torch.arange(len(data)), generator=derived_generator(0, "view", 1), augment=True)
    rows = torch.tensor([0, 4])
    torch.testing.assert_close(found.pictures(rows + len(data)), drawn[rows])
    assert (found.pictures(rows) - drawn[rows]).abs().max() > 0.1


def test_the_views_may_begin_later(data, net):
    whole, late = (
        Outputs(data, *columns(net), {"net": net}, 3),
        Outputs(data, *columns(net), {"net": net}, 1, first_view=2),
    )
    rows = torch.arange(len(data))
    for name in ("map", "factors"):
        torch.testing.assert_close(late.column(name), whole.column(name, rows + 2 * len(data)))
    torch.testing.assert_close(late.pictures(rows), whole.pictures(rows + 2 * len(data)))
    assert late.hash not in (whole.hash, Outputs(data, *columns(net), {"net": net}, 1).hash)
    with pytest.raises(BookError, match="first view -1"):
        Outputs(data, *columns(net), {"net": net}, 1, first_view=-1)


def test_factors_and_labels_stand_beside_the_columns(data, net):
    found = Outputs(data, *columns(net), {"net": net}, 3)
    everything = data.draw(torch.arange(len(data)), derived_generator(0, "view", 2), augment=True)
    rows = 2 * len(data) + torch.tensor([1, 2])
    torch.testing.assert_close(found.column("factors", rows), everything.factors[1:3], rtol=1e-3, atol=1e-3)
    assert found.labels["concept"][rows].tolist() == data.labels["concept"][1:3].tolist()
    assert found.labels["item"][rows].tolist() == [1, 2]


def test_a_batch_holds_what_was_chosen(data, net):
    found = Outputs(data, *columns(net), {"net": net}, 2).only("mean")
    batch = next(found.batches(5, seed=0))
    assert "map" not in batch and batch["mean"].shape == (5, 1)
    torch.testing.assert_close(batch["mean"], found.column("mean", batch["index"]))
    with pytest.raises(BookError, match="column depth"):
        found.only("depth")


def test_other_weights_views_or_columns_are_another_cache(data, net):
    first = Outputs(data, *columns(net), {"net": net}, 1)
    assert first.hash == Outputs(data, *columns(net), {"net": net}, 1).hash
    assert first.hash != Outputs(data, *columns(net), {"net": net}, 2).hash
    assert first.hash != Outputs(data, ["map"], lambda x: {"map": net(x)}, {"net": net}, 1).hash
    before = weights_digest(net)
    with torch.no_grad():
        net.bias[0] += 1e-6
    assert weights_digest(net) != before
    assert first.hash != Outputs(data, *columns(net), {"net": net}, 1).hash


def test_a_cache_is_computed_once(data, net, tmp_path, monkeypatch):
    monkeypatch.setattr("cvlib.data.outputs.cache_root", lambda: tmp_path)
    calls = []

    def seen(x):
        calls.append(len(x))
        return {"map": net(x)}

    Outputs(data, ["map"], seen, {"net": net}, 1)
    n = len(calls)
    Outputs(data, ["map"], seen, {"net": net}, 1)
    assert n > 0 and len(calls) == n


@pytest.mark.parametrize(
    ("value", "said"), [(1e6, "values up to 1e"), (float("nan"), "values up to nan"), (float("inf"), "inf")]
)
def test_values_that_float16_cannot_hold_are_refused(data, net, value, said):
    with pytest.raises(BookError, match=said):
        Outputs(data, ["x"], lambda x: {"x": torch.full((len(x), 1), value)}, {"net": net}, 1)


def test_nothing_to_say_is_refused(data, net):
    with pytest.raises(BookError, match="0 views"):
        Outputs(data, *columns(net), {"net": net}, 0)
    with pytest.raises(BookError, match="0 columns"):
        Outputs(data, [], lambda x: {}, {}, 1)


def test_columns_that_were_not_announced_are_refused(data, net):
    with pytest.raises(BookError, match="columns map; wanted depth"):
        Outputs(data, ["depth"], lambda x: {"map": net(x)}, {"net": net}, 1)
