from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from sklearn.decomposition import PCA

import cvlib.metrics.distribution as distribution
from cvlib.errors import BookError
from cvlib.metrics import Score, frechet, kid, metric_name, precision_recall, real_floor


def normal(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def exact(mean: np.ndarray, cov: np.ndarray, n: int, seed: int) -> torch.Tensor:
    """n samples whose sample mean and covariance are the given ones, exactly."""
    x = normal(n, len(mean), seed).double().numpy()
    x = x - x.mean(0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T
    return torch.from_numpy(x @ np.linalg.cholesky(cov).T + mean)


@pytest.fixture(params=[2048, 3])
def chunk(request, monkeypatch):
    """Both in one piece and in pieces that do not divide the number of rows."""
    monkeypatch.setattr(distribution, "_CHUNK", request.param)


def test_kid_is_the_double_loop(chunk):
    x, y = normal(7, 4, 0), normal(5, 4, 1) + 0.5

    def k(a, b):
        return float((a.double() @ b.double() / 4 + 1) ** 3)

    xx = sum(k(x[i], x[j]) for i in range(7) for j in range(7) if i != j) / (7 * 6)
    yy = sum(k(y[i], y[j]) for i in range(5) for j in range(5) if i != j) / (5 * 4)
    xy = sum(k(a, b) for a in x for b in y) / (7 * 5)
    assert float(kid(x, y)) == pytest.approx(xx + yy - 2 * xy, rel=1e-10)


def test_kid_is_zero_in_the_mean_for_equal_distributions():
    values = np.array(
        [float(kid(normal(20, 8, 2 * i), normal(20, 8, 2 * i + 1), subsets=0)) for i in range(400)]
    )
    error = values.std(ddof=1) / 20
    assert abs(values.mean()) < 3 * error  # the biased estimator lies more than 30 errors above
    assert (values < 0).mean() > 0.3
    assert float(kid(normal(20, 8, 0), normal(20, 8, 1) + 1)) > 10 * error


def test_kid_tells_its_spread_and_its_numbers():
    x, y = normal(300, 8, 0), normal(200, 8, 1)
    score = kid(x, y)
    assert (score.n_real, score.n_fake, score.dim) == (300, 200, 8)
    truth = np.std(
        [float(kid(normal(100, 8, 2 * i), normal(100, 8, 2 * i + 1), subsets=0)) for i in range(100)]
    )
    assert 0.3 * truth < score.std < 2 * truth
    assert kid(x, y) == score and kid(x, y, seed=1).std != score.std
    assert "N = 300 real, 200 made" in str(score)


def test_frechet_is_the_closed_form():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 5, 5))
    s1, s2 = a @ a.T + np.eye(5), b @ b.T + 0.1 * np.eye(5)
    m1, m2 = rng.normal(size=(2, 5))
    truth = ((m1 - m2) ** 2).sum() + np.trace(s1 + s2 - 2 * sqrtm(s1 @ s2).real)
    score = frechet(exact(m1, s1, 50, 0), exact(m2, s2, 40, 1), dim=None)
    assert float(score) == pytest.approx(truth, rel=1e-6)
    # commuting covariances: a sum over axes that needs no matrix root at all
    wide, narrow = np.array([9.0, 4.0, 1.0]), np.array([1.0, 1.0, 4.0])
    value = frechet(
        exact(np.zeros(3), np.diag(wide), 20, 2), exact(np.ones(3), np.diag(narrow), 20, 3), dim=None
    )
    assert float(value) == pytest.approx(3 + ((wide**0.5 - narrow**0.5) ** 2).sum(), rel=1e-6)


def test_frechet_projects_on_the_axes_of_the_reference():
    real, fake = normal(300, 20, 0) * torch.linspace(3, 0.1, 20), normal(200, 20, 1)
    pca = PCA(6, svd_solver="full").fit(real.numpy())
    peer = frechet(torch.tensor(pca.transform(real)), torch.tensor(pca.transform(fake)), dim=None)
    assert float(frechet(real, fake, dim=6)) == pytest.approx(float(peer), rel=1e-4)
    assert frechet(real, fake, dim=6).dim == 6
    assert float(frechet(real, real)) == pytest.approx(0, abs=1e-6)
    assert abs(float(frechet(fake, real, dim=6)) - float(peer)) > 0.1  # the reference is not interchangeable


def test_precision_recall_is_the_double_loop(chunk):
    real, fake, k = normal(23, 3, 0).double(), normal(17, 3, 1).double() + torch.tensor([1.8, 0, 0]), 3

    def share(samples, centres):
        hits = 0
        for sample in samples:
            for i, centre in enumerate(centres):
                others = sorted(float((centre - o).norm()) for j, o in enumerate(centres) if j != i)
                if float((sample - centre).norm()) <= others[k - 1]:
                    hits += 1
                    break
        return hits / len(samples)

    result = precision_recall(real, fake, k=k)
    assert result == (share(fake, real), share(real, fake), 23, 17)
    assert 0 < result.precision < 1 and 0 < result.recall < 1  # else the comparison says little


def test_precision_and_recall_see_different_faults():
    real = torch.cat([normal(200, 2, 0), normal(200, 2, 1) + 20])
    collapsed = precision_recall(real, normal(400, 2, 2))
    assert collapsed.precision > 0.95 and 0.4 < collapsed.recall < 0.55  # one of two modes
    stray = precision_recall(real, torch.cat([real + 0.01, normal(400, 2, 3) + 50]))
    assert stray.recall > 0.95 and 0.45 < stray.precision < 0.55


def test_floor_of_a_biased_metric_lies_above_zero():
    real = normal(400, 8, 0)
    floor = real_floor(frechet, real)
    assert (floor.n_real, floor.n_fake) == (200, 200)
    assert floor.std is not None and float(floor) > 5 * floor.std / 10**0.5
    assert float(frechet(real[:200], normal(200, 8, 1) + 1)) > 5 * float(floor)
    assert abs(float(real_floor(lambda a, b: kid(a, b, subsets=0), real, splits=40))) < 0.05


@pytest.mark.parametrize("metric", [kid, frechet, precision_recall])
def test_bad_features_are_refused(metric):
    good = normal(80, 4, 0)
    with pytest.raises(BookError, match="one width D"):
        metric(good, good[:, :3])
    with pytest.raises(BookError, match="N at least"):
        metric(good, good[:1])
    with pytest.raises(BookError, match="made features with NaN"):
        metric(good, good.where(good < 1, torch.nan))


def test_frechet_needs_more_samples_than_dimensions():
    with pytest.raises(BookError, match="N at least 65"):
        frechet(normal(64, 100, 0), normal(64, 100, 1))


def test_names_say_the_network():
    class Net(torch.nn.Module):
        name = "vgg16-hed"

    assert metric_name("LPIPS", Net()) == "LPIPS-VGG16-HED"
    with pytest.raises(BookError, match="without a name"):
        metric_name("KID", torch.nn.Identity())
    assert float(Score(1.5, 2, 3)) == 1.5
