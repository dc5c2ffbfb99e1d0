"""From a scene and cameras to images, depth and part ids."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cvlib.errors import BookError
from cvlib.render.cameras import Cameras
from cvlib.render.raster import Footprint, footprint, nearest, pixels_of, runs_of
from cvlib.render.scene import Scene
from cvlib.render.shading import lambert, sample_textures
from cvlib.render.shapes import Placed, Touch
from cvlib.render.vectors import Vec, dot, turn, unit

__all__ = ["Rendering", "render"]

_TESTS = {"cpu": 2**17, "other": 2**22}  # of rays against shapes at a time: in the cache, or a device's fill


@dataclass(frozen=True)
class Rendering:
    """What C cameras see."""

    rgb: Tensor  #: (C, 3, H, W) in [0, 1], already multiplied by alpha: black where there is nothing
    alpha: Tensor  #: (C, H, W) in [0, 1], the share of the pixel's sub-rays that meet something
    depth: Tensor  #: (C, H, W), z of the first surface on the ray through the pixel's centre; inf: nothing
    ids: Tensor  #: int64 (C, H, W), its part; 0: nothing

    def over(self, background: Tensor) -> Tensor:
        """Return the images (C, 3, H, W) in front of ``background``, images in [0, 1] that broadcast.

        rgb + (1 - alpha) background: as if the sub-rays that meet nothing had brought back its colour.
        """
        return self.rgb + (1 - self.alpha.unsqueeze(1)) * background


@torch.no_grad()
def render(scene: Scene, cameras: Cameras, *, supersample: int = 2, tests: int | None = None) -> Rendering:
    """Return what each camera sees of its scene; one scene serves all cameras, or one camera all scenes.

    With ``supersample`` s a pixel's rgb and alpha are means over the s x s sub-rays through the centres of
    equal squares, and colours are averaged as they are (no gamma). Depth and ids always belong to the one ray
    through the pixel's centre. The batch is worked off in groups of cameras with about ``tests``
    intersections each (left out: what suits the device), which bounds the memory. No gradient is recorded.

    Raises: BookError where batch sizes, types or devices disagree, or supersample is below 1.
    """
    if supersample < 1:
        raise BookError(f"supersample {supersample}", "1 or more")
    if len(scene) != len(cameras) and 1 not in (len(scene), len(cameras)):
        raise BookError(f"{len(scene)} scenes, {len(cameras)} cameras", "as many of both", "or one of either")
    if (scene.like.dtype, scene.like.device) != (cameras.K.dtype, cameras.K.device):
        seen = f"a scene in {scene.like.dtype} on {scene.like.device}"
        raise BookError(seen, f"{cameras.K.dtype} on {cameras.K.device}, as the cameras")
    n, height, width = max(len(scene), len(cameras)), cameras.height, cameras.width
    placed = [kind.place(cameras.R.unsqueeze(1), cameras.t.unsqueeze(1)) for kind in scene.kinds]
    centre = _View(scene, cameras, placed, n)
    fine = _View(scene, cameras.resized(supersample * height, supersample * width), placed, n)
    paint = _Paint(scene, cameras)
    rgb, alpha = cameras.K.new_empty(n, 3, height, width), cameras.K.new_empty(n, height, width)
    depth, ids = torch.empty_like(alpha), torch.empty_like(alpha, dtype=torch.int64)
    for group in _groups(fine.costs(), tests or _TESTS["cpu" if rgb.device.type == "cpu" else "other"]):
        traced = centre.trace(group)
        depth[group], ids[group] = traced.depth, paint.ids(traced, group)
        if supersample > 1:
            traced = fine.trace(group)
        rgba = F.avg_pool2d(paint.rgba(traced, group), supersample)
        rgb[group], alpha[group] = rgba[:, :3], rgba[:, 3]
    return Rendering(rgb, alpha, depth, ids)


def _groups(costs: Tensor, budget: int) -> Iterator[slice]:
    """Yield consecutive cameras whose costs (C,) add up to at most ``budget``, or one that costs more."""
    first, total = 0, 0.0
    for i, cost in enumerate(costs.tolist()):
        if i > first and total + cost > budget:
            yield slice(first, i)
            first, total = i, 0.0
        total += cost
    yield slice(first, len(costs))


class _Hits(NamedTuple):
    """The pixels of a group of cameras that see shapes of one kind; all (h,), index int64."""

    pixel: Tensor  #: c H W + i W + j
    camera: Tensor  #: c
    shape: Tensor  #: number within its kind
    numbers: Tensor  #: (k, h), those of the shape
    point: Vec  #: in the camera's frame


class _Traced(NamedTuple):
    depth: Tensor  #: (c, H, W)
    hits: list[_Hits]  #: one per kind


class _View:
    """Cameras of one resolution, and where the placed shapes can be seen by them."""

    def __init__(self, scene: Scene, cameras: Cameras, placed: list[Placed], n: int) -> None:
        self.kinds, self.placed = scene.kinds, placed
        self.height, self.width = cameras.height, cameras.width
        K = cameras.K.expand(n, 3, 3)
        self.rows = torch.linalg.inv(K)[:, :2, :, None, None]  # (n, 2, 3, 1, 1): d = K⁻¹ (u, v, 1) has z = 1
        self.seen = []
        for kind, where in zip(self.kinds, placed, strict=True):
            seen = footprint(where, K, self.height, self.width)
            is_shown = seen.can_be_seen if kind.shown is None else seen.can_be_seen & kind.shown
            self.seen.append(Footprint(seen.rects, is_shown))
        self.uv = cameras.pixels().movedim(-1, 0)  # (2, H, W)

    def costs(self) -> Tensor:
        """Return about how many rays and intersections each camera needs, (n,)."""
        areas = [seen.areas(self.height, self.width).sum(1) for seen in self.seen]
        return torch.stack(areas).sum(0) + self.height * self.width

    def _directions(self, group: slice) -> tuple[Tensor, Tensor]:
        u, v = self.uv
        rows = self.rows[group]
        x, y = (rows[:, i, 0] * u + rows[:, i, 1] * v + rows[:, i, 2] for i in (0, 1))
        return x.flatten(), y.flatten()

    def trace(self, group: slice) -> _Traced:
        """Return what the rays of a group of cameras meet first; t along d is the depth, as d has z = 1."""
        x, y = self._directions(group)
        one = x.new_ones(1)
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        offset = 0
        for kind, placed, seen in zip(self.kinds, self.placed, self.seen, strict=True):
            seen = Footprint(*(part[group] for part in seen))
            runs = runs_of(seen, self.height, self.width)
            run, pixel = pixels_of(runs)
            numbers = placed.numbers[: kind.n_meet, group].flatten(1)[:, runs.shape].index_select(1, run)
            t, is_met = kind.meet(numbers, (x.index_select(0, pixel), y.index_select(0, pixel), one))
            at = (is_met & (t > 0)).nonzero().squeeze(1)
            shape = (runs.shape % kind.shape[1] + offset).index_select(0, run.index_select(0, at))
            found.append((pixel.index_select(0, at), t.index_select(0, at), shape))
            offset += kind.shape[1]
        pixel, t, shape = (torch.cat(column) for column in zip(*found, strict=True))
        depth, owner = nearest(pixel, t, shape, len(x))
        hits, offset = [], 0
        for kind, placed in zip(self.kinds, self.placed, strict=True):
            n_shapes = kind.shape[1]
            pixel = ((owner >= offset) & (owner < offset + n_shapes)).nonzero().squeeze(1)
            camera = torch.div(pixel, self.height * self.width, rounding_mode="floor")
            shape = owner.index_select(0, pixel) - offset
            numbers = placed.numbers[:, group].flatten(1).index_select(1, camera * n_shapes + shape)
            t = depth.index_select(0, pixel)
            point = (x.index_select(0, pixel) * t, y.index_select(0, pixel) * t, t)
            hits.append(_Hits(pixel, camera, shape, numbers, point))
            offset += n_shapes
        return _Traced(depth.view(-1, self.height, self.width), hits)


def _towards_eye(normal: Vec, point: Vec) -> Vec:
    """Return normals (n,) turned to the side from which the camera, at 0, sees the points."""
    side = -torch.copysign(torch.ones_like(point[2]), dot(normal, point))
    return (normal[0] * side, normal[1] * side, normal[2] * side)


class _Paint:
    """Colours and parts of the surfaces that rays meet."""

    def __init__(self, scene: Scene, cameras: Cameras) -> None:
        self.kinds, self.looks, self.textures = scene.kinds, scene.looks(), scene.textures
        self.is_textured = scene.textures is not None and bool((self.looks.texture >= 0).any())
        self.light: Tensor | None = None
        if (lights := scene.lights) is not None:
            towards = turn(cameras.R.unsqueeze(1), unit(lights.direction))  # (C, L, 3), in the camera's frame
            light = (towards, lights.colour, lights.ambient.unsqueeze(1))
            self.light = torch.cat([x.expand(len(towards), -1, -1) for x in light], 1)

    def _rows(self, hits: _Hits, kind: int, face: Tensor | None, group: slice) -> Tensor:
        """Return the rows (h,) of the hits in the table of looks."""
        before = sum(shapes.shape[1] * shapes.faces for shapes in self.kinds[:kind])
        row = hits.shape * self.kinds[kind].faces + before
        if face is not None:
            row = row + face
        n_scenes, n_surfaces = self.looks.part.shape
        return row if n_scenes == 1 else row + (hits.camera + group.start) * n_surfaces

    def ids(self, traced: _Traced, group: slice) -> Tensor:
        """Return the parts (c, H, W), 0 where nothing is met."""
        found = torch.zeros_like(traced.depth, dtype=torch.int64)
        for kind, hits in enumerate(traced.hits):
            shapes = self.kinds[kind]
            face = shapes.touch(hits.numbers, hits.point).face if shapes.faces > 1 else None
            part = self.looks.part.flatten().index_select(0, self._rows(hits, kind, face, group))
            found.view(-1).scatter_(0, hits.pixel, part)
        return found

    def rgba(self, traced: _Traced, group: slice) -> Tensor:
        """Return colours and coverage (c, 4, H, W)."""
        c, height, width = traced.depth.shape
        image = traced.depth.new_zeros(4, c * height * width)
        for kind, hits in enumerate(traced.hits):
            touch = self.kinds[kind].touch(hits.numbers, hits.point)
            row = self._rows(hits, kind, touch.face, group)
            colour = self.looks.colour.flatten(1).index_select(1, row)
            if self.is_textured:
                colour = colour * self._texture(touch, row)
            if self.light is not None:
                colour = colour * self._light(_towards_eye(touch.normal, hits.point), hits.camera, group)
            for channel, value in zip(image, colour.clamp_max_(1), strict=False):
                channel.scatter_(0, hits.pixel, value)
            image[3].scatter_(0, hits.pixel, 1.0)
        return image.view(4, c, height, width).movedim(0, 1)

    def _texture(self, touch: Touch, row: Tensor) -> Tensor:
        assert self.textures is not None
        scale_u, scale_v, from_u, from_v = self.looks.uv.flatten(1).index_select(1, row)
        index = self.looks.texture.flatten().index_select(0, row)
        u, v = torch.addcmul(from_u, touch.u, scale_u), torch.addcmul(from_v, touch.v, scale_v)
        return sample_textures(self.textures, index, u, v)

    def _light(self, normal: Vec, camera: Tensor, group: slice) -> Tensor:
        assert self.light is not None
        camera = camera + group.start if len(self.light) > 1 else torch.zeros_like(camera)
        light = self.light.flatten(1).T.contiguous().index_select(1, camera).unflatten(0, (-1, 3))
        n = (len(light) - 1) // 2
        return lambert(normal, light[:n], light[n : 2 * n], light[-1])
