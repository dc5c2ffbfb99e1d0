from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cvlib.data import bodies, load
from cvlib.data.base import derived_generator
from cvlib.data.bodies import MERGED, PARTS
from cvlib.data.bodies_people import draw_looks
from cvlib.errors import BookError

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
SPLITS = ("train", "validation", "test")


def small(split: str = "validation", image_size: int = 64, **options) -> bodies.BodyDataset:
    """Twelve shapes in two poses: 48 images, drawn in less than a second and then cached."""
    return load("bodies", split, image_size, shapes=12, poses=2, **options)


def everything(data: bodies.BodyDataset) -> torch.Tensor:
    """All bytes (N, 5, S, S) of a data set."""
    index = torch.arange(len(data))
    return data.crops(index, data.draw(index, None, False))


@pytest.mark.parametrize("image_size", [64, 128])
def test_whole_bodies_lie_in_the_image_and_fill_it(image_size):
    alpha = everything(small("test", image_size))[:, 3] > 0
    rows, columns = alpha.any(2), alpha.any(1)
    margin = image_size // 64
    for edge in (slice(0, margin), slice(image_size - margin, None)):
        assert not rows[:, edge].any() and not columns[:, edge].any()
    extent = torch.maximum(rows.sum(1), columns.sum(1)) / image_size
    assert extent.min() > 0.55 and extent.mean() > 0.75


def test_people_look_as_they_did(tmp_path, monkeypatch):
    """Drawn anew, not taken from a cache: what ray-caster, skeleton, shapes and walls make together.

    The pictures lie in the repository at 16 px, so that only a change that one would see fails. Runs of
    later pages rest on them, and no digest of code covers all that draws them.
    """
    monkeypatch.setattr("cvlib.data.bodies.cache_root", lambda: tmp_path)
    golden, rows = np.load(GOLDEN / "bodies.npz"), torch.tensor([0, 7, 13, 23])
    for wall in ("plain", "gradient", "photo"):
        options = {"pairs": "pose", "clips": ["walk", "jump"], "shapes": 4, "poses": 6}
        people = load("bodies", "test", 64, background=wall, **options)
        seen = (F.avg_pool2d(people.images(rows), 4) + 1) * 127.5
        off = (seen - torch.from_numpy(golden[wall])).abs()
        assert off.max() < 4 and off.mean() < 0.6, wall
    np.testing.assert_allclose(people.joints[rows], golden["joints"], atol=0.02)  # pixels
    areas = F.one_hot(people.masks(rows).long(), 20).float().mean((1, 2))
    np.testing.assert_allclose(areas, golden["masks"], atol=5e-4)


def test_masks_and_alpha_say_the_same():
    drawn = everything(small())
    alpha, mask = drawn[:, 3], drawn[:, 4]
    assert (mask[alpha == 255] > 0).all() and (mask[alpha == 0] == 0).all()
    assert mask.unique().tolist() == list(range(len(PARTS)))
    assert (drawn[:, :3] <= alpha[:, None]).all()  # colours are multiplied by alpha


def test_joints_lie_on_their_parts():
    """A joint inside the body carries an id of one of the links that meet there, unless it is hidden."""
    data = small()
    batch = data.render(torch.arange(48), data.draw(torch.arange(48), None, False))
    at = batch["joints"].long()  # floor: the pixel that holds the place
    for name, parts in {
        "right_knee": ("right_thigh", "right_shin"),
        "left_elbow": ("left_upper_arm", "left_lower_arm"),
        "left_ankle": ("left_shin", "left_foot"),
        "root": ("torso", "right_thigh", "left_thigh"),
    }.items():
        u, v = at[:, bodies.JOINTS.index(name)].unbind(1)
        seen = batch["mask"][torch.arange(48), v, u]
        own = torch.stack([seen == PARTS.index(part) for part in parts]).any(0)
        assert (seen > 0).float().mean() > 0.97 and own.float().mean() > 0.6, name


def test_the_looks_of_a_pose_differ_in_colour_alone():
    drawn, data = everything(small(pairs="clothes")), small(pairs="clothes")
    first, second = drawn[0::2], drawn[1::2]
    assert torch.equal(first[:, 3:], second[:, 3:]) and torch.equal(data.joints[0::2], data.joints[1::2])
    inside = first[:, 3] == 255
    unlike = ((first[:, :3].int() - second[:, :3].int()).abs().amax(1) > 20) & inside
    assert (unlike.sum((1, 2)) / inside.sum((1, 2))).min() > 0.5
    index = torch.arange(len(data))
    partner = data.partner(index)
    for label in ("shape", "pose", "clip", "frame", "mirrored"):
        assert torch.equal(data.labels[label][partner], data.labels[label])
    assert (data.labels["person"][partner] != data.labels["person"]).all()


def test_a_person_in_another_pose_keeps_its_colours():
    """The lights are white, so the shares of red, green and blue in plain clothes are the same everywhere."""
    data = small(pairs="pose")
    index = torch.arange(len(data))
    partner = data.partner(index, torch.Generator().manual_seed(0))
    assert (data.labels["pose"][partner] != data.labels["pose"]).all()
    assert torch.equal(data.labels["person"][partner], data.labels["person"])
    looks, drawn = draw_looks(24, 0, "validation"), everything(data).float()
    hue, mask = torch.zeros(len(data), len(PARTS), 3), drawn[:, 4]
    inner = drawn[:, 3] == 255  # pixels whose neighbours show the same part, so that no colour bleeds in
    for step, dim in ((1, 1), (-1, 1), (1, 2), (-1, 2)):
        inner &= mask.roll(step, dim) == mask
    for part in range(1, len(PARTS)):
        whole = ((mask == part) & inner)[:, None]
        total = (drawn[:, :3] * whole).sum((2, 3))
        hue[:, part] = total / total.sum(1, keepdim=True)
    plain = looks.patterns[data.labels["person"]] == 0
    shin, arm = PARTS.index("left_shin"), PARTS.index("left_upper_arm")
    for part, garment in ((shin, 3), (arm, 2)):
        rows = plain[:, garment].nonzero().flatten()
        there, here = hue[partner[rows], part], hue[rows, part]
        both = (there.isfinite() & here.isfinite()).all(-1)
        assert both.sum() > 5 and (there - here)[both].abs().max() < 0.02
        colour = looks.colours[data.labels["person"][rows], garment, 0]
        expected = colour / colour.sum(1, keepdim=True)
        assert (here - expected)[both].abs().max() < 0.02


def test_splits_share_neither_people_nor_frames():
    frames, colours = [], []
    for split in SPLITS:
        data = small(split)
        frames.append(set(zip(data.labels["clip"].tolist(), data.labels["frame"].tolist(), strict=True)))
        colours.append({tuple(row) for row in draw_looks(24, 0, split).colours.flatten(1).tolist()})
    for one in (frames, colours):
        assert not one[0] & one[1] and not one[0] & one[2] and not one[1] & one[2]


def test_the_cache_is_the_same_wherever_it_is_built(own_cache):
    a = small()
    file = next(own_cache.glob("bodies/*/pixels.u8"))
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b"\x07")  # damaged: it is built again
    b = small()
    assert file.read_bytes() == content and a.hash == b.hash and len(content) == 48 * 5 * 64 * 64
    assert torch.equal(a.joints, b.joints)


def test_the_first_images_do_not_depend_on_how_many_there_are(own_cache):
    many, few = (load("bodies", "test", 32, shapes=n, poses=3) for n in (3, 2))
    assert torch.equal(everything(few), everything(many)[:12]) and few.hash != many.hash
    assert not torch.equal(everything(few), everything(load("bodies", "test", 32, shapes=2, poses=3, seed=1)))


def test_a_person_meets_all_its_other_poses():
    data = load("bodies", "validation", 16, shapes=3, poses=5, pairs="pose")
    index = torch.arange(30).repeat(40)
    partner = data.partner(index, torch.Generator().manual_seed(0))
    met = {(int(a), int(b)) for a, b in zip(index, partner, strict=True)}
    person, pose = data.labels["person"], data.labels["pose"]
    wanted = {(a, b) for a in range(30) for b in range(30) if person[a] == person[b] and pose[a] != pose[b]}
    assert met == wanted and len(wanted) == 30 * 4
    assert sorted(data.partner(torch.arange(30)).tolist()) == list(range(30))


@pytest.mark.parametrize("kind", bodies.KINDS)
def test_pairs_are_laid_on_one_background(kind):
    data = small(background=kind, pairs="pose")
    batch = next(data.batches(16, seed=4))
    both = [everything(data)[rows].double() for rows in (batch["index"], batch["partner_index"])]
    clear = (both[0][:, 3:4] == 0) & (both[1][:, 3:4] == 0)
    assert clear.float().mean() > 0.4
    assert ((batch["image"] - batch["partner"]).abs() * clear).max() == 0
    # over: 2 (colour + (1 - alpha) behind) - 1, with behind known where nothing is drawn
    behind = data.backgrounds.paint(data.draw(batch["index"], generator_of(4), True).background)
    for image, drawn in zip((batch["image"], batch["partner"]), both, strict=True):
        wanted = 2 * (drawn[:, :3] + (255 - drawn[:, 3:4]) * (behind + 1) / 2) / 255 - 1
        torch.testing.assert_close(image.double(), wanted, atol=1e-5, rtol=0)
    assert batch["image"].abs().max() <= 1 + 1e-5


def generator_of(seed: int) -> torch.Generator:
    """The generator of a run's first batch."""
    return derived_generator(seed, "batch", 0)


def test_backgrounds_are_what_they_are_called():
    plain, gradient, photo = (
        data.backgrounds.paint(data.draw(torch.arange(8), generator_of(0), True).background)
        for data in (small(background=kind) for kind in bodies.KINDS)
    )
    assert plain.shape == (8, 3, 1, 1)
    assert gradient.shape == photo.shape == (8, 3, 64, 64)
    second = [(gradient.diff(n=2, dim=dim)).abs().max() for dim in (2, 3)]
    assert max(second) < 1e-5 and gradient.flatten(2).std(2).amax(1).min() > 0.05  # a plane, not level
    assert photo.diff(n=2, dim=3).abs().flatten(1).mean(1).max() > 0.05
    with pytest.raises(BookError, match="'sea'"):
        small(background="sea")


def test_images_without_augmentation_are_fixed_and_batches_repeat():
    data = small(background="photo", pairs="pose")
    index = torch.tensor([0, 1, 6])
    one = data.images(index)
    assert torch.equal(one, data.images(index)) and torch.equal(one[2:], data.images(index[2:]))
    a, b = (next(data.batches(8, seed=1, start=3)) for _ in range(2))
    assert all(torch.equal(a[key], b[key]) for key in a)
    parts = [next(data.batches(8, seed=1, start=3, rank=rank, world=2)) for rank in (0, 1)]
    assert torch.equal(torch.stack([part["partner"] for part in parts], 1).flatten(0, 1), a["partner"])
    assert torch.equal(data.masks(a["index"]), a["mask"]) and torch.equal(
        data.joints[a["index"]], a["joints"]
    )
    clear = everything(data)[:2, 3].amax(0) == 0
    assert ((one[0] - one[1]).abs() * clear).max() == 0  # two looks of a pose have one background


def test_merged_labels():
    table = dict(zip(PARTS, [MERGED[k] for k in bodies.merge(torch.arange(15))], strict=True))
    assert table["background"] == "background" and table["left_foot"] == "feet"
    assert {part for part in PARTS if table[part] == "arms"} == {
        f"{side}_{part}" for side in ("left", "right") for part in ("upper_arm", "lower_arm", "hand")
    }
    assert table["torso"] == "torso" and table["head"] == "head" and table["right_shin"] == "legs"


def test_wrong_options_are_told():
    for options, told in [
        ({"pairs": "twins"}, "'twins'"),
        ({"clips": ["swim"]}, "swim"),
        ({"poses": 1}, "1 poses"),
        ({"shapes": -1}, "-1 shapes"),
        ({"background": 3}, "background 3"),
    ]:
        with pytest.raises(BookError, match=told):
            load("bodies", "train", 64, **options)
    data = small("validation", clips=["walk", "run"])
    assert {data.label_names["clip"][k] for k in data.labels["clip"].unique()} == {"walk", "run"}
    assert data.joints.isfinite().all()


def test_what_cannot_be_drawn_is_told():
    with pytest.raises(BookError, match="pairs 'none'"):
        small().partner(torch.arange(2))
    with pytest.raises(ValueError, match="Generator"):
        small().draw(torch.arange(2), None, True)
