"""What the page "invariances_photos_measured" defines, held against closed forms and brute force."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from cvlib.pages import definitions
from tests.tiny_study import close, gen

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"


@pytest.fixture(scope="module")
def page():
    return definitions(NOTEBOOKS / "invariances_photos_measured.py")


@pytest.fixture(scope="module")
def story():
    return definitions(NOTEBOOKS / "invariances.py")


# what stays


def test_agreement_is_the_ratio_over_all_pairs(page):
    drawn, truth = torch.randn(7, 3, 2, generator=gen()), torch.randn(7, 2, generator=gen(1)) + 0.5
    ratios = []
    for k in range(2):
        near = [(drawn[i, j, k] - truth[i, k]) ** 2 for i in range(7) for j in range(3)]
        far = [(drawn[i, j, k] - truth[m, k]) ** 2 for i in range(7) for j in range(3) for m in range(7)]
        ratios.append((sum(near) / len(near)) / (sum(far) / len(far)))
    close(page.agreement(drawn, truth).mean(), 1 - sum(ratios) / 2)


def test_shares_in_agreement_have_its_spread(page):
    """Their standard error is that of the ratio when whole crops are drawn anew, within its own error."""
    shared = torch.randn(150, 1, 1, generator=gen())
    drawn = shared + torch.randn(150, 4, 1, generator=gen(1))
    truth = shared[:, 0] + torch.randn(150, 1, generator=gen(2)) ** 3 / 4
    draws = torch.randint(150, (1500, 150), generator=gen(3))
    anew = torch.stack([page.agreement(drawn[rows], truth[rows]).mean() for rows in draws])
    shares = page.agreement(drawn, truth)
    assert shares.std().item() / math.sqrt(150) == pytest.approx(anew.std().item(), rel=0.15)


def test_agreement_of_copies_is_one_and_of_strangers_zero(page):
    truth = torch.randn(4000, 3, generator=gen())
    close(page.agreement(truth[:, None].expand(-1, 4, -1), truth).mean(), torch.tensor(1.0))
    strangers = torch.randn(4000, 4, 3, generator=gen(1))
    assert abs(page.agreement(strangers, truth).mean()) < 0.03


def test_agreement_equals_r_when_the_truth_is_one_more_draw_and_falls_when_the_draws_are_too_sure(
    page, story
):
    shared = torch.randn(6000, 1, 2, generator=gen())
    drawn = shared + torch.randn(6000, 5, 2, generator=gen(1))
    r, a = story.between(drawn[:, 1:]).mean(), page.agreement(drawn[:, 1:], drawn[:, 0]).mean()
    close(r, torch.tensor(0.5), atol=0.03)
    close(a, r, atol=0.03)
    wrong = shared + torch.randn(6000, 1, 2, generator=gen(2))  # sure of something that it does not know
    sure = wrong + 0.1 * torch.randn(6000, 4, 2, generator=gen(3))
    assert story.between(sure).mean() > 0.95
    close(page.agreement(sure, drawn[:, 0]).mean(), torch.tensor(1 - 2.01 / 4.01), atol=0.03)


def test_to_know_the_photograph_alone_is_worth_nothing_beyond_it(page):
    """Half of what varies within photographs known: A beyond them is a half, whatever lies between them."""
    subject = torch.arange(4000) % 13
    offset = 3 * torch.randn(13, 2, generator=gen())[subject]
    for known, wanted in ((0.0, 0.0), (1.0, 0.5)):
        shared = known * torch.randn(4000, 1, 2, generator=gen(1))
        drawn = offset[:, None] + shared + torch.randn(4000, 4, 2, generator=gen(2))
        truth = offset + shared[:, 0] + torch.randn(4000, 2, generator=gen(3))
        assert page.agreement(drawn, truth).mean() > 0.75
        close(
            page.agreement(*page.about_subject(drawn, truth, subject)).mean(), torch.tensor(wanted), atol=0.03
        )


def test_the_mean_of_a_photograph_is_that_of_its_crops(page):
    drawn, truth = torch.randn(5, 2, 3, generator=gen()), torch.randn(5, 3, generator=gen(1))
    subject = torch.tensor([7, 2, 7, 7, 2])
    less, own = page.about_subject(drawn, truth, subject)
    for k in range(5):
        middle = torch.stack([truth[i] for i in range(5) if subject[i] == subject[k]]).mean(0)
        close(own[k], truth[k] - middle)
        close(less[k], drawn[k] - middle)


def test_scrambled_images_have_the_same_squares_in_another_order(page):
    x = torch.randn(3, 3, 32, 32, generator=gen())
    y = page.scrambled(x, gen(1))
    assert y.shape == x.shape and not torch.equal(x, y)

    def squares(image):
        found = [
            image[:, i : i + 8, j : j + 8].flatten().tolist()
            for i in range(0, 32, 8)
            for j in range(0, 32, 8)
        ]
        return found, sorted(found)

    for before, after in zip(x, y, strict=True):
        (order, kept), (other_order, other) = squares(before), squares(after)
        assert kept == other and order != other_order


def test_means_by_subject_weigh_photographs_alike(page):
    values = torch.tensor([1.0, 2.0, 3.0, 10.0])
    assert page.by_subject(values, torch.tensor([4, 4, 4, 0])).tolist() in ([2, 10], [10, 2])


def test_moves_are_in_units_of_the_distance_between_two(page):
    before = torch.randn(40, 3, 5, generator=gen())
    pairs = [(before[i] - before[j]).norm() for i in range(40) for j in range(i)]
    unit = sum(pairs) / len(pairs)
    assert page.moved(before + 0.1, before) == pytest.approx(0.1 * math.sqrt(15) / unit.item(), rel=1e-4)
    assert page.moved(before, before) == 0


def test_photographs_of_one_pattern_in_both_signs_are_read_from_latents(page, story):
    """Classes that differ in how large which features are, never in a mean: absolute values are needed."""
    label = torch.arange(400) % 2
    scale = torch.tensor([[3.0, 0.3], [0.3, 3.0]])[label]
    moments = torch.cat([scale * torch.randn(400, 2, generator=gen()), torch.zeros(400, 2)], 1)

    class Part:
        labels = {"photo": label[:200]}  # noqa: RUF012  # a stand-in, never changed
        label_names = {"photo": ["a", "b"]}  # noqa: RUF012  # a stand-in, never changed

        @staticmethod
        def column(name, rows):
            return moments[:200][rows]

    class Study:
        known = {"train": Part}  # noqa: RUF012  # a stand-in, never changed

    for at_most in (1000, 100):
        read = page.subject_reader(Study, "photo", at_most)(moments[200:, :2])
        assert story.right(read, label[200:]) > 0.85
    linear = story.ridge(moments[:200, :2], F.one_hot(label[:200]).float())(moments[200:, :2])
    assert story.right(linear, label[200:]) < 0.65
