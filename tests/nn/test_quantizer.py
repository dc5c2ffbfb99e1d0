from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from torch.utils._python_dispatch import TorchDispatchMode

from cvlib.errors import BookError
from cvlib.nn.quantizer import CodeUsage, VectorQuantizer, kmeans, nearest_code, straight_through


class LargestTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operation made."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else [out]:
            if torch.is_tensor(value):
                self.largest = max(self.largest, value.untyped_storage().nbytes() // value.element_size())
        return out


def rows(z):
    return z.permute(0, 2, 3, 1).flatten(0, 2)


@pytest.mark.parametrize("chunk", [1, 100, 2**22])
def test_nearest_code_is_brute_force(chunk):
    z, codes = torch.randn(97, 5), torch.randn(31, 5)
    brute = ((z[:, None] - codes) ** 2).sum(-1).argmin(1)
    assert torch.equal(nearest_code(z, codes, chunk), brute)


def test_nearest_code_is_fp32_under_autocast():
    codes = torch.tensor([[256.0], [257.0]])  # one number in bf16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert nearest_code(torch.tensor([[256.9], [256.2]]), codes).tolist() == [1, 0]


def test_no_matrix_of_all_distances():
    n, k, d = 4096, 4096, 4  # 2^24 distances
    vq, z = VectorQuantizer(k, d), torch.randn(1, d, 64, 64, requires_grad=True)
    saved = []
    with (
        LargestTensor() as seen,
        torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t),
    ):
        out = vq(z)
        (out.z_q.sum() + out.loss).backward()
    assert max(saved) <= max(n, k) * d  # nothing larger than features or codebook waits for backward
    assert max(n, k) * d < seen.largest <= 2**22  # one piece at a time, even in passing


def test_largest_tensor_sees_a_full_distance_matrix():
    with LargestTensor() as seen:
        torch.randn(64, 2) @ torch.randn(2, 64)
    assert seen.largest == 64 * 64


def test_straight_through_is_code_forward_and_identity_backward():
    vq, z = VectorQuantizer(16, 4), torch.randn(2, 4, 3, 3, requires_grad=True)
    out, weight = vq(z), torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(rows(out.z_q), vq.codebook[out.indices.flatten()])
    assert torch.equal(torch.autograd.grad((out.z_q * weight).sum(), z)[0], weight)
    with pytest.raises(ValueError, match="must match"):
        straight_through(z, z[:1])


@pytest.mark.parametrize("legacy, on_codebook, on_features", [(False, 1.0, 0.25), (True, 0.25, 1.0)])
def test_beta_weighs_the_commitment_unless_legacy(legacy, on_codebook, on_features):
    vq, z = VectorQuantizer(8, 4, beta=0.25, legacy=legacy), torch.randn(2, 4, 5, 5, requires_grad=True)
    with torch.no_grad():
        vq.codebook.normal_()
    out = vq(z)
    to_z, to_codes = torch.autograd.grad(out.loss, [z, vq.codebook])
    # d/dz mean (z - e)^2 = 2 (z - e) / n, and the opposite, summed over its members, for each code
    pull = 2 * (rows(z) - vq.codebook[out.indices.flatten()]) / z.numel()
    expected = torch.zeros(8, 4).index_add_(0, out.indices.flatten(), -pull)
    torch.testing.assert_close(rows(to_z), on_features * pull)
    torch.testing.assert_close(to_codes, on_codebook * expected)
    torch.testing.assert_close(out.loss, on_codebook * out.codebook_loss + on_features * out.commitment_loss)


def test_cosine_chooses_by_direction_and_returns_unit_vectors():
    vq, z = VectorQuantizer(32, 6, cosine=True), torch.randn(2, 6, 4, 4)
    with torch.no_grad():
        vq.codebook.mul_(torch.rand(32, 1) * 10)  # lengths must not matter
    out = vq(z)
    similarity = F.cosine_similarity(rows(z)[:, None], vq.codebook, dim=-1)
    assert torch.equal(out.indices.flatten(), similarity.argmax(1))
    torch.testing.assert_close(out.z_q.norm(dim=1), torch.ones(2, 4, 4))
    torch.testing.assert_close(vq(7 * z).loss, out.loss)
    # |a - b|^2 = 2 - 2 cos(a, b) on the sphere, averaged over the width
    torch.testing.assert_close(out.codebook_loss, ((2 - 2 * similarity.max(1).values) / 6).mean())


def test_lookup_inverts_indices_and_reaches_the_codebook():
    vq = VectorQuantizer(16, 4)
    out = vq(torch.randn(2, 4, 3, 5))
    torch.testing.assert_close(vq.lookup(out.indices), out.z_q, rtol=0, atol=1e-6)
    vq.lookup(torch.full((1, 1, 1), 3)).sum().backward()
    assert vq.codebook.grad.nonzero()[:, 0].unique().tolist() == [3]


def test_fp32_under_autocast():
    vq, z = VectorQuantizer(64, 8), torch.randn(1, 8, 8, 8).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = vq(z)
    exact = vq(z.float())
    assert mixed.z_q.dtype == mixed.loss.dtype == torch.float32
    assert torch.equal(mixed.indices, exact.indices)
    torch.testing.assert_close(mixed.loss, exact.loss)


def test_wrong_width_is_refused():
    with pytest.raises(ValueError, match=r"wanted \(B, 4, H, W\)"):
        VectorQuantizer(16, 4)(torch.randn(2, 3, 8, 8))


def test_usage_counts_over_a_pass():
    usage, batches = CodeUsage(10), [torch.randint(0, 7, (2, 4, 4)) for _ in range(3)]
    for batch in batches:
        usage.update(batch)
    p = np.bincount(torch.cat(batches).flatten(), minlength=10) / 96
    entropy = -sum(x * np.log(x) for x in p if x > 0)
    assert usage.fraction_used == np.mean(p > 0) == 0.7
    assert usage.entropy == pytest.approx(entropy)
    assert usage.perplexity == pytest.approx(np.exp(entropy))
    usage.reset()
    usage.update(torch.arange(10))
    assert usage.perplexity == pytest.approx(10)


@pytest.mark.parametrize("cosine", [False, True])
def test_revive_moves_dead_codes_onto_features(cosine):
    vq, z = VectorQuantizer(12, 4, cosine=cosine), torch.randn(2, 4, 5, 5)
    usage, before = CodeUsage(12), vq.codebook.detach().clone()
    usage.update(torch.tensor([0, 3, 3, 7]))
    alive, dead = [0, 3, 7], [i for i in range(12) if i not in (0, 3, 7)]
    assert vq.revive(z, usage, torch.Generator().manual_seed(1)).tolist() == dead
    assert torch.equal(vq.codebook[alive], before[alive])
    points = rows(F.normalize(z, dim=1) if cosine else z)
    assert (vq.codebook[dead][:, None] - points).abs().amax(2).amin(1).max() < 1e-6
    assert set(dead) & set(vq(z).indices.flatten().tolist())  # chosen now
    again = VectorQuantizer(12, 4, cosine=cosine)
    again.revive(z, usage, torch.Generator().manual_seed(1))
    assert torch.equal(again.codebook[dead], vq.codebook[dead])


def test_revive_clears_the_moments_of_dead_codes_only():
    vq, usage = VectorQuantizer(4, 2), CodeUsage(4)
    optimizer = torch.optim.Adam(vq.parameters())
    vq.codebook.grad = torch.ones(4, 2)
    optimizer.step()
    usage.update(torch.tensor([1]))
    vq.revive(torch.randn(1, 2, 3, 3), usage, optimizer=optimizer)
    moments = optimizer.state[vq.codebook]
    assert moments["exp_avg"].count_nonzero(1).tolist() == [0, 2, 0, 0]
    assert moments["exp_avg_sq"].count_nonzero(1).tolist() == [0, 2, 0, 0]
    assert moments["step"] == 1


def test_kmeans_equals_the_peer_from_the_same_start():
    points = torch.cat([torch.randn(60, 3) + offset for offset in torch.randn(12, 3) * 4])
    start = kmeans(points, 12, 0, _generator(0))
    peer = KMeans(12, init=start.numpy(), n_init=1, max_iter=20, tol=0).fit(points.numpy())
    centres = torch.from_numpy(peer.cluster_centers_)
    torch.testing.assert_close(kmeans(points, 12, peer.n_iter_, _generator(0)), centres, rtol=1e-4, atol=1e-5)


def test_kmeans_improves_and_fills_every_centre():
    points = torch.randn(200, 2).repeat_interleave(2, 0)  # doubled points make empty centres likely
    errors = [_inertia(points, kmeans(points, 30, n, _generator(0))) for n in (0, 1, 4, 16)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.7 * errors[0]
    vq = VectorQuantizer(30, 2)
    vq.init_kmeans(points.view(1, 20, 20, 2).permute(0, 3, 1, 2), 16, _generator(0))
    usage = CodeUsage(30)
    usage.update(nearest_code(points, vq.codebook))
    assert usage.fraction_used > 0.9


def test_a_centre_without_points_restarts_at_one():
    points = torch.tensor([[5.0], [9.0]]).repeat(8, 1)  # three centres, two places
    assert set(kmeans(points, 3, 4, _generator(0)).flatten().tolist()) == {5.0, 9.0}


def test_kmeans_on_the_sphere_and_with_too_few_points():
    vq = VectorQuantizer(8, 3, cosine=True)
    vq.init_kmeans(torch.randn(1, 3, 6, 6) * 5, generator=_generator(0))
    torch.testing.assert_close(vq.codebook.norm(dim=1), torch.ones(8))
    with pytest.raises(BookError, match="16 vectors for 20 centres"):
        VectorQuantizer(20, 3).init_kmeans(torch.randn(1, 3, 4, 4))


def _generator(seed):
    return torch.Generator().manual_seed(seed)


def _inertia(points, centres):
    return torch.cdist(points, centres).min(1).values.square().sum().item()


TWO_PROCESSES = """
import sys, torch, torch.distributed as dist
from cvlib.nn.quantizer import CodeUsage, VectorQuantizer
rank, file = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
torch.manual_seed(0)
vq, usage = VectorQuantizer(8, 2), CodeUsage(8)
before = vq.codebook.detach().clone()
usage.update(torch.tensor([rank, 2]))
usage.gather()
assert usage.counts.tolist() == [1, 1, 2, 0, 0, 0, 0, 0]
torch.manual_seed(rank)
dead = vq.revive(torch.randn(1, 2, 4, 4), usage)
assert dead.tolist() == [3, 4, 5, 6, 7] and torch.equal(vq.codebook[:3], before[:3])
books = [torch.empty(8, 2) for _ in range(2)]
dist.all_gather(books, vq.codebook.detach())
assert torch.equal(books[0], books[1]) and not torch.equal(books[0][3:], before[3:])
dist.destroy_process_group()  # or its threads may abort the interpreter on its way out
"""


@pytest.mark.slow
def test_two_processes_share_counts_and_codebook(tmp_path):
    command = [sys.executable, "-c", TWO_PROCESSES]
    both = [subprocess.Popen([*command, str(rank), str(tmp_path / "meet")]) for rank in range(2)]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
