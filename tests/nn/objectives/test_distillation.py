from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cvlib.errors import BookError
from cvlib.nn.objectives import MultiSimilarityLoss, max_plus_average, s2sd_loss, similarity_distillation


def head(state, i):
    parts = {k.removeprefix(f"target_nets.{i}."): v for k, v in state.items() if f"nets.{i}." in k}
    (width, channels) = parts["0.weight"].shape
    net = nn.Sequential(nn.Linear(channels, width), nn.ReLU(), nn.Linear(width, width))
    net.load_state_dict(parts)
    return net


def test_golden(golden):
    wanted, state = golden("s2sd")
    e, labels, features = wanted["embeddings"].requires_grad_(), wanted["labels"], wanted["features"]
    heads = [head(state, i)(features) for i in range(2)]
    ms = MultiSimilarityLoss()
    losses = [ms(g, labels) for g in heads]
    terms = s2sd_loss(ms(e, labels), losses, e, heads, features, warmup=0)
    torch.testing.assert_close(terms.loss, wanted["loss"], rtol=1e-5, atol=0)
    (gradient,) = torch.autograd.grad(terms.loss, e)
    torch.testing.assert_close(gradient, wanted["grad_embeddings"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_distillation_is_the_mean_kl_of_rows(temperature):
    student, teacher = torch.randn(6, 4, requires_grad=True), torch.randn(6, 9, requires_grad=True)
    own, other = (F.normalize(x) @ F.normalize(x).T / temperature for x in (student, teacher))
    rows = [
        sum(p[j] * (p[j] / q[j]).log() for j in range(6))
        for p, q in zip(other.softmax(1), own.softmax(1), strict=True)
    ]
    loss = similarity_distillation(student, teacher, temperature)
    torch.testing.assert_close(loss, temperature**2 * torch.stack(rows).mean(), rtol=1e-4, atol=1e-6)
    loss.backward()
    assert teacher.grad is None and student.grad.abs().max() > 1e-4


def test_without_detaching_the_teacher_learns_too():
    student, teacher = torch.randn(6, 4, requires_grad=True), torch.randn(6, 9, requires_grad=True)
    kept = similarity_distillation(student, teacher, detach=False)
    torch.testing.assert_close(kept, similarity_distillation(student, teacher))
    pulled = torch.autograd.grad(kept, [student, teacher])
    (alone,) = torch.autograd.grad(similarity_distillation(student, teacher), student)
    torch.testing.assert_close(pulled[0], alone)
    assert pulled[1].abs().max() > 1e-4
    heads = s2sd_loss(student.sum(), [teacher.sum()], student, [teacher], weight=1.0, detach=False).heads
    assert torch.autograd.grad(heads, teacher)[0].abs().max() > 1e-4


def test_equal_angles_have_nothing_to_learn():
    x = torch.randn(5, 3, requires_grad=True)
    turn = torch.linalg.qr(torch.randn(3, 3)).Q
    loss = similarity_distillation(x, 4 * x @ turn)
    assert abs(loss.item()) < 1e-6
    assert torch.autograd.grad(loss, x)[0].abs().max() < 1e-6


def test_parts_and_their_weights():
    f, *gs = (torch.randn(8, d, requires_grad=True) for d in (4, 6, 10))
    phi = torch.randn(8, 20, requires_grad=True)
    own, others = f.sum(), [g.sum() for g in gs]

    def d(teacher):
        return similarity_distillation(f, teacher, 0.5)

    dsd = s2sd_loss(own, others[:1], f, gs[:1], weight=3, temperature=0.5)
    torch.testing.assert_close(dsd.loss, (own + others[0]) / 2 + 3 * d(gs[0]))
    msd = s2sd_loss(own, others, f, gs, weight=3, temperature=0.5)
    torch.testing.assert_close(msd.metric, own / 2 + (others[0] + others[1]) / 4)
    torch.testing.assert_close(msd.heads, 3 / 2 * (d(gs[0]) + d(gs[1])))
    msdf = s2sd_loss(own, others, f, gs, phi, 3, 5, 0.5, step=10, warmup=10)
    torch.testing.assert_close(msdf.features, 5 * d(phi))
    torch.testing.assert_close(msdf.loss, msd.loss + 5 * d(phi))
    early = s2sd_loss(own, others, f, gs, phi, 3, 5, 0.5, step=9, warmup=10)
    assert early.features == 0 and early.loss == msd.loss
    # heads learn from their own objective only: the gradient of a mean of sums, over two heads and halved
    msdf.loss.backward()
    assert all(torch.equal(g.grad, torch.full_like(g, 0.25)) for g in gs)
    assert phi.grad is None


def test_pooling_by_hand():
    maps = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]], [[0.0, 0.0], [0.0, -4.0]]]])
    assert max_plus_average(maps).tolist() == [[9, -1]]


def test_mistakes_are_named():
    f, g = torch.randn(4, 3), torch.randn(4, 6)
    with pytest.raises(BookError, match="1 heads with 0 losses"):
        s2sd_loss(f.sum(), [], f, [g])
    with pytest.raises(BookError, match="at least one"):
        s2sd_loss(f.sum(), [], f, [])
    with pytest.raises(BookError, match=r"student \(4, 3\), teacher \(5, 6\)"):
        similarity_distillation(f, torch.randn(5, 6))


def test_fp32_under_autocast():
    f, g = torch.randn(16, 8).bfloat16(), torch.randn(16, 32).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = similarity_distillation(f, g)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, similarity_distillation(f.float(), g.float()), rtol=0, atol=0)
