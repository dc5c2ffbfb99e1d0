"""A batched ray-caster: scenes with known cameras, depth and part masks. The conventions, once for all users:

World. Any right-handed frame, lengths in a unit of your choice (metres in this book); :meth:`Cameras.look_at`
takes y as up unless told otherwise.

Camera. x right, y down, z forward. A point is x_c = R x_w + t in the camera's frame: R and t map world to
camera, so the optical centre is -Rᵀ t. Poses between cameras are X_target = R X_source + t.

Pixels. (u, v, 1) ∝ K x_c, u to the right and v down, in pixels of the image's size. Pixel (row i, column j)
covers j ≤ u ≤ j + 1, i ≤ v ≤ i + 1, and its centre is (j + ½, i + ½). Code that counts pixel centres from 0
(such as the warps of Rombach et al. 2021) wants K with ½ subtracted from c_x and c_y. A K for images of
1 x 1, as in RealEstate10K's files, becomes one in pixels by Cameras(K, R, t, 1, 1).resized(height, width).

Depth. z of x_c, not the distance from the camera. A ray's direction is Rᵀ K⁻¹ (u, v, 1), which has z = 1, so
the surface is at centre + depth · direction. Depth and ids are exact for the ray through the pixel's centre,
whatever the supersampling; inf and 0 where that ray meets nothing.

Colour. rgb in [0, 1], multiplied by alpha; :meth:`Rendering.over` puts it in front of a background. rgb and
alpha are means over the sub-rays. Colours, textures and light are multiplied and averaged as they are: they
are values for display, and no gamma is applied anywhere. The book's networks want 2 rgb - 1.

Textures. (u, v) in [0, 1] is one image from its upper left to its lower right corner; beyond, it repeats.
Where opposite borders differ they blend over half a texel; scale (w - 1) / w and offset ½ / w avoid it.

Batches. Shapes are tensors (B, N, ...): B scenes of N planes, boxes, spheres or capsules. B cameras look at B
scenes one to one; one scene serves many cameras. Types are float32 or float64, on any device.

>>> import torch
>>> ball = Spheres(
...     centre=torch.zeros(1, 1, 3), radius=torch.ones(1, 1), colour=torch.tensor([[[1.0, 0.5, 0.0]]])
... )
>>> eye = torch.tensor([[0.0, 0.0, 5.0], [3.0, 0.0, 0.0]])
>>> cameras = Cameras.look_at(eye, torch.zeros(2, 3), height=65, width=65)
>>> seen = render(Scene(spheres=ball), cameras)
>>> seen.depth[:, 32, 32], seen.ids[:, 32, 32], seen.rgb[0, :, 32, 32]
(tensor([4., 2.]), tensor([1, 1]), tensor([1.0000, 0.5000, 0.0000]))
"""

from __future__ import annotations

from cvlib.render.cameras import Cameras, intrinsics, relative_pose
from cvlib.render.intersect import ray_box, ray_capsule, ray_plane, ray_sphere
from cvlib.render.renderer import Rendering, render
from cvlib.render.scene import Scene
from cvlib.render.shading import Lights, sample_textures
from cvlib.render.shapes import Boxes, Capsules, Planes, Spheres

__all__ = [
    "Boxes",
    "Cameras",
    "Capsules",
    "Lights",
    "Planes",
    "Rendering",
    "Scene",
    "Spheres",
    "intrinsics",
    "ray_box",
    "ray_capsule",
    "ray_plane",
    "ray_sphere",
    "relative_pose",
    "render",
    "sample_textures",
]
