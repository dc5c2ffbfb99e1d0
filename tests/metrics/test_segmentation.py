from __future__ import annotations

import itertools
import math

import pytest
import torch

from cvlib.errors import BookError
from cvlib.metrics.landmarks import LandmarkRegression, part_centroids, pck
from cvlib.metrics.segmentation import (
    UNLABELLED,
    iou_table,
    many_to_one,
    one_to_one,
    overlaps,
    segmentation_scores,
)

P, L = 5, 4


def masks(seed: int = 0, n: int = 6, side: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    """Parts that know something about the labels; label 3 is absent from most images, part 4 from all."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, L - 1, (n, side, side), generator=g)
    labels[0, 0, :3] = 3
    noise = torch.randint(0, P - 1, labels.shape, generator=g)
    parts = torch.where(torch.rand(labels.shape, generator=g) < 0.6, labels, noise)
    return parts, labels


def pixels(image: torch.Tensor, ids: set[int]) -> set[int]:
    return {k for k, value in enumerate(image.flatten().tolist()) if value in ids}


def iou_of_sets(a: set[int], b: set[int]) -> float:
    return len(a & b) / len(a | b) if a | b else math.nan


def test_overlaps_count_pixels():
    parts, labels = masks()
    table = overlaps(parts, labels, P, L)
    for i, p, k in itertools.product(range(6), range(P), range(L)):
        both = pixels(parts[i], {p}) & pixels(labels[i], {k})
        assert table[i, p, k] == len(both)


def test_iou_table_is_that_of_sets():
    parts, labels = masks()
    table = iou_table(overlaps(parts, labels, P, L))
    for p, k in itertools.product(range(P), range(L)):
        expected = iou_of_sets(pixels(parts, {p}), pixels(labels, {k}))
        assert table[p, k].item() == pytest.approx(0.0 if math.isnan(expected) else expected)


@pytest.mark.parametrize("seed", range(5))
def test_assignments_are_the_best_of_all(seed):
    overlap = overlaps(*masks(seed), P, L)
    table = iou_table(overlap)
    free = many_to_one(overlap)
    every = itertools.product(range(L), repeat=P)
    assert sum(table[p, free[p]] for p in range(P)) == pytest.approx(
        max(sum(table[p, k].item() for p, k in enumerate(one)) for one in every)
    )
    matched = one_to_one(overlap)
    used = matched[matched >= 0].tolist()
    assert len(used) == len(set(used)) and matched[4] == -1  # the empty part
    total = sum(table[p, k].item() for p, k in enumerate(matched.tolist()) if k >= 0)
    rows = itertools.permutations(range(P), L)
    assert total == pytest.approx(max(sum(table[p, k].item() for k, p in enumerate(one)) for one in rows))


@pytest.mark.parametrize("assignment", [[0, 1, 2, 1, 0], [2, -1, 1, 0, 3], [0, 0, 0, 0, 0]])
def test_scores_are_those_of_sets(assignment):
    parts, labels = masks(3)
    scores = segmentation_scores(overlaps(parts, labels, P, L), torch.tensor(assignment))
    given = [{p for p, k in enumerate(assignment) if k == label} for label in range(L)]
    for label in range(L):
        per_image = [
            iou_of_sets(pixels(a, given[label]), pixels(b, {label}))
            for a, b in zip(parts, labels, strict=True)
            if (b == label).any()
        ]
        assert scores.per_image[label].item() == pytest.approx(sum(per_image) / len(per_image))
        pooled = iou_of_sets(pixels(parts, given[label]), pixels(labels, {label}))
        assert scores.pooled[label].item() == pytest.approx(pooled)
    figure = {p for p, k in enumerate(assignment) if k > 0}
    foreground = iou_of_sets(pixels(parts, figure), pixels(labels, {1, 2, 3}))
    assert scores.foreground == pytest.approx(foreground)
    assert scores.overall == pytest.approx(scores.per_image[1:].mean().item())
    assert scores.pooled_overall == pytest.approx(scores.pooled[1:].mean().item())
    assert scores.images.shape == (6,)
    present = [
        iou_of_sets(pixels(parts[0], given[k]), pixels(labels[0], {k}))
        for k in range(1, L)
        if (labels[0] == k).any()
    ]
    assert scores.images[0].item() == pytest.approx(sum(present) / len(present))


def test_a_label_seen_where_it_is_absent_costs_in_the_pooled_score_alone():
    labels = torch.zeros(2, 4, 4, dtype=torch.long)
    labels[0, 0] = 1
    parts = labels.clone()
    parts[1, 0] = 1  # an invention
    scores = segmentation_scores(overlaps(parts, labels, 2, 2), torch.arange(2))
    assert scores.per_image[1] == 1 and scores.pooled[1] == 0.5 and scores.images[1].isnan()


def test_what_nobody_has_is_nan_and_left_out():
    labels = torch.zeros(1, 2, 2, dtype=torch.long)
    labels[0, 0] = 1
    scores = segmentation_scores(overlaps(labels, labels, 3, 3), torch.arange(3))
    assert scores.pooled[2].isnan() and scores.per_image[2].isnan()
    assert scores.overall == scores.pooled_overall == scores.foreground == 1


def test_unlabelled_pixels_count_as_if_they_were_cut_out():
    """Half of each image is unlabelled: all scores are those of the other half, as an image of its own."""
    parts, labels = masks(n=6, side=8)
    some = labels.clone()
    some[:, :, 4:] = UNLABELLED
    table, alone = overlaps(parts, some, P, L), overlaps(parts[:, :, :4], labels[:, :, :4], P, L)
    assert torch.equal(table, alone) and table.sum() == 6 * 32


def test_an_image_without_any_label_has_no_say():
    parts, labels = masks()
    with_none = torch.cat([labels, torch.full_like(labels[:1], UNLABELLED)])
    more = torch.cat([parts, torch.ones_like(parts[:1])])
    table, alone = overlaps(more, with_none, P, L), overlaps(parts, labels, P, L)
    assert torch.equal(many_to_one(table), many_to_one(alone))
    assert torch.equal(one_to_one(table), one_to_one(alone))
    scores, known = (segmentation_scores(one, many_to_one(alone)) for one in (table, alone))
    for name in ("per_image", "pooled"):
        torch.testing.assert_close(getattr(scores, name), getattr(known, name), equal_nan=True)
    assert scores.foreground == known.foreground and scores.overall == known.overall
    assert scores.images[-1].isnan()
    nothing = segmentation_scores(table[-1:], many_to_one(alone))
    assert math.isnan(nothing.overall) and math.isnan(nothing.foreground)  # not zero


def test_an_empty_part_goes_to_the_background_or_nowhere_and_changes_no_score():
    parts, labels = masks()
    table = overlaps(parts, labels, P, L)  # part 4 has no pixel
    assert many_to_one(table)[4] == 0 and one_to_one(table)[4] == -1
    spare = one_to_one(overlaps(parts, labels, P, L + 2))  # though labels without a pixel are left for it
    assert spare[4] == -1 and torch.equal(spare[:4], one_to_one(table)[:4])
    scores = [
        segmentation_scores(table, torch.tensor([*many_to_one(table)[:4].tolist(), label]))
        for label in (-1, 0, 3)
    ]
    for other in scores[1:]:
        torch.testing.assert_close(other.pooled, scores[0].pooled, equal_nan=True)
        assert other.overall == scores[0].overall and other.foreground == scores[0].foreground


def test_wrong_masks_are_told():
    parts, labels = masks()
    for bad, told in [
        ((parts, labels, P, 3), "labels with the unknown id 3"),
        ((parts - 1, labels, P, L), "parts with the unknown id -1; wanted ids 0 to 4"),
        ((parts, labels - 2, P, L), "labels with the unknown id -2; wanted ids -1 to 3"),
        ((parts + 2, labels, P, L), "parts with the unknown id 5"),
        ((parts.float(), labels, P, L), "float32"),
        ((parts[0], labels, P, L), "parts of shape"),
        ((parts[:2], labels, P, L), "equal shapes"),
    ]:
        with pytest.raises(BookError, match=told):
            overlaps(*bad)
    with pytest.raises(BookError, match="5 labels between"):
        segmentation_scores(overlaps(parts, labels, P, L), torch.tensor([0, 1, 2, 3, 4]))


# landmarks


def test_centroids_are_means_of_pixels():
    parts, _ = masks()
    found = part_centroids(parts, P)
    for i, p in itertools.product(range(6), range(P)):
        at = (parts[i] == p).nonzero().double() + 0.5
        if len(at):
            torch.testing.assert_close(found[i, p], at.mean(0).flip(0))
        else:
            assert found[i, p].isnan().all()


def test_a_linear_law_is_found_exactly_and_absent_parts_do_no_harm():
    g = torch.Generator().manual_seed(0)
    centroids = torch.randn(200, 3, 2, generator=g, dtype=torch.float64)
    law = torch.randn(6, 8, generator=g, dtype=torch.float64)
    landmarks = (centroids.flatten(1) @ law + 5).unflatten(1, (4, 2))
    fitted = LandmarkRegression.fit(centroids, landmarks, ridge=1e-9)
    torch.testing.assert_close(fitted.predict(centroids), landmarks, atol=1e-6, rtol=0)
    some = centroids.clone()
    some[:5, 1] = torch.nan
    assert fitted.predict(some).isfinite().all()
    torch.testing.assert_close(fitted.predict(some)[5:], landmarks[5:], atol=1e-6, rtol=0)


def test_unknown_ids_have_no_centroid():
    parts, _ = masks()
    for bad, told in ((parts + 2, "unknown id 5"), (parts - 1, "unknown id -1"), (parts[0], "of shape")):
        with pytest.raises(BookError, match=told):
            part_centroids(bad, P)


def test_hidden_landmarks_are_left_out_one_by_one():
    """Each landmark's map is that of the images which show it; what is hidden could be anything."""
    g = torch.Generator().manual_seed(0)
    centroids = torch.randn(60, 2, 2, generator=g, dtype=torch.float64)
    landmarks = torch.randn(60, 3, 2, generator=g, dtype=torch.float64)
    hidden = landmarks.clone()
    hidden[:20, 1] = torch.nan
    hidden[:, 2] = torch.nan
    fitted, full = LandmarkRegression.fit(centroids, hidden), LandmarkRegression.fit(centroids, landmarks)
    some = LandmarkRegression(full.mean, full.weights)
    predicted = fitted.predict(centroids)
    torch.testing.assert_close(predicted[:, 0], some.predict(centroids)[:, 0])
    x = torch.cat([(centroids - full.mean).flatten(1), torch.ones(60, 1)], 1)[20:]
    shrink = torch.diag(torch.tensor([1.0, 1, 1, 1, 0], dtype=torch.float64))
    by_hand = torch.linalg.inv(x.T @ x + shrink) @ x.T @ landmarks[20:, 1]
    torch.testing.assert_close(predicted[20:, 1], x @ by_hand)
    assert predicted[:, 2].isnan().all()


def test_pck_counts_visible_landmarks_alone():
    true = torch.zeros(4, 2, 2)
    true[0, 0] = torch.nan
    found = torch.zeros(4, 2, 2)
    found[1, 1, 0], found[2, 0] = 50, torch.nan
    assert pck(found, true, 100)[0.1] == pytest.approx(5 / 7)
    assert math.isnan(pck(found, torch.full_like(true, torch.nan), 100)[0.1])


def test_ridge_shrinks_to_the_mean():
    g = torch.Generator().manual_seed(0)
    centroids = torch.randn(50, 2, 2, generator=g, dtype=torch.float64)
    landmarks = torch.randn(50, 3, 2, generator=g, dtype=torch.float64)
    flat = LandmarkRegression.fit(centroids, landmarks, ridge=1e12).predict(centroids)
    torch.testing.assert_close(flat, landmarks.mean(0).expand_as(flat), atol=1e-6, rtol=0)


def test_pck_counts():
    g = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 10, 4, 2, generator=g) * 20
    found = pck(a, b, 64)
    for share, value in found.items():
        near = sum(
            math.dist(x, y) <= share * 64
            for x, y in zip(a.flatten(0, 1).tolist(), b.flatten(0, 1).tolist(), strict=True)
        )
        assert value == pytest.approx(near / 40)
    with pytest.raises(BookError, match="landmarks"):
        pck(a, b[:3], 64)
    with pytest.raises(BookError, match="2 or more"):
        LandmarkRegression.fit(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2))
