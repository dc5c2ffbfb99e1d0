"""What a flow does with inputs that it cannot use: an error with a reason, and the flow as it was."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from cvlib.errors import BookError
from cvlib.nn.flow import (
    ActNorm,
    ConditionalFlow,
    LabelEmbedder,
    LinearFactors,
    MapEmbedder,
    SemanticFlow,
    VectorEmbedder,
    factor_sizes,
    pair_loss,
)

BAD = [math.nan, math.inf, -math.inf]
EMBEDDERS = {
    "vector": lambda: VectorEmbedder((5, 8, 4), norm="actnorm"),
    "map": lambda: MapEmbedder(2, 4, 1, dim=4),
}


def fresh(kind="vector", dim=6, n_blocks=3):
    return ConditionalFlow(dim, 16, n_blocks=n_blocks, embedder=EMBEDDERS[kind]())


def inputs(kind="vector", n=8):
    return torch.randn(n, 6), torch.randn(n, 5) if kind == "vector" else torch.randn(n, 2, 4, 4)


def state_of(flow):
    return {key: value.clone() for key, value in flow.state_dict().items()}


def unchanged(flow, before):
    return all(torch.equal(value, before[key]) for key, value in flow.state_dict().items())


# ---- conditions of the wrong width


@pytest.mark.parametrize(
    "shape", [(8, 4), (8, 6), (8, 5, 2, 2), (8, 1, 5), (40,), (), (8, 4, 1, 1), (8, 1, 5, 1)]
)
def test_vectors_of_another_shape(make_flow, shape):
    """(8, 1, 5) has as many numbers, and its channels are still not five."""
    flow, x, _ = make_flow()
    cond = torch.randn(shape).double()
    for call in (lambda: flow(x, cond), lambda: flow.inverse(x, cond), lambda: flow.sample(cond)):
        with pytest.raises(BookError, match=r"wanted \(B, 5\)|40 conditions for 8 samples"):
            call()


@pytest.mark.parametrize("shape", [(8, 3, 4, 4), (8, 2, 4, 5), (8, 2, 5, 4), (8, 2), (8, 32), (2, 4, 4)])
def test_maps_of_another_shape(shape):
    flow, (x, cond) = fresh("map"), inputs("map")
    flow(x, cond)
    for call in (flow, flow.inverse):
        with pytest.raises(BookError, match=r"wanted \(B, 2, 4, 4\)|2 conditions for 8 samples"):
            call(x, torch.randn(shape))


def test_labels_of_another_number(make_flow):
    flow, x, _ = make_flow(kind="label")
    with pytest.raises(BookError, match=r"labels \(8, 3\) of torch\.int64; wanted integers \(B,\)"):
        flow(x, torch.zeros(8, 3, dtype=torch.long))
    with pytest.raises(BookError, match="labels from 3 to 3; wanted 0 to 2"):
        flow.sample(torch.tensor([3]))


def test_an_embedder_that_is_wider_than_it_says(make_flow):
    class Liar(nn.Module):
        dim = 4

        def forward(self, cond):
            return cond

    flow = ConditionalFlow(6, 16, n_blocks=2, embedder=Liar())
    with pytest.raises(BookError, match=r"Liar gives \(8, 5\); wanted \(B, 4\), as its dim says"):
        flow(torch.randn(8, 6), torch.randn(8, 5))


def test_projections_of_another_flow(make_flow):
    flow, x, cond = make_flow()
    deeper, wider = make_flow(n_blocks=4)[0], make_flow(width=24)[0]
    for other, seen in (
        (deeper, "8 halves of blocks of width 16"),
        (wider, "6 halves of blocks of width 24"),
    ):
        with pytest.raises(BookError, match=rf"{seen}; wanted 6 of width 16; make it with this flow's pro"):
            flow(x, other.project(cond))


def test_a_first_batch_that_does_not_fit_starts_nothing():
    flow, (x, cond) = fresh(), inputs()
    before = state_of(flow)
    for wrong in ((x, cond[:3]), (x[:, :5], cond), (x, cond[:, :4])):
        with pytest.raises(BookError):
            flow(*wrong)
        assert unchanged(flow, before)


# ---- singular ActNorm


@pytest.mark.parametrize("block", [0, 2])
def test_a_flow_whose_actnorm_has_a_scale_of_zero(make_flow, block):
    flow, x, cond = make_flow()
    with torch.no_grad():
        flow.blocks[block].norm.scale[1] = 0
    before = state_of(flow)
    calls = [lambda: flow.nll(x, cond), lambda: flow.sample(cond), lambda: flow.inverse(x * 0, cond)]
    for call in calls:
        with pytest.raises(BookError, match=rf"block {block} has an ActNorm of scale 0; wanted nonzero"):
            call()
    assert unchanged(flow, before)


def test_a_semantic_flow_too():
    flow, x = SemanticFlow((2, 4), width=8, n_blocks=2), torch.randn(8, 6)
    flow(x)
    with torch.no_grad():
        flow.flow.blocks[1].norm.scale[0] = 0
    for call in (lambda: flow(x), lambda: flow.inverse((x[:, :2], x[:, 2:]))):
        with pytest.raises(BookError, match="block 1 has an ActNorm of scale 0"):
            call()


def test_an_embedder_may_have_a_scale_of_zero():
    """Nobody inverts H: a feature that it drops is no error."""
    flow, (x, cond) = fresh(), inputs()
    flow(x, cond)
    with torch.no_grad():
        flow.embedder.layers[1].scale[0] = 0
    v, logdet = flow(x, cond)
    assert logdet.isfinite().all()
    torch.testing.assert_close(flow.inverse(v, cond), x, rtol=1e-4, atol=1e-5)


# ---- batches of one


@pytest.mark.parametrize("kind", EMBEDDERS)
def test_a_first_batch_of_one_starts_nothing(kind):
    flow, (x, cond) = fresh(kind), inputs(kind)
    before = state_of(flow)
    with pytest.raises(BookError, match=r"first batch of 1 value.*at least 2.*run one larger batch"):
        flow(x[:1], cond[:1])
    assert unchanged(flow, before)  # nor in the embedder
    assert flow(x, cond)[0].isfinite().all()


@pytest.mark.parametrize("kind", EMBEDDERS)
def test_what_needs_a_first_batch_starts_nothing(kind):
    flow, (x, cond) = fresh(kind), inputs(kind)
    before = state_of(flow)
    for call in (lambda: flow.inverse(x, cond), lambda: flow.sample(cond), lambda: flow.eval()(x, cond)):
        with pytest.raises(BookError, match="ActNorm before its first batch"):
            call()
    assert unchanged(flow, before)


@pytest.mark.parametrize("kind", EMBEDDERS)
def test_later_a_row_alone_is_what_it_is_among_others(kind):
    flow, (x, cond) = fresh(kind), inputs(kind)
    v, logdet = flow(x, cond)
    for k in (0, 5):
        alone = flow(x[k : k + 1], cond[k : k + 1])
        torch.testing.assert_close(alone, (v[k : k + 1], logdet[k : k + 1]), rtol=1e-4, atol=1e-5)
        back = flow.inverse(alone[0], cond[k : k + 1])
        torch.testing.assert_close(back, x[k : k + 1], rtol=1e-4, atol=1e-5)
    assert flow.sample(cond[:1]).shape == (1, 6)


def test_gradients_of_a_batch_add_up_from_batches_of_one(make_flow):
    flow, x, cond = make_flow()
    params = list(flow.parameters())
    whole = torch.autograd.grad(flow.nll(x, cond).sum(), params)
    rows = [torch.autograd.grad(flow.nll(x[k : k + 1], cond[k : k + 1]).sum(), params) for k in range(8)]
    for of_all, *of_each in zip(whole, *rows, strict=True):
        torch.testing.assert_close(sum(of_each), of_all)


def test_batch_norm_in_an_embedder_wants_two():
    for embedder, cond in (
        (VectorEmbedder((5, 8, 4), norm="batch"), torch.randn(1, 5)),
        (LabelEmbedder((3, 8, 4), norm="batch"), torch.tensor([1])),
    ):
        with pytest.raises(BookError, match=r"batch of 1 for an embedder with BatchNorm.*at least 2"):
            embedder(cond)
        assert embedder.eval()(cond).shape == (1, 4)


# ---- what is not finite


@pytest.mark.parametrize("bad", BAD)
def test_conditions_that_are_not_finite_are_named(make_flow, bad):
    flow, x, cond = make_flow()
    flow.eval()
    cond[[1, 6], 2] = bad
    for call in (flow, flow.inverse):
        with pytest.raises(BookError, match=r"the condition is not finite in row\(s\) \[1, 6\]; wanted"):
            call(x, cond)
        with pytest.raises(BookError, match=r"the condition is not finite in row\(s\) \[1, 6\]"):
            call(x, flow.project(cond))
    with pytest.raises(BookError, match=r"the condition is not finite in row\(s\) \[0\]"):
        flow.sample(cond[1:2], n=4)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("where", ["x", "condition"])
@pytest.mark.parametrize("kind", EMBEDDERS)
def test_a_first_batch_that_is_not_finite_starts_nothing(kind, where, bad):
    """Statistics of it would spoil the flow for good."""
    flow, (x, cond) = fresh(kind), inputs(kind)
    before = state_of(flow)
    broken = {"x": x, "condition": cond}[where]
    kept = broken[3].clone()
    broken[3].view(-1)[0] = bad
    with pytest.raises(BookError, match=rf"{where} is not finite in row\(s\) \[3\]"):
        flow(x, cond)
    assert unchanged(flow, before) and not flow.blocks[0].norm.is_initialized
    broken[3] = kept
    v, _ = flow(x, cond)
    torch.testing.assert_close(flow.inverse(v, cond), x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("shape", [(6, 3), (6, 3, 2, 2)])
def test_actnorm_alone_refuses_such_a_first_batch(shape, bad):
    norm, x = ActNorm(3), torch.randn(shape)
    x[4].view(-1)[0] = bad
    with pytest.raises(BookError, match=r"first batch that is not finite in row\(s\) \[4\] in ActNorm"):
        norm(x)
    assert not norm.is_initialized and torch.equal(norm.scale, torch.ones(3)) and not norm.loc.any()
    x[4] = 0
    assert norm(x)[0].isfinite().all()


def test_labels_are_finite_whatever_the_latents_are(make_flow):
    flow, x, labels = make_flow(kind="label")
    x[2, 0] = math.nan
    with pytest.raises(BookError, match=r"x is not finite in row\(s\) \[2\]"):
        flow(x, labels)


@pytest.mark.parametrize("bad", BAD)
def test_weights_that_are_not_finite_are_told_from_inputs(make_flow, bad):
    flow, x, cond = make_flow()
    with torch.no_grad():
        flow.blocks[1].norm.scale[2] = bad
    with pytest.raises(BookError, match=r"left the finite numbers \(largest \|x\| .*lower the learning rate"):
        flow(x, cond)


# ---- pairs and factors


def pairs(n=8, dim=6, factors=2):
    return [(torch.randn(n, dim), torch.randn(n, dim)) for _ in range(factors)]


@pytest.mark.parametrize("least", [(LinearFactors, 4), (factor_sizes, 2)], ids=lambda one: str(one[1]))
def test_pairs_that_say_nothing_are_named(least):
    call, count = least
    broken = pairs()
    broken[1][0][3, 2] = math.nan
    for bad, message in (
        ([], "no factor; wanted pairs of at least one"),
        (broken, "pairs of factor 2 are not finite"),
        ([pairs()[0], pairs(count - 1)[0]], f"{count - 1} pairs of factor 2; wanted at least {count}"),
        ([(torch.randn(8, 6), torch.randn(7, 6))], r"of factor 1 of shapes \(8, 6\) and \(7, 6\)"),
        ([pairs()[0], pairs(dim=5)[0]], r"of factor 2 of shapes \(8, 5\) .*; wanted \(N, 6\) twice"),
    ):
        with pytest.raises(BookError, match=message):
            call(bad)


def test_factors_of_other_numbers_of_rows_are_no_latent():
    flow = SemanticFlow((2, 4), width=8, n_blocks=2)
    flow(torch.randn(8, 6))
    with pytest.raises(BookError, match="factors of 1, 8 rows; wanted as many in each"):
        flow.inverse((torch.randn(8, 2), torch.randn(1, 4)))


@pytest.mark.parametrize(
    "shared",
    [
        torch.tensor([1]),
        torch.tensor(1),
        torch.ones(4, 3, dtype=torch.bool),
        torch.ones(1, 2, dtype=torch.bool),
    ],
)
def test_what_is_shared_is_said_of_every_pair(shared):
    e = [torch.randn(4, 2), torch.randn(4, 1)]
    with pytest.raises(BookError, match=r"what is shared, .*; wanted \(4,.*an entry for each pair"):
        pair_loss(e, e, shared)
