"""The poses, cameras and lights of bodies, and how they are drawn with `cvlib.render`."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cvlib.data.base import derived_generator
from cvlib.data.bodies_figure import CAPSULES, Figures, pose_figures
from cvlib.data.bodies_people import GARMENTS, SHAPE, Outfits, textures
from cvlib.data.mocap import CLIPS, clip
from cvlib.data.mocap_rotations import about, product
from cvlib.data.mocap_windows import listing
from cvlib.render import Cameras, Capsules, Lights, Scene, render

__all__ = [
    "VIEW",
    "Viewpoints",
    "body_scenes",
    "cameras_of",
    "draw_bodies",
    "frames_of",
    "joint_places",
    "rotations_of",
    "sample_views",
]

#: what a view says, and the range each is drawn from, uniformly: angles in degrees, lengths in images
VIEW: dict[str, tuple[float, float]] = {
    "yaw": (-75.0, 75.0),  # of the figure, 0 faces the camera
    "elevation": (-5.0, 25.0),  # of the camera above the figure
    "zoom": (0.88, 0.96),  # the share of the image that the largest body would fill
    "right": (-0.02, 0.02),  # where the figure's middle falls, from the image's
    "down": (-0.02, 0.02),
    "light_azimuth": (-60.0, 60.0),  # of the key light, from the camera
    "light_elevation": (10.0, 60.0),
    "key": (0.45, 0.65),
    "ambient": (0.35, 0.45),
}
FOV = 30.0  #: vertical field of view, degrees
_PERIOD = 0.15  # metres of a pattern: about five pixels of a 64-pixel image
_SUPERSAMPLE = 3


def frames_of(split: str) -> list[tuple[str, int, bool]]:
    """Return (clip, frame, is mirrored) of every pose of a split (`cvlib.data.mocap_windows.listing`)."""
    blocks = [(name, first, last) for name, of, first, last in listing() if of == split]
    return [
        (name, k, flip) for name, first, last in blocks for k in range(first, last) for flip in (False, True)
    ]


def rotations_of(frames: list[tuple[str, int, bool]]) -> Tensor:
    """Return the poses (B, 15, 4) of (clip, frame, is mirrored), turned so that each figure faces +x.

    Facing is the part of the root's rotation that turns about the vertical; somebody who lies has one too.
    """
    motions = {
        (name, flip): clip(name).mirror() if flip else clip(name) for name in CLIPS for flip in (False, True)
    }
    q = torch.stack([motions[name, flip].rotations[frame] for name, frame, flip in frames])
    return _turned(q, -2 * torch.atan2(q[:, 0, 2], q[:, 0, 0]))


def _turned(q: Tensor, angle: Tensor) -> Tensor:
    """Return poses (B, 15, 4) turned about the vertical by ``angle`` (B,) radians, from +x towards -z."""
    root = product(about((0.0, 1.0, 0.0), angle), q[:, 0])
    return torch.cat([root[:, None], q[:, 1:]], 1)


@dataclass(frozen=True)
class Viewpoints:
    """How B bodies are seen, float64 (B, 9), columns as in :data:`VIEW`."""

    table: Tensor

    def __getattr__(self, name: str) -> Tensor:
        if name not in VIEW:
            raise AttributeError(name)
        return self.table[:, list(VIEW).index(name)]


def sample_views(n: int, seed: int, *words: object) -> Viewpoints:
    """Return ``n`` views; view i is the same for any n."""
    low, high = torch.tensor(list(VIEW.values()), dtype=torch.float64).T
    generators = (derived_generator(seed, "view", *words, i) for i in range(n))
    u = torch.stack([torch.rand(len(VIEW), generator=g, dtype=torch.float64) for g in generators])
    return Viewpoints(low + (high - low) * u)


def cameras_of(rotations: Tensor, views: Viewpoints, image_size: int) -> Cameras:
    """Return cameras that see the poses (B, 15, 4), already turned by their yaw, whole and in the middle.

    They depend on pose and view alone: the largest body is fitted, so that people of all shapes are seen by
    the same camera in the same pose. float64.
    """
    largest = 1 + torch.tensor(list(SHAPE.values()))
    body = pose_figures(rotations, largest.expand(len(rotations), -1))
    ends, radius = torch.cat([body.a, body.b], 1), torch.cat([body.radius, body.radius], 1)
    rise = views.elevation.deg2rad()
    zero = torch.zeros_like(rise)
    back = torch.stack([rise.cos(), rise.sin(), zero], -1)  # from the figure to the camera
    right = torch.tensor([0.0, 0.0, -1.0], dtype=torch.float64).expand_as(back)
    up = torch.linalg.cross(back, right)
    axes = torch.stack([right, up, back], 1)  # (B, 3, 3)
    x = ends @ axes.mT
    low, high = ((x + sign * radius[..., None]) for sign in (-1, 1))
    middle = (low.amin(1) + high.amax(1)) / 2
    # the cone of the view must hold every ball: |x| + r / cos <= tan (distance - z)
    slope = math.tan(math.radians(FOV) / 2) * views.zoom[:, None]
    reach = (x - middle[:, None])[..., :2].abs().amax(-1) + radius * (1 + slope.square()).sqrt()
    distance = (reach / slope + (x - middle[:, None])[..., 2]).amax(1)
    target = (middle[:, None] @ axes).squeeze(1)
    eye = target + distance[:, None] * back
    cameras = Cameras.look_at(eye, target, height=image_size, width=image_size, fov=FOV)
    K = cameras.K.clone()
    K[:, :2, 2] += torch.stack([views.right, views.down], -1) * image_size
    return replace(cameras, K=K)


def _lights(views: Viewpoints) -> Lights:
    """A key light on the camera's side, and a third of it from the other side and below."""
    rise, side = views.light_elevation.deg2rad(), views.light_azimuth.deg2rad()
    key = torch.stack([rise.cos() * side.cos(), rise.sin(), rise.cos() * side.sin()], -1)
    fill = torch.stack([side.cos(), torch.full_like(side, -0.2), -side.sin().sign() * 0.8], -1)
    strength = torch.stack([views.key, views.key / 3], -1)[..., None].expand(-1, -1, 3)
    ambient = views.ambient[:, None].expand(-1, 3)
    return Lights(
        torch.stack([key, fill], 1).float(), strength.float().contiguous(), ambient.float().contiguous()
    )


def _capsules(figures: Figures) -> Capsules:
    """The capsules, with patterns of one size in metres on all of them, and whole tiles around the axis."""
    n_bodies, n = figures.radius.shape
    length = (figures.b - figures.a).norm(dim=-1) + 2 * figures.radius
    around = (2 * math.pi * figures.radius / _PERIOD).round().clamp_min(1)
    uv = torch.stack([around, length / _PERIOD, torch.zeros_like(length), torch.zeros_like(length)], -1)
    lying = torch.tensor([one.is_across for one in CAPSULES])
    rows = torch.where(lying, figures.garment + len(GARMENTS), figures.garment)
    texture = torch.arange(n_bodies)[:, None] * 2 * len(GARMENTS) + rows
    return Capsules(
        a=figures.a.float(),
        b=figures.b.float(),
        radius=figures.radius.float(),
        reference=figures.reference.float(),
        colour=torch.ones(n_bodies, n, 3),
        part=figures.part.expand(n_bodies, n).contiguous(),
        texture=texture,
        uv=uv.float(),
    )


def _placed(rotations: Tensor, shapes: Tensor, views: Viewpoints, image_size: int) -> tuple[Figures, Cameras]:
    turned = _turned(rotations, views.yaw.deg2rad())
    return pose_figures(turned, shapes), cameras_of(turned, views, image_size)


def joint_places(rotations: Tensor, shapes: Tensor, views: Viewpoints, image_size: int) -> Tensor:
    """Return where the joints of B bodies are seen, float (B, 15, 2), hidden ones too.

    Right and down in pixels from the image's upper left corner; the first pixel's centre is (.5, .5). The
    arguments are those of :func:`draw_bodies`.
    """
    figures, cameras = _placed(rotations, shapes, views, image_size)
    return cameras.project(figures.joints)[0].float()


def body_scenes(
    rotations: Tensor, shapes: Tensor, looks: Outfits, views: Viewpoints, image_size: int
) -> tuple[Scene, Cameras]:
    """Return B bodies as scenes, one each, in float32, and the cameras that see them, in float64.

    ``rotations`` (B, 15, 4) face +x (:func:`rotations_of`), the yaw of ``views`` turns them; ``shapes``
    (B, 6) as in `cvlib.data.bodies_people`.
    """
    figures, cameras = _placed(rotations, shapes, views, image_size)
    tiles = textures(looks).unflatten(0, (len(shapes), len(GARMENTS)))
    both = torch.cat([tiles, tiles.mT], 1).flatten(0, 1)  # upright, and for capsules that lie across
    scene = Scene(capsules=_capsules(figures), textures=both, lights=_lights(views))
    return scene, cameras


def draw_bodies(
    rotations: Tensor, shapes: Tensor, looks: Outfits, views: Viewpoints, image_size: int
) -> Tensor:
    """Return B bodies as bytes (B, 5, S, S): colour times alpha, alpha, and the id of the part.

    The arguments are those of :func:`body_scenes`. Ids are rows of `cvlib.data.bodies_figure.PARTS`, at the
    pixels' centres; alpha is the share of a pixel that the body covers.
    """
    scene, cameras = body_scenes(rotations, shapes, looks, views, image_size)
    seen = render(scene, cameras.to(dtype=torch.float32), supersample=_SUPERSAMPLE)
    rgba = torch.cat([seen.rgb.clamp(0, 1), seen.alpha[:, None]], 1)
    return torch.cat([(rgba * 255).round().byte(), seen.ids[:, None].byte()], 1)
