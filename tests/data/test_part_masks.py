from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from cvlib.data.bodies import MERGED
from cvlib.data.part_masks import BIRD, FIGURE, UNKNOWN, colour_mask, figure_mask, iuv_mask
from cvlib.errors import BookError
from tests import layouts_parts


def saved(tmp_path, array, name="mask.png"):
    Image.fromarray(np.asarray(array, dtype=np.uint8)).save(tmp_path / name)
    return tmp_path / name


def test_a_figure_is_the_upper_half_of_the_grey_levels(tmp_path):
    path = saved(tmp_path, [[0, 1, 127, 128, 255]])
    assert figure_mask(path).tolist() == [[0, 0, 0, 1, 1]]
    assert figure_mask(saved(tmp_path, [[0, 1, 1]])).tolist() == [[0, 1, 1]]  # ids already
    assert figure_mask(saved(tmp_path, np.zeros((2, 2)))).max() == 0
    assert FIGURE == ("background", "figure")


def test_colours_of_birds_are_those_that_opencv_reads(tmp_path):
    assert list(BIRD) == list(layouts_parts.BIRD_COLOURS)
    bgr = np.array([list(layouts_parts.BIRD_COLOURS.values())])
    path = saved(tmp_path, bgr[..., ::-1])
    assert colour_mask(path).tolist() == [[0, 1, 2, 3, 4, 5]]
    Image.open(path).quantize(8).save(tmp_path / "palette.png")
    assert colour_mask(tmp_path / "palette.png").tolist() == [[0, 1, 2, 3, 4, 5]]


def test_an_unknown_colour_is_told_with_its_place(tmp_path):
    array = np.zeros((3, 4, 3))
    array[2, 1] = (128, 0, 7)
    with pytest.raises(BookError, match=r"mask\.png has the colour \(128, 0, 7\) at x 1, y 2; wanted backgr"):
        colour_mask(saved(tmp_path, array))


def test_every_index_of_densepose_is_merged_as_the_paper_does(tmp_path):
    """Indices in blue; whatever green and red say."""
    index = layouts_parts.iuv(tmp_path / "iuv.png", (25, 2), 0)
    assert index[0].tolist() == list(range(25))
    found = [MERGED[k] for k in iuv_mask(tmp_path / "iuv.png")[0]]
    assert found == layouts_parts.DENSEPOSE


@pytest.mark.parametrize("index", [25, 128, 255])
def test_an_unknown_index_is_told(tmp_path, index):
    array = np.zeros((3, 3, 3))
    array[1, 1, 2] = index
    with pytest.raises(BookError, match=rf"mask\.png has the part index {index}; wanted 0 to 24"):
        iuv_mask(saved(tmp_path, array))


@pytest.mark.parametrize("read", [figure_mask, colour_mask, iuv_mask])
def test_a_broken_mask_is_told(tmp_path, read):
    (tmp_path / "mask.png").write_bytes(b"\x89PNG no more")
    with pytest.raises(BookError, match=r"mask\.png cannot be read as a picture"):
        read(tmp_path / "mask.png")
    assert UNKNOWN not in (len(FIGURE), len(BIRD), len(MERGED))
