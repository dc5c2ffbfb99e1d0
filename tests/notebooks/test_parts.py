"""What the page "parts" defines, held against brute force, autograd and closed forms."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from cvlib.metrics.segmentation import iou_table, overlaps
from cvlib.notebooks import parts_learning as learning
from cvlib.pages import definitions
from cvlib.train import Runtime, save_weights
from tests.tiny_parts import TINY, gen, model_of, rand

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def page():
    return definitions(ROOT / "notebooks" / "parts.py")


@pytest.fixture
def tiny(page):
    return page.PartsConfig(**TINY)


# grading and probes


def test_the_assignment_is_chosen_on_validation(page):
    labels = {
        name: torch.randint(0, 3, (2, 6, 6), generator=gen(k))
        for k, name in enumerate(("validation", "test"))
    }
    renamed = {name: (ids + 1) % 3 for name, ids in labels.items()}
    result = page.grade(renamed, labels, 3, 3)
    assert result.assignment.tolist() == [2, 0, 1] and result.scores.overall == 1
    swapped = {"validation": renamed["validation"], "test": (labels["test"] + 2) % 3}
    assert page.grade(swapped, labels, 3, 3).scores.overall < 0.5  # no help from the test labels


def test_pixel_clusters_find_colours(page):
    ids = torch.randint(0, 3, (4, 8, 8), generator=gen())
    colours = torch.tensor([[-1.0, 0, 1], [1, -1, 0], [0, 1, -1]])
    images = colours[ids].movedim(-1, 1) + 0.01 * rand(4, 3, 8, 8)
    found = page.PixelClusters(images, 3, seed=0).parts(images, 8)
    assert iou_table(overlaps(found, ids, 3, 3)).amax(0).tolist() == [1, 1, 1]


def test_colour_and_place_have_the_pixels_centres(page):
    features = page.colour_and_place(rand(1, 3, 2, 4), weight=2.0)
    assert features[0, 3].tolist() == [[-1.5, -0.5, 0.5, 1.5]] * 2
    assert features[0, 4, :, 0].tolist() == [-1, 1]


def test_the_probe_reads_a_linear_law_and_nothing_out_of_noise(page):
    x, x_test = torch.randn(500, 6, generator=gen()), torch.randn(300, 6, generator=gen(1))
    law = torch.randn(6, 2, generator=gen(2))
    assert page.probe_r2(x, x @ law + 3, x_test, x_test @ law + 3) > 0.99
    noise = torch.randn(500, 2, generator=gen(3)), torch.randn(300, 2, generator=gen(4))
    assert page.probe_r2(x, noise[0], x_test, noise[1]) < 0.05


def alone(n):
    """Everybody is another person in another pose."""
    return torch.arange(n), torch.arange(n)


def test_the_information_bound_is_exact_for_the_true_log_ratio(page):
    """Two coins that agree with probability 0.9: every pair counted as often as it occurs."""
    joint = torch.tensor([[0.45, 0.05], [0.05, 0.45]])
    ratio = (joint / (joint.sum(1, keepdim=True) * joint.sum(0))).log()
    times = (joint * 20).long()
    rows, columns = torch.tensor([(i, j) for i in range(2) for j in range(2) for _ in range(times[i, j])]).T
    known = (joint * ratio).sum().item()
    assert page.information_bound(ratio[rows][:, columns], *alone(20)).item() == pytest.approx(
        known, abs=1e-5
    )
    assert page.information_bound(torch.zeros(20, 20), *alone(20)).item() == pytest.approx(0, abs=1e-6)
    sure = page.information_bound(50 * torch.eye(8), *alone(8))
    assert sure.item() == pytest.approx(math.log(8))  # never more than the log of the persons


def test_the_information_bound_weighs_persons_and_leaves_out_shared_poses(page):
    """Person 0 has two images, 1 has three, 2 has one; images 0 and 2 share a pose. Row by row, by hand."""
    who, where = torch.tensor([0, 0, 1, 1, 1, 2]), torch.tensor([0, 1, 0, 2, 3, 4])
    T = torch.randn(6, 6, generator=gen())
    total = 0.0
    for i in range(6):
        terms = [T[i, i].exp()]
        for person in range(3):
            others = [j for j in range(6) if who[j] == person != who[i] and where[j] != where[i]]
            if others:
                terms.append(sum(T[i, j].exp() for j in others) / len(others))
        total += (T[i, i] - (sum(terms) / len(terms)).log()).item()
    assert page.information_bound(T, who, where).item() == pytest.approx(total / 6, abs=1e-5)


def test_many_images_of_a_person_do_not_make_the_bound_larger(page):
    """64 kinds of outfits, read without error, 40 images of each of 16 persons: at most log 16."""
    outfit = torch.randint(64, (16,), generator=gen()).repeat_interleave(40)
    table = 50.0 * (outfit[:, None] == outfit)
    found = page.information_bound(table, torch.arange(16).repeat_interleave(40), torch.arange(640))
    assert found.item() <= math.log(16) + 1e-4


NAMES = ("train", "validation", "test")


@pytest.mark.parametrize("rho", [0.0, 0.6, 0.9])
def test_the_critic_finds_most_of_what_gaussians_share_and_no_more(page, rho):
    """Noise of the posterior counts: the code is 0.8 mean + 0.6 noise, so it correlates by 0.8 rho."""
    pairs = {name: torch.randn(2, 700, 1, generator=gen(k)) for k, name in enumerate(NAMES)}
    codes = {name: page.Posterior(0.8 * a, torch.full((700, 1, 1), 0.6)) for name, (a, _) in pairs.items()}
    y = {name: rho * a + math.sqrt(1 - rho**2) * b for name, (a, b) in pairs.items()}
    known = -0.5 * math.log(1 - (0.8 * rho) ** 2)
    who = dict.fromkeys(NAMES, torch.arange(700))
    found = page.information(codes, y, who, who, steps=240, n_critics=1)
    assert 0.6 * known - 0.02 < found < 1.2 * known + 0.03
    assert page.information(codes, y, who, who, steps=240, n_critics=1) == found  # its draws are its own


def test_numbers_that_say_nothing_do_not_hide_one_that_does(page):
    """63 numbers of the code are noise around means that hardly differ: they must not be blown up."""
    pairs = {name: torch.randn(2, 700, 64, generator=gen(k)) for k, name in enumerate(NAMES)}
    spread = torch.tensor([1.0, *[0.02] * 63])
    noise = torch.diag(torch.tensor([0.1, *[1.0] * 63])).expand(700, -1, -1)
    codes = {name: page.Posterior(a * spread, noise) for name, (a, _) in pairs.items()}
    y = {name: 0.9 * a[:, :1] + math.sqrt(0.19) * b[:, :1] for name, (a, b) in pairs.items()}
    who = dict.fromkeys(NAMES, torch.arange(700))
    found = page.information(codes, y, who, who, steps=240, n_critics=1)
    assert found > 0.5 * -0.5 * math.log(1 - 0.9**2 / 1.01)


def test_what_training_people_alone_share_does_not_count(page):
    """Only in training does the code tell the colour: elsewhere the constant critic is best."""
    pairs = {name: torch.randn(2, 300, 2, generator=gen(k)) for k, name in enumerate(NAMES)}
    codes = {name: page.Posterior(a, torch.zeros(300, 2, 2)) for name, (a, _) in pairs.items()}
    y = {name: a if name == "train" else b for name, (a, b) in pairs.items()}
    who = dict.fromkeys(NAMES, torch.arange(300))
    assert page.information(codes, y, who, who, steps=120, n_critics=2) < 0.05


def test_mean_colours_are_means_under_labels(page):
    images, labels = rand(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.long)
    labels[0, 0] = 5  # torso, on the first image only
    colours = page.mean_colours(images, labels, ("torso", "background"))
    torch.testing.assert_close(colours[0, :3], images[0, :, 0].mean(1))
    torch.testing.assert_close(colours[1], images[1].mean((1, 2)).repeat(2))


def test_landmarks_follow_centroids(page):
    """A square of part 1 moves about; the joints are its corners."""
    at = torch.randint(0, 10, (400, 2), generator=gen())
    ids, joints = torch.zeros(400, 16, 16, dtype=torch.long), torch.zeros(400, 2, 2)
    for i, (y, x) in enumerate(at.tolist()):
        ids[i, y : y + 6, x : x + 6] = 1
        joints[i] = torch.tensor([[x, y], [x + 6.0, y + 6.0]])
    halves = {"validation": slice(0, 200), "test": slice(200, 400)}
    scores = page.landmark_scores(
        {name: ids[rows] for name, rows in halves.items()},
        {name: joints[rows] for name, rows in halves.items()},
        2,
        16,
    )
    assert scores[0.1] > 0.95
    flat = {name: torch.zeros_like(ids[rows]) for name, rows in halves.items()}
    other = page.landmark_scores(flat, {name: joints[rows] for name, rows in halves.items()}, 2, 16)
    assert other[0.1] < 0.5


def test_painted_masks_are_the_palette(page):
    assert torch.equal(
        page.painted(torch.tensor([[[3]]])).flatten(), torch.tensor(page.PALETTE[3]) / 127.5 - 1
    )


def test_weights_are_as_asked_if_every_setting_agrees(page, tiny):
    asked = {"model": asdict(tiny), "clips": ["walk"]}
    known = {"model": {**asked["model"], "shape_widths": [8, 8]}, "clips": ["walk"], "steps": 9}
    known["model"] = {k: list(v) if isinstance(v, tuple) else v for k, v in known["model"].items()}  # as JSON
    assert page.is_as_asked(known, asked)
    assert not page.is_as_asked(known, asked | {"clips": ["run"]})
    assert not page.is_as_asked(known, asked | {"model": asdict(replace(tiny, n_parts=5))})


def test_a_committed_network_finds_the_same_parts(page, tiny, tmp_path):
    """Saved in bf16 and loaded by the page: as a copy whose weights were rounded."""
    model = model_of(learning)
    path = tmp_path / "parts.safetensors"
    save_weights(path, model, dtype=torch.bfloat16, metadata={"model": asdict(tiny)})
    known = page.load_parts(path, Runtime(device="cpu"))
    assert known.config == tiny
    for mine, theirs in zip(known.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, theirs.to(torch.bfloat16).float())
    x = rand(2, 3, 16, 16)
    model.load_state_dict(known.state_dict())
    assert torch.equal(known.parts(x), model.eval().parts(x))
