from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from cvlib.claims import detectable, effect_size, holm, paired_bootstrap, sign_flip_p, t_p
from cvlib.errors import BookError


def test_bootstrap_is_that_of_scipy():
    rng = np.random.default_rng(0)
    a, b = rng.normal(1, 1, 30), rng.normal(0, 1, 30)
    interval = paired_bootstrap(a, b)
    peer = stats.bootstrap(
        (a - b,), np.mean, method="percentile", n_resamples=10_000, rng=1
    ).confidence_interval
    assert interval.mean == pytest.approx((a - b).mean())
    # a 2.5 % quantile of 10,000 draws has the error sqrt(0.025 x 0.975 / 10,000) / 0.058 = 0.027 sd of the
    # mean (0.058 is the normal density there); three errors of the difference of two such are 0.11
    assert np.allclose([interval.low, interval.high], peer, atol=0.11 * (a - b).std() / 30**0.5)


def test_bootstrap_of_three_is_exact():
    # 27 equally likely resamples can be written out
    d = [0.0, 1.0, 5.0]
    means = np.sort([np.mean(s) for s in itertools.product(d, repeat=3)])
    interval = paired_bootstrap(d, level=0.8)
    assert (interval.low, interval.high) == pytest.approx(
        tuple(np.quantile(means, [0.1, 0.9], method="inverted_cdf"))
    )


def test_bootstrap_covers():
    rng, hits = np.random.default_rng(0), 0
    for i in range(300):
        interval = paired_bootstrap(rng.normal(0, 1, 40), draws=500, seed=i)
        hits += interval.low <= 0 <= interval.high
    assert 0.90 < hits / 300 < 0.98  # nominal 0.95, slightly narrow; 300 trials know it to 0.013


def test_bootstrap_keeps_pairs_together_and_is_seeded():
    noise = np.random.default_rng(0).normal(0, 100, 50)
    assert paired_bootstrap(noise + 1, noise).high == pytest.approx(1)
    assert paired_bootstrap(noise) == paired_bootstrap(noise)
    assert paired_bootstrap(noise) != paired_bootstrap(noise, seed=1)
    assert paired_bootstrap(np.ones(3_000)).low == 1  # in blocks


def test_sign_flips_are_exact():
    assert sign_flip_p([1, 2, 3, 4, 5]) == 1 / 32
    assert sign_flip_p([-1, -2, -3]) == 1
    assert sign_flip_p([1, 2, -3]) == 5 / 8  # sums at least 0: +++ ++- (0) +-+ -++ and --+ (0)
    d = np.random.default_rng(0).normal(0.3, 1, 12)
    peer = stats.permutation_test(
        (d, np.zeros(12)),
        lambda x, y, axis: (x - y).sum(axis),
        permutation_type="samples",
        alternative="greater",
        n_resamples=np.inf,
        vectorized=True,
    )
    assert sign_flip_p(d) == pytest.approx(peer.pvalue)
    many = np.random.default_rng(1).normal(0.1, 1, 60)
    assert sign_flip_p(many) == pytest.approx(t_p(many), abs=0.01)


@pytest.mark.parametrize("p_of", [sign_flip_p, t_p])
def test_p_values_are_uniform_without_an_effect(p_of):
    rng = np.random.default_rng(0)
    p = np.array([p_of(rng.normal(0, 1, 8)) for _ in range(600)])
    assert abs((p <= 0.25).mean() - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 600)


def test_t_test_knows_constant_differences():
    assert t_p([2.0, 2.0, 2.0]) == 0.0
    assert t_p([0.0, 0.0]) == 1.0 and t_p([-1.0, -1.0]) == 1.0
    a, b = [1.0, 2.0, 4.0], [0.5, 0.5, 1.0]
    assert t_p(a, b) == stats.ttest_rel(a, b, alternative="greater").pvalue


def test_holm_is_the_textbook_loop():
    def rejected(p, level):  # step down until the first failure
        out = set()
        for rank, i in enumerate(np.argsort(p, kind="stable")):
            if p[i] > level / (len(p) - rank):
                break
            out.add(int(i))
        return out

    rng = np.random.default_rng(0)
    for _ in range(200):
        p = (rng.random(6) ** 3).tolist()
        adjusted = holm(p)
        for level in (0.01, 0.05, 0.2):
            assert {i for i in range(6) if adjusted[i] <= level} == rejected(p, level)
    assert holm([]) == [] and holm([0.6, 0.9]) == [1.0, 1.0]


def test_effect_size_is_unbiased():
    rng = np.random.default_rng(0)
    values = [effect_size(rng.normal(1.5, 1, 5)) for _ in range(20_000)]
    error = np.std(values) / math.sqrt(20_000)
    assert abs(np.mean(values) - 1.5) < 4 * error  # without the factor the mean is 1.88
    assert effect_size([1.0, 1.0]) == math.inf and effect_size([-1.0, -1.0]) == -math.inf
    assert effect_size([0.0, 0.0]) == 0.0


def test_detectable_effect_is_found_as_often_as_said():
    pilot = [0.9, 1.3, 1.0, 0.6]
    shift, rng = detectable(pilot, 6), np.random.default_rng(0)
    found = np.mean([t_p(rng.normal(shift, np.std(pilot, ddof=1), 6)) <= 0.05 for _ in range(1500)])
    assert abs(found - 0.8) < 4 * math.sqrt(0.16 / 1500)
    assert detectable(pilot, 12) < shift < detectable(pilot, 6, alpha=0.01)


@pytest.mark.parametrize("bad", [[1.0], [1.0, math.nan], [[1.0, 2.0]]])
def test_too_little_or_broken_data_is_refused(bad):
    for function in (paired_bootstrap, sign_flip_p, t_p, effect_size):
        with pytest.raises(BookError, match="two finite rows"):
            function(bad)
    with pytest.raises(BookError, match=r"\(2,\) and \(3,\)"):
        paired_bootstrap([1, 2], [1, 2, 3])
