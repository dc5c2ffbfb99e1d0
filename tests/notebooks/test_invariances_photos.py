"""What the page "invariances_photos" defines, held against closed forms, brute force and the networks."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from cvlib.data.factors import yiq
from cvlib.data.photo_factors import FACTORS, apply_factors
from cvlib.nn.backbones import EfficientNetLite0
from cvlib.pages import definitions

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
SIDE = 64


@pytest.fixture(scope="module")
def page():
    return definitions(NOTEBOOKS / "invariances_photos.py")


@pytest.fixture(scope="module")
def story():
    return definitions(NOTEBOOKS / "invariances.py")


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def close(a, b, atol=1e-5):
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


@pytest.fixture
def images():
    """Smooth random pictures that keep clear of black and white."""
    coarse = torch.rand(6, 3, 8, 8, generator=gen()) - 0.5
    return F.interpolate(coarse, size=(SIDE, SIDE), mode="bicubic").clamp(-0.6, 0.6) / 2


def waves(angle, period=8.0):
    """Luma (1, S, S) of waves that run in the direction ``angle``, counter-clockwise from the right."""
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    return torch.sin(2 * math.pi / period * (math.cos(angle) * x - math.sin(angle) * y))[None]


# the statistics


def test_energies_of_waves_are_their_closed_form(page):
    """The mean square of sin(k(x + 1)) - sin(kx) is 2 sin(k / 2)^2; across whole periods this is exact."""
    period = 8.0
    luma = waves(0.0, period)[:, :, :]
    k = 2 * math.pi / period
    found = page.energies(luma)[0, 0].exp() - page.FLOOR
    tile = torch.cat([luma, luma[:, :, :1]], 2)  # one column more: 64 differences, eight periods
    exact = page.energies(tile)[0, 0].exp() - page.FLOOR
    close(exact[0], torch.tensor(2 * math.sin(k / 2) ** 2), atol=1e-4)
    close(exact[2:], exact[:1].expand(2), atol=1e-4)  # along a diagonal x moves by as much
    assert found[1] < 1e-6  # nothing changes from row to row


def test_twice_as_near_moves_energies_one_scale_on(page, images):
    luma = yiq(images)[:, 0]
    near = luma.repeat_interleave(2, 1).repeat_interleave(2, 2)
    close(page.energies(near)[:, 1:], page.energies(luma)[:, :2])


def test_a_mirror_exchanges_the_diagonals_and_a_quarter_turn_both_pairs(page, images):
    luma = yiq(images)[:, 0]
    plain = page.energies(luma)
    close(page.energies(luma.flip(-1)), plain[:, :, [0, 1, 3, 2]])
    close(page.energies(luma.rot90(1, (1, 2))), plain[:, :, [1, 0, 3, 2]])


def test_texture_does_not_care_where_things_lie(page):
    """A patch on an empty ground, moved by whole squares: the same texture, and another layout."""
    x = torch.zeros(4, 3, SIDE, SIDE)
    x[:, :, 4:28, 4:28] = torch.randn(4, 3, 24, 24, generator=gen()) * 0.2 + 0.3
    one, other = page.statistics(x), page.statistics(x.roll((16, 32), (2, 3)))
    close(one["texture"], other["texture"])
    close(one["rotation"], other["rotation"])
    close(one["layout"].unflatten(1, (4, 4)).roll((1, 2), (1, 2)).flatten(1), other["layout"])
    assert (one["layout"] - other["layout"]).abs().max() > 0.1


@pytest.mark.parametrize("angle", [0.0, 0.5, math.pi / 2, 2.5])
def test_slant_is_twice_the_direction_of_waves(page, angle):
    found = page.slant(waves(angle))[0]
    close(found, torch.tensor([math.cos(2 * angle), math.sin(2 * angle)]), atol=0.05)


@pytest.mark.parametrize(("name", "value"), [("hue", 1.3), ("saturation", 0.5), ("brightness", 0.2)])
def test_colours_move_their_statistic_alone(page, images, name, value):
    factors = page.changed(6, **{name: value})
    before, after = (page.statistics(apply_factors(images, f, SIDE)) for f in (page.changed(6), factors))
    c, s = math.cos(value), math.sin(value)
    law = {
        "hue": before["hue"] @ torch.tensor([[c, s], [-s, c]]),
        "saturation": before["saturation"] * value,
        "brightness": before["brightness"] + value,
    }[name]
    close(after[name], law)
    for other in set(before) - {name}:
        close(after[other], before[other], atol=1e-4)


def test_a_mirror_changes_the_sign_of_the_odd_part(page, images):
    before, after = page.statistics(images), page.statistics(images.flip(-1))
    close(after["mirror"], -before["mirror"])
    close(after["layout"].unflatten(1, (4, 4)), before["layout"].unflatten(1, (4, 4)).flip(-1))
    close(page.statistics((images + images.flip(-1)) / 2)["mirror"], torch.zeros(6, 8))


def test_layout_is_the_mean_of_squares(page, images):
    layout = page.statistics(images)["layout"].unflatten(1, (4, 4))
    luma = yiq(images)[:, 0]
    close(layout[2, 1, 3], luma[2, 16:32, 48:].mean() - luma[2].mean())


def test_a_rotation_turns_the_slant_by_twice_its_angle(page):
    canvas = torch.randn(8, 1, 12, 12, generator=gen()).expand(8, 3, 12, 12)
    canvas = F.interpolate(canvas, size=(96, 96), mode="bicubic").clamp(-3, 3) / 4
    inside = torch.hypot(*torch.meshgrid(torch.linspace(-1, 1, 96), torch.linspace(-1, 1, 96), indexing="ij"))
    canvas = canvas * (inside < 0.6) * ((0.6 - inside) * 10).clamp(0, 1)  # a disc: nothing enters or leaves
    a = 0.3
    before, after = (
        page.statistics(apply_factors(canvas, page.changed(8, rotation=r), SIDE))["rotation"]
        for r in (1e-6, a)
    )
    turn = torch.tensor([[math.cos(2 * a), math.sin(2 * a)], [-math.sin(2 * a), math.cos(2 * a)]])
    close(after, before @ turn, atol=0.02)
    assert (after - before).abs().max() > 0.1


def test_statistics_of_grey_nothing_are_finite(page):
    found = page.statistics(torch.zeros(2, 3, SIDE, SIDE))
    assert all(values.isfinite().all() for values in found.values())


def test_changed_factors_stand_in_their_columns(page):
    table = page.changed(2, zoom=1.5, mirror=1.0)
    assert dict(zip(FACTORS, table[1].tolist(), strict=True)) == {
        "hue": 0, "saturation": 1, "brightness": 0, "zoom": 1.5, "rotation": 0, "mirror": 1,
    }  # fmt: skip


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
    page.story = story
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


# the network


@pytest.fixture(scope="module")
def net(page):
    torch.manual_seed(0)
    net = page.build_network("efficientnet-lite0", 32)
    return page.untrained(net, torch.randn(32, 3, 16, 16, generator=gen()) * 0.3)


def test_the_network_sees_the_enlarged_crop(page, net, story):
    plain = EfficientNetLite0()
    plain.load_state_dict(net.state_dict())
    plain.eval()
    x = torch.randn(3, 3, 16, 16, generator=gen(1)) * 0.3
    large = F.interpolate(x, size=(32, 32), mode="bilinear", align_corners=False)
    with torch.no_grad():
        close(net.logits(x), plain.logits(large))
        z = story.representations(net, x)
        close(z["logits"], net.logits(x))
        for name in z:
            close(z[name], story.representations(plain, large)[name])


def test_the_norms_of_the_untrained_network_have_the_statistics_of_its_crops(net):
    x = torch.randn(32, 3, 16, 16, generator=gen()) * 0.3
    with torch.no_grad():
        y = net.stem[0](net.preprocess(x))
    norm = net.stem[1]
    close(norm.running_mean, y.mean((0, 2, 3)))
    close(norm.running_var, y.var((0, 2, 3)))
    assert not net.training and not any(p.requires_grad for p in net.parameters())


def test_the_attack_goes_through_the_enlargement_and_its_control_is_as_large(net, story):
    class Study:
        known = {"train": SimpleNamespace(labels={})}  # noqa: RUF012  # photographs have no concepts
        among = story.Study.among
        namer = net
        runtime = type("Here", (), {"device": torch.device("cpu")})

    x = torch.randn(6, 3, 16, 16, generator=gen(3)) * 0.2
    eps = 1e-3
    attacked, control = story.attack(Study(), x, eps), story.attack(Study(), x, eps, gen(4))
    for y in (attacked, control):
        close((y - x).abs(), torch.full_like(x, eps), atol=1e-6)
    with torch.no_grad():
        own = net.logits(x).argmax(1)
        loss = [F.cross_entropy(net.logits(y), own, reduction="none") for y in (x, attacked, control)]
    assert (loss[1] > loss[0]).all() and (loss[1] - loss[0] > (loss[2] - loss[0]).abs()).all()
