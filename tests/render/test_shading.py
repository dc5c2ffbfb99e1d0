from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from cvlib.errors import BookError
from cvlib.render import Cameras, Lights, Rendering, Scene, Spheres, render, sample_textures
from tests.render.scenes import around, clutter, frontal, sdf_box, sdf_capsule, unit


def f64(x: object) -> torch.Tensor:
    return torch.tensor(x, dtype=torch.float64)


def test_textures_are_bilinear_and_repeat():
    """Against grid_sample on each texture repeated 3 x 3, read in the middle one."""
    textures = torch.rand(4, 3, 5, 7, dtype=torch.float64)
    n = 500
    u, v, index = torch.rand(n).double(), torch.rand(n).double(), torch.randint(0, 4, (n,))
    found = sample_textures(textures, index, u + torch.randint(-3, 4, (n,)), v - 2)
    tiled = textures.repeat(1, 1, 3, 3)
    grid = torch.stack(((1 + u) / 3, (1 + v) / 3), -1) * 2 - 1
    for i in range(n):
        one = F.grid_sample(tiled[index[i], None], grid[i].view(1, 1, 1, 2), align_corners=False)
        torch.testing.assert_close(found[:, i], one.flatten())


def test_without_texture_white():
    textures = torch.rand(2, 3, 4, 4)
    assert (sample_textures(textures, torch.tensor([-1]), torch.rand(1), torch.rand(1)) == 1).all()


def test_texel_centres_and_the_upper_left_corner():
    textures = torch.arange(12.0).view(1, 1, 3, 4).expand(1, 3, 3, 4) / 12
    u, v = torch.tensor([0.5, 2.5, 2.0]) / 4, torch.tensor([0.5, 1.5, 1.5]) / 3
    found = sample_textures(textures, torch.zeros(3, dtype=torch.int64), u, v)[0]
    torch.testing.assert_close(found, torch.tensor([0.0, 6.0, 5.5]) / 12)


def test_a_lit_sphere_in_closed_form():
    """c (ambient + Σ I max(0, n · l)) at every pixel, the normal from the depth and the sphere's equation."""
    centre, r, colour = f64([0.2, -0.1, 4.0]), 1.2, f64([0.9, 0.5, 0.2])
    lights = Lights(
        f64([[[0, -2, -1], [3, 0, 0.5]]]), f64([[[0.5, 0.4, 0.3], [0.2, 0.2, 0.4]]]), f64([[0.1, 0.2, 0.3]])
    )
    ball = Spheres(centre=centre.view(1, 1, 3), radius=f64([[r]]), colour=colour.view(1, 1, 3))
    cameras = frontal()
    seen = render(Scene(spheres=ball, lights=lights), cameras, supersample=1)
    x = cameras.unproject(seen.depth)[seen.ids == 1]
    n = (x - centre) / r
    assert len(n) > 100
    want = lights.ambient + (n @ unit(lights.direction[0]).T).clamp_min(0) @ lights.colour[0]
    torch.testing.assert_close(seen.rgb.movedim(1, -1)[seen.ids == 1], colour * want)
    assert (seen.rgb.movedim(1, -1)[seen.ids == 0] == 0).all()


def normals(scene: Scene, cameras: Cameras) -> tuple[torch.Tensor, Rendering]:
    """Normals in the world (B, H, W, 3), read off white surfaces: light along the axes less light against."""
    axes, dark = (
        torch.eye(3, dtype=torch.float64).expand(len(scene), 3, 3),
        torch.zeros(len(scene), 3).double(),
    )
    lit = [
        render(replace(scene, lights=Lights(s * axes, axes, dark)), cameras, supersample=1) for s in (1, -1)
    ]
    return (lit[0].rgb - lit[1].rgb).movedim(1, -1), lit[0]


@pytest.mark.parametrize("distance", [4.0, 0.1])
def test_normals_against_the_gradient_of_the_distance(distance):
    b = 8
    scene = clutter(b)
    boxes = replace(scene.boxes, colour=torch.ones(b, 3, 3).double(), texture=None, part=None)
    capsules = replace(scene.capsules, colour=torch.ones(b, 6, 3).double(), texture=None)
    cameras, checked = around(b, 24, distance, fov=70), set()
    n, seen = normals(Scene(boxes=boxes, capsules=capsules), cameras)
    points = cameras.unproject(seen.depth)
    for i, number in [(i, k) for i in range(b) for k in range(1, 10)]:
        is_it = seen.ids[i] == number
        x = points[i][is_it].requires_grad_()
        if number <= 3:
            distance_to = sdf_box(x, *(v[i, number - 1] for v in (boxes.centre, boxes.rotation, boxes.half)))
        else:
            distance_to = sdf_capsule(
                x, *(v[i, number - 4] for v in (capsules.a, capsules.b, capsules.radius))
            )
        (gradient,) = torch.autograd.grad(distance_to.sum(), x)
        away = (gradient * (x - cameras.centres[i])).sum(-1, keepdim=True) > 0  # seen from inside
        want = torch.where(away, -gradient, gradient)
        torch.testing.assert_close(n[i][is_it], want, rtol=0, atol=1e-6)
        if len(x):
            checked.add(number)
    assert checked == set(range(1, 10)) if distance > 1 else len(checked) > 4


def test_light_stays_in_the_world_when_the_camera_turns():
    one = torch.ones(1, 1, 3)
    ball = Spheres(centre=0 * one, radius=torch.ones(1, 1), colour=one)
    scene = Scene(spheres=ball, lights=Lights(torch.tensor([[[1.0, 0, 0]]]), one, 0 * one[0]))
    eye = torch.tensor([[5.0, 0, 0], [0, 0, 5], [-5, 0, 0]])  # at the light, to its side, opposite
    rgb = render(scene, Cameras.look_at(eye, 0 * eye, height=33, width=33), supersample=1).rgb[:, 0]
    assert rgb[0, 16, 16] > 0.999 and rgb[2].max() == 0
    assert rgb[1, 16, 24] > 0.5 and rgb[1, 16, 8] == 0  # +x is on the right, seen from +z


def test_light_beyond_white_is_cut_in_each_sub_ray():
    one = torch.ones(1, 1, 3)
    ball = Spheres(centre=0 * one, radius=torch.ones(1, 1), colour=torch.tensor([[[1.0, 0.5, 0.2]]]))
    scene = Scene(spheres=ball, lights=Lights(-one, one, 3 * one[0]))
    seen = render(scene, Cameras.look_at(5 * one[0], 0 * one[0], height=17, width=17))
    torch.testing.assert_close(seen.rgb[:, 0], seen.alpha)  # 1 wherever a sub-ray meets the ball
    torch.testing.assert_close(seen.rgb[0, :, 8, 8], torch.tensor([1.0, 1.0, 0.6]))


def test_a_surface_that_faces_the_studio_light_shows_its_colour_and_none_is_brighter():
    lights = Lights.studio()
    n = unit(torch.randn(20000, 3))
    shade = lights.ambient[0] + (n @ unit(lights.direction[0]).T).clamp_min(0) @ lights.colour[0]
    assert 0.99 < shade.max() <= 1 and shade.min() > 0.5


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"direction": torch.zeros(1, 2, 3)}, "length of direction"),
        ({"colour": torch.full((1, 2, 3), -0.1)}, "negative"),
        ({"ambient": torch.full((1, 2, 3), 0.1)}, "ambient of shape"),
    ],
)
def test_bad_lights_are_told(fields, said):
    good = {"direction": torch.ones(1, 2, 3), "colour": torch.ones(1, 2, 3), "ambient": torch.ones(1, 3)}
    Lights(**good)
    with pytest.raises(BookError, match=said):
        Lights(**(good | fields))
