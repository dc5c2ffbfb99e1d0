from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from cvlib.data.bodies import MERGED
from cvlib.data.part_masks import FIGURE, figure_mask, iuv_mask
from cvlib.data.part_pairs import PairDataset, paired
from cvlib.data.part_pictures import PartPicture, Square, square_of
from cvlib.data.sources import Source
from cvlib.data.warps import WarpRange, control_points
from cvlib.errors import BookError
from cvlib.metrics.segmentation import UNLABELLED, many_to_one, overlaps, segmentation_scores
from tests import layouts

SOURCE = Source("Test pictures", "https://example.org/")
SIZES = {"a": 4, "b": 1, "c": 2}  # pictures of each identity


@pytest.fixture(autouse=True)
def _own(own_cache):
    """Every test writes to a cache of its own."""


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def write(root, name, *, size=(16, 16), colour=False):
    """A picture, and the mask that says 1 where it is bright."""
    layouts.picture(root / f"{name}.png", sum(map(ord, name)), size=size)
    bright = np.asarray(Image.open(root / f"{name}.png").convert("L")) >= 128
    Image.fromarray((255 * bright).astype(np.uint8)).save(root / f"{name}.mask.png")


def dataset(root, size=16, masks="abc", **options) -> PairDataset:
    pictures = []
    for who, n in SIZES.items():
        for k in range(n):
            write(root, f"{who}{k}")
            pictures.append(PartPicture(f"{who}{k}.png", who, f"{who}{k}.mask.png" if who in masks else ""))
    order = [3, 6, 0, 4, 1, 5, 2]  # identities lie apart
    pictures = [pictures[k] for k in order]
    return paired("pairs", "test", size, SOURCE, root, pictures, names=FIGURE, read=figure_mask, **options)


def batch_of(data, seed=0, n=64):
    return next(data.batches(n, seed=seed))


# pairs


@pytest.mark.parametrize("avoid_identity", [False, True])
def test_partners_share_the_identity_and_all_are_met(tmp_path, avoid_identity):
    data = dataset(tmp_path, avoid_identity=avoid_identity)
    index = torch.arange(len(data)).repeat_interleave(200)
    partner, who = data.partner(index, gen()), data.labels["identity"]
    assert torch.equal(who[index], who[partner])
    met = torch.zeros(len(data), len(data), dtype=torch.long)
    met.index_put_((index, partner), torch.ones_like(index), accumulate=True)
    same = who[:, None] == who
    alone = same.sum(1) == 1
    allowed = same & ~torch.eye(len(data), dtype=torch.bool) if avoid_identity else same
    allowed[alone, alone] = True  # a single picture is its own partner
    assert torch.equal(met > 0, allowed) and alone.sum() == 1
    share = met[allowed] / 200
    expected = (1.0 / allowed.sum(1, keepdim=True)).expand(-1, len(data))[allowed]
    assert (share - expected).abs().max() < 0.12  # 3.4 standard deviations of a half in 200


def test_the_fixed_partner_is_the_next_of_the_identity(tmp_path):
    data = dataset(tmp_path)
    partner = data.partner(torch.arange(7))
    assert partner.sort().values.tolist() == list(range(7))  # a cycle through each identity
    assert (partner == torch.arange(7)).sum() == 1
    assert torch.equal(data.labels["identity"][partner], data.labels["identity"])


def test_a_batch_holds_what_its_indices_say(tmp_path):
    data = dataset(tmp_path, flip=False)
    batch = batch_of(data)
    torch.testing.assert_close(batch["image"], data.images(batch["index"]))
    torch.testing.assert_close(batch["partner"], data.images(batch["partner_index"]))
    assert torch.equal(batch["mask"], data.masks(batch["index"]))
    assert torch.equal(batch["partner_mask"], data.masks(batch["partner_index"]))
    assert batch["image"].shape == (64, 3, 16, 16) and batch["image"].abs().max() <= 1
    assert batch["image"].dtype == torch.float32 and batch["mask"].dtype == torch.int64
    assert torch.equal(batch["identity"], data.labels["identity"][batch["index"]])


def test_a_pair_is_mirrored_together_with_its_masks(tmp_path):
    data = dataset(tmp_path)
    batch, seen = batch_of(data), set()
    for k in range(64):
        plain = [data.images(batch[name][k : k + 1])[0] for name in ("index", "partner_index")]
        is_mirrored = not torch.equal(batch["image"][k], plain[0])
        seen.add(is_mirrored)
        for name, mask, image, row in zip(
            ("image", "partner"), ("mask", "partner_mask"), plain, ("index", "partner_index"), strict=True
        ):
            label = data.masks(batch[row][k : k + 1])[0]
            assert torch.equal(batch[name][k], image.flip(-1) if is_mirrored else image)
            assert torch.equal(batch[mask][k], label.flip(-1) if is_mirrored else label)
    assert seen == {True, False}


def test_batches_repeat_and_ranks_share_them(tmp_path):
    data = dataset(tmp_path, warps=WarpRange())
    whole = batch_of(data, n=6)
    for rank in range(2):
        part = next(data.batches(6, seed=0, rank=rank, world=2))
        for name, value in part.items():
            assert torch.equal(value, whole[name][rank::2]), name


# warps


def test_both_images_are_the_same_one_in_two_warps(tmp_path):
    data = dataset(tmp_path, warps=WarpRange())
    batch = batch_of(data)
    assert torch.equal(batch["index"], batch["partner_index"])
    assert (batch["image"] - batch["partner"]).abs().amax((1, 2, 3)).min() > 0.05
    assert (batch["image"] - data.images(batch["index"])).abs().amax((1, 2, 3)).min() > 0.05


def test_mask_and_image_undergo_the_same_warp(tmp_path):
    """A mask that says where the image is bright says so after the warp, but for pixels at its border."""
    smooth = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 5), dtype=np.uint8))
    grey = np.asarray(smooth.resize((64, 64), Image.Resampling.BICUBIC))
    Image.fromarray(grey).save(tmp_path / "x.png")
    Image.fromarray((255 * (grey >= 128)).astype(np.uint8)).save(tmp_path / "m.png")
    one = [PartPicture("x.png", "x", "m.png")]
    data = paired("w", "test", 64, SOURCE, tmp_path, one, names=FIGURE, read=figure_mask, warps=WarpRange())
    batch = batch_of(data, n=16)
    for name, mask in (("image", "mask"), ("partner", "partner_mask")):
        bright, label = (batch[name][:, 0] > 0).long(), batch[mask]
        around = F.unfold(label[:, None].float(), 3, padding=1).view(16, 9, 64, 64)
        inside = around.amax(1) == around.amin(1)  # colours are blended, labels are not
        assert (bright == label)[inside].all() and inside.float().mean() > 0.8
        assert (label != data.masks([0])).float().mean() > 0.05  # it did move
    assert batch["mask"].unique().tolist() == [0, 1]


def test_without_augmentation_the_partner_has_a_fixed_warp(tmp_path):
    data = dataset(tmp_path, warps=WarpRange(), flip=False)
    index = torch.arange(7)
    a, b = (data.render(index, data.draw(index, None, False)) for _ in range(2))
    assert torch.equal(a["partner"], b["partner"])
    assert torch.equal(a["image"], data.images(index)) and torch.equal(a["mask"], data.masks(index))
    assert (a["image"] - a["partner"]).abs().amax((1, 2, 3)).min() > 0.05
    half = data.subset(index[3:])
    rendered = half.render(index[:4], half.draw(index[:4], None, False))
    torch.testing.assert_close(rendered["partner"], a["partner"][3:])


def test_a_range_without_strength_gives_the_image_itself(tmp_path):
    still = WarpRange(scal=1, tps_scal=0, rot_scal=0, off_scal=0, scal_var=0)
    data = dataset(tmp_path, warps=still, flip=False)
    batch = batch_of(data)
    torch.testing.assert_close(batch["partner"], data.images(batch["index"]), atol=1e-5, rtol=0)
    assert torch.equal(batch["partner_mask"], data.masks(batch["index"]))


# missing masks


def test_what_no_mask_covers_is_minus_one_and_not_scored(tmp_path, capsys):
    data = dataset(tmp_path, masks="ac")
    assert "1 of 7 pictures have no mask, the first b0.png; they are not scored" in capsys.readouterr().err
    lacking = (~data.is_masked).nonzero()[:, 0]
    assert [data.paths[k] for k in lacking] == ["b0.png"]
    labels = data.masks(torch.arange(7))
    assert (labels[lacking] == UNLABELLED).all() and labels[data.is_masked].min() == 0
    parts = torch.randint(0, 3, labels.shape, generator=gen())
    parts[lacking] = 2  # whatever is found there
    table = overlaps(parts, labels, 3, 2)
    free = many_to_one(table)
    all_of_them, judged = segmentation_scores(table, free), segmentation_scores(table[data.is_masked], free)
    assert torch.equal(all_of_them.pooled, judged.pooled) and all_of_them.foreground == judged.foreground
    assert torch.equal(all_of_them.per_image, judged.per_image) and all_of_them.images[lacking].isnan().all()


def test_a_listed_mask_that_is_lost_counts_as_missing(tmp_path):
    (tmp_path / "x").mkdir()
    write(tmp_path / "x", "p")
    make = partial(paired, "lost", "test", 16, SOURCE, tmp_path / "x", names=FIGURE, read=figure_mask)
    found = make([PartPicture("p.png", "p", "p.mask.png")])
    (tmp_path / "x" / "p.mask.png").unlink()
    gone = make([PartPicture("p.png", "p", "p.mask.png")])
    assert (gone.masks([0]) == -1).all() and not gone.is_masked.any()
    assert found.hash != gone.hash


# squares


@pytest.mark.parametrize(
    ("size", "box", "margin", "square"),
    [
        ((100, 60), (10, 20, 30, 20), 0.0, (10, 15, 30)),
        ((100, 60), (10, 20, 30, 20), 0.5, (0, 0, 60)),  # would begin at -5; moved
        ((100, 60), (80, 50, 20, 10), 0.0, (80, 40, 20)),  # moved up
        ((100, 60), (0, 0, 100, 30), 0.0, (0, -20, 100)),  # too wide: centred on the picture
        ((100, 60), None, 0.3, (0, -20, 100)),  # margins are for boxes
        ((40, 40), (5, 5, 0.2, 0.1), 0.0, (5, 5, 1)),
    ],
)
def test_squares_lie_around_their_boxes(size, box, margin, square):
    assert square_of(*size, box, margin) == Square(*square)


def test_a_square_that_sticks_out_repeats_the_edge():
    picture = np.arange(12).reshape(3, 4)
    assert Square(-1, 1, 3).cut(picture).tolist() == [[4, 4, 5], [8, 8, 9], [8, 8, 9]]
    assert Square(1, 1, 2).cut(picture[..., None])[..., 0].tolist() == [[5, 6], [9, 10]]


def test_joints_stay_on_what_they_mark(tmp_path):
    """A white pixel block at a joint is at the joint's place in the cut image, at any size."""
    picture = np.zeros((50, 80, 3), dtype=np.uint8)
    picture[20:24, 40:44] = 255
    Image.fromarray(picture).save(tmp_path / "x.png")
    one = PartPicture("x.png", "x", "", (30.0, 10.0, 24.0, 30.0), ((42.0, 22.0), (np.nan, np.nan)))
    for size in (16, 60, 90):
        data = paired(
            "joints", "test", size, SOURCE, tmp_path, [one], names=FIGURE, read=figure_mask,
            joint_names=("mark", "hidden"), margin=0.1,
        )  # fmt: skip
        weight = (data.images([0])[0].mean(0) + 1).double()
        axis = torch.arange(size) + 0.5
        centre = torch.stack([(weight * axis).sum(), (weight * axis[:, None]).sum()]) / weight.sum()
        torch.testing.assert_close(data.joints[0, 0].double(), centre, atol=0.3 * size / 36, rtol=0)
        assert data.joints[0, 1].isnan().all() and data.joints.shape == (1, 2, 2)


def test_masks_of_other_sizes_are_fitted_and_of_other_proportions_told(tmp_path):
    write(tmp_path, "x", size=(32, 16))
    small = np.zeros((8, 16), dtype=np.uint8)
    small[:, 8:] = 255
    Image.fromarray(small).save(tmp_path / "m.png")
    make = partial(paired, "fit", "test", 32, SOURCE, tmp_path, names=FIGURE, read=figure_mask)
    data = make([PartPicture("x.png", "x", "m.png")])
    assert torch.equal(data.masks([0])[0, 16], (torch.arange(32) >= 16).long())
    Image.fromarray(small[:, :10]).save(tmp_path / "m.png")
    with pytest.raises(BookError, match=r"m\.png is 10 x 8, its picture 32 x 16; .*example\.org"):
        make([PartPicture("x.png", "x", "m.png")])


def test_labels_are_never_blended(tmp_path):
    """Between background, 0, and head, 3, there are no arms and no feet, at whatever size."""
    write(tmp_path, "x")
    index = np.zeros((16, 16, 3), dtype=np.uint8)
    index[3:9, 5:12, 2] = 24
    Image.fromarray(index).save(tmp_path / "iuv.png")
    one = [PartPicture("x.png", "x", "iuv.png")]
    for size in (9, 15, 37):
        data = paired(
            "blend", "test", size, SOURCE, tmp_path, one, names=MERGED, read=iuv_mask, warps=WarpRange()
        )
        batch = batch_of(data, n=8)
        for ids in (data.masks([0]), batch["mask"], batch["partner_mask"]):
            assert ids.unique().tolist() == [0, MERGED.index("head")]


# subsets, hashes, mistakes


def test_a_subset_pairs_within_itself(tmp_path):
    data = dataset(tmp_path)
    rows = torch.tensor([0, 1, 4, 6])
    part = data.subset(rows)
    assert torch.equal(part.labels["identity"][part.partner(torch.arange(4), gen())], part.labels["identity"])
    assert part.partner(torch.arange(4), gen()).max() < 4
    torch.testing.assert_close(part.images(torch.arange(4)), data.images(rows))
    assert torch.equal(part.masks([1]), data.masks([1])) and part.paths == [data.paths[k] for k in rows]
    assert part.is_masked.shape == (4,) and part.joints.shape == (4, 0, 2) and part.hash != data.hash


def test_hashes_tell_contents_and_options(tmp_path):
    first = dataset(tmp_path).hash
    options = [
        {"flip": False},
        {"avoid_identity": True},
        {"warps": WarpRange()},
        {"size": 15},
        {"masks": "a"},
    ]
    others = [dataset(tmp_path, **one).hash for one in options]
    assert len({first, *others}) == len(options) + 1 and dataset(tmp_path).hash == first
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert dataset(elsewhere).hash == first  # the same pictures in another place
    Image.fromarray(np.zeros((16, 16), dtype=np.uint8)).save(tmp_path / "c0.mask.png")
    one = [PartPicture("c0.png", "c", "c0.mask.png")]
    make = partial(paired, "pairs", "test", 16, SOURCE, names=FIGURE, read=figure_mask)
    assert make(tmp_path, one).hash != make(elsewhere, one).hash


def test_mistakes_are_told(tmp_path):
    data = dataset(tmp_path)
    index = torch.arange(2)
    with pytest.raises(ValueError, match="these draws are not of pairs"):
        data.render(index, super(PairDataset, data).draw(index, None, False))
    with pytest.raises(ValueError, match="Generator"):
        data.draw(index, None, True)
    make = partial(paired, "bad", "test", 16, SOURCE, tmp_path, names=FIGURE, read=figure_mask)
    with pytest.raises(BookError, match=r"no picture for test in .* Test pictures is at https://example"):
        make([])
    with pytest.raises(BookError, match=r"none\.png is missing, one of 1 of 2 pictures"):
        make([PartPicture("a0.png", "a"), PartPicture("none.png", "a")])
    (tmp_path / "a0.png").write_bytes(b"no picture")
    with pytest.raises(BookError, match=r"a0\.png cannot be read as a picture .* Test pictures is at"):
        make([PartPicture("a0.png", "a")])
    assert control_points().shape == (16, 2)
