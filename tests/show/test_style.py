from __future__ import annotations

import itertools

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from skimage.color import deltaE_ciede2000, rgb2lab

from cvlib.errors import BookError
from cvlib.show import COLOURS, EMOJI_SETS, LINES, MARKERS, figure, look

# Machado, Oliveira & Fernandes 2009, severity 1.0, applied to linear RGB
DEFICIENCIES = {
    "none": np.eye(3),
    "protan": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deutan": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
}


def seen(colour: str, matrix) -> np.ndarray:
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(np.asarray(matrix) @ linear, 0, 1)
    return rgb2lab(np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055))


@pytest.mark.parametrize("kind", DEFICIENCIES)
@pytest.mark.parametrize(("group", "least"), [(tuple(COLOURS)[:5], 15), (EMOJI_SETS, 5)])
def test_colours_stay_apart_for_colour_blind_readers(kind, group, least):
    # a CIEDE2000 of about 2 is just noticed; nine colours cannot all be far apart, so markers repeat them
    lab = {name: seen(COLOURS[name], DEFICIENCIES[kind]) for name in group}
    gaps = {(a, b): deltaE_ciede2000(lab[a], lab[b]) for a, b in itertools.combinations(group, 2)}
    assert min(gaps.values()) > least, sorted(gaps.items(), key=lambda item: item[1])[:3]


def test_every_message_has_a_second_channel():
    roles = tuple(COLOURS)[:5]
    assert len({str(LINES[role]) for role in roles}) == len(roles)
    assert len({MARKERS[name] for name in EMOJI_SETS}) == len(EMOJI_SETS) == 9
    assert len(set(COLOURS.values())) == len(COLOURS)


def test_figure_has_the_grid_sizes_and_escapes_pyplot():
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    full, _ = figure()
    half, axes = figure("half", height=2.0, columns=2)
    assert full.get_size_inches()[0] == 6.4
    assert half.get_size_inches().tolist() == [3.4, 2.0]
    assert axes.shape == (2,)
    assert plt.get_fignums() == before  # else a notebook draws it again, without alt text
    assert not matplotlib.rcParams["axes.spines.top"]


def test_unknown_names_are_refused():
    with pytest.raises(BookError, match="'theirs'"):
        look("theirs")
    with pytest.raises(BookError, match="'wide'"):
        figure("wide")
