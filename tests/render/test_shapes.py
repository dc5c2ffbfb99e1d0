from __future__ import annotations

import math

import pytest
import torch

from cvlib.errors import BookError
from cvlib.render import Boxes, Cameras, Capsules, Lights, Planes, Scene, Spheres, render, sample_textures
from cvlib.render.vectors import any_perpendicular
from tests.render.scenes import frontal, unit


def f64(x: object) -> torch.Tensor:
    return torch.tensor(x, dtype=torch.float64)


def test_planes_count_units_along_their_reference():
    texture = torch.rand(1, 3, 6, 6, dtype=torch.float64)
    plane = Planes(
        point=f64([[[0.3, 0.1, 2.0]]]),
        normal=f64([[[0, 0, -5.0]]]),
        reference=f64([[[2.0, 0, 1.0]]]),  # x, once it is perpendicular to the normal
        colour=torch.ones(1, 1, 3, dtype=torch.float64),
        texture=torch.zeros(1, 1, dtype=torch.int64),
        uv=f64([[[0.5, 2.0, 0.25, 0.0]]]),
    )
    cameras = frontal()
    seen = render(Scene(planes=plane, textures=texture), cameras, supersample=1)
    torch.testing.assert_close(seen.depth, torch.full_like(seen.depth, 2))
    x = cameras.unproject(seen.depth)[0].flatten(0, 1)
    # normal x reference = -z x x = -y
    u, v = x[:, 0] - 0.3, -(x[:, 1] - 0.1)
    want = sample_textures(texture, torch.zeros(len(u), dtype=torch.int64), 0.5 * u + 0.25, 2 * v)
    torch.testing.assert_close(seen.rgb[0].flatten(1), want)


def ramp(axis: int, n: int = 512) -> torch.Tensor:
    """A texture whose colour is the coordinate u (axis 1) or v (axis 0), but at the seam."""
    line = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    return (line.view(-1, 1) if axis == 0 else line.view(1, -1)).expand(1, 3, n, n)


def link(reference: list[float], b: list[float]) -> Capsules:
    return Capsules(
        a=f64([[[0, 0, 4.0]]]),
        b=f64([[b]]),
        radius=f64([[0.4]]),
        colour=torch.ones(1, 1, 3, dtype=torch.float64),
        texture=torch.zeros(1, 1, dtype=torch.int64),
        reference=f64([[reference]]),
    )


def test_a_capsules_v_runs_from_tip_to_tip_and_u_around():
    cameras = frontal(65)
    # the axis up in the image (-y), the reference to the right
    limb = link([1.0, 0, 0], [0, -1.0, 4.0])
    along = render(Scene(capsules=limb, textures=ramp(0)), cameras, supersample=1)
    x = cameras.unproject(along.depth)[along.ids == 1]
    is_inner = (x[:, 1] > -1.38) & (x[:, 1] < 0.38)  # the seam of the texture is at the tips
    v = (-x[:, 1] + 0.4) / (1 + 0.8)
    torch.testing.assert_close(along.rgb[0, 0][along.ids[0] == 1][is_inner], v[is_inner])
    around_it = render(Scene(capsules=limb, textures=ramp(1)), cameras, supersample=1)
    # y' = axis x reference = -y x x = z: away from the camera, so what is seen has negative angles
    u = torch.atan2(x[:, 2] - 4, x[:, 0]) / (2 * math.pi) % 1
    is_inner = (u > 0.01) & (u < 0.99)
    torch.testing.assert_close(around_it.rgb[0, 0][around_it.ids[0] == 1][is_inner], u[is_inner])


def test_the_texture_moves_with_the_link():
    """A link swung about the view axis with its reference shows its texture swung, pixel by pixel."""
    texture = torch.rand(1, 3, 8, 8, dtype=torch.float64)
    up = render(Scene(capsules=link([1.0, 0, 0], [0, -1.0, 4.0]), textures=texture), frontal(65))
    right = render(Scene(capsules=link([0, 1.0, 0], [1.0, 0, 4.0]), textures=texture), frontal(65))
    torch.testing.assert_close(right.rgb, up.rgb.rot90(-1, (2, 3)))
    torch.testing.assert_close(right.depth, up.depth.rot90(-1, (1, 2)))


# from where each face is seen, what is up there, and the corner of the face in the upper left of that view
FACES = {
    0: ((-5, 0, 0), (0, 1, 0), (-1, 1, -1)),
    1: ((5, 0, 0), (0, 1, 0), (1, 1, 1)),
    2: ((0, -5, 0), (0, 0, 1), (-1, -1, 1)),
    3: ((0, 5, 0), (0, 0, -1), (-1, 1, -1)),
    4: ((0, 0, -5), (0, 1, 0), (1, 1, -1)),
    5: ((0, 0, 5), (0, 1, 0), (-1, 1, 1)),
}


@pytest.mark.parametrize("face", FACES)
def test_textures_stand_upright_on_each_face_of_a_box(face):
    eye, up, corner = FACES[face]
    half = f64([1.0, 0.7, 1.3])
    textures = torch.rand(6, 3, 4, 4, dtype=torch.float64)
    box = Boxes(
        centre=torch.zeros(1, 1, 3).double(),
        half=half.view(1, 1, 3),
        colour=torch.ones(1, 1, 3).double(),
        texture=torch.arange(6).view(1, 1, 6),
        part=torch.arange(1, 7).view(1, 1, 6),
    )
    cameras = Cameras.look_at(f64([eye]), torch.zeros(1, 3).double(), height=33, width=33, fov=36, up=up)
    seen = render(Scene(boxes=box, textures=textures), cameras, supersample=1)
    is_face = seen.ids == face + 1
    assert (seen.ids[seen.ids > 0] == face + 1).all() and is_face.sum() > 100
    # in the view's own terms: u to the right of the upper left corner, v down
    x = cameras.unproject(seen.depth)[is_face] - f64(corner) * half
    right, down = cameras.R[0, 0], cameras.R[0, 1]
    u, v = x @ right / (2 * half @ right.abs()), x @ down / (2 * half @ down.abs())
    want = sample_textures(textures, torch.full((len(u),), face), u, v)
    torch.testing.assert_close(seen.rgb[0][:, is_face[0]], want)


def test_a_direction_across_any_axis():
    w = unit(torch.randn(10_000, 3, dtype=torch.float64))
    x = any_perpendicular(w)
    torch.testing.assert_close((x * w).sum(-1), torch.zeros(10_000, dtype=torch.float64))
    torch.testing.assert_close(x.norm(dim=-1), torch.ones(10_000, dtype=torch.float64))
    torch.testing.assert_close(any_perpendicular(f64([0, 0, 1])), f64([1, 0, 0]))


def ball(**fields: object) -> Spheres:
    like = {"centre": torch.zeros(2, 3, 3), "radius": torch.ones(2, 3), "colour": torch.ones(2, 3, 3)}
    return Spheres(**(like | fields))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"radius": torch.zeros(2, 3)}, "radius of 0"),
        ({"radius": torch.full((2, 3), math.nan)}, "NaN"),
        ({"radius": torch.ones(2, 3, 1)}, "radius of shape"),
        ({"radius": torch.ones(2, 3).double()}, "float64"),
        ({"centre": torch.zeros(2, 3)}, r"\(B, N, 3\)"),
        ({"centre": torch.full((2, 3, 3), math.inf)}, "infinity"),
        ({"colour": torch.full((2, 3, 3), 1.5)}, r"\[0, 1\]"),
        ({"colour": torch.ones(2, 3, 6, 3)}, "colour of shape"),
        ({"rotation": torch.ones(2, 3, 3, 3)}, "a rotation"),
        ({"part": torch.zeros(2, 3, dtype=torch.int64)}, "at least 1"),
        ({"part": torch.ones(2, 3)}, "int64"),
        ({"shown": torch.ones(2, 3, dtype=torch.int64)}, "bool"),
    ],
)
def test_bad_shapes_are_told(fields, said):
    ball()
    with pytest.raises(BookError, match=said):
        ball(**fields)


def test_other_bad_shapes_are_told():
    one = torch.ones(1, 1, 3)
    with pytest.raises(BookError, match="half of 0"):
        Boxes(centre=one, half=0 * one, colour=one)
    with pytest.raises(BookError, match="normal"):
        Planes(point=one, normal=0 * one, colour=one)
    with pytest.raises(BookError, match="radius of -1"):
        Capsules(a=one, b=one, radius=-torch.ones(1, 1), colour=one)
    along = Capsules(a=one, b=2 * one, radius=torch.ones(1, 1), colour=one, reference=3 * one)
    with pytest.raises(BookError, match="along the axis"):
        render(Scene(capsules=along), frontal(8).to(dtype=torch.float32))


def test_bad_scenes_are_told():
    with pytest.raises(BookError, match="without shapes"):
        Scene()
    with pytest.raises(BookError, match="2 scenes, lights for 1"):
        Scene(spheres=ball(), lights=Lights.studio(1))
    with pytest.raises(BookError, match="textures 0 to 0 of 0"):
        Scene(spheres=ball(texture=torch.zeros(2, 3, dtype=torch.int64)))
    with pytest.raises(BookError, match="textures of shape"):
        Scene(spheres=ball(), textures=torch.ones(1, 4, 8, 8))
    scene = Scene(spheres=ball(), lights=Lights.studio(2))
    with pytest.raises(BookError, match="2 scenes, 3 cameras"):
        render(scene, frontal(8, n=3).to(dtype=torch.float32))
    with pytest.raises(BookError, match="float64"):
        render(scene, frontal(8, n=2))
    with pytest.raises(BookError, match="supersample 0"):
        render(scene, frontal(8, n=2).to(dtype=torch.float32), supersample=0)
