"""The skeleton of the motion clips: 15 joints, their offsets, and where they are in a given pose.

Source: the humanoid model of DeepMimic (Peng et al. 2018) as packed with Bullet, loaded at scale 1/4. Metres;
y is up, the character faces +x and its right is +z.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cvlib.data.mocap_rotations import to_matrix

__all__ = ["JOINTS", "OFFSETS", "PARENTS", "SWAPPED", "forward_kinematics"]

_SCALE = 0.25  # the model's lengths are four times a person's
_TREE: dict[str, tuple[str, tuple[float, float, float]]] = {
    "root": ("", (0.0, 0.0, 0.0)),
    "chest": ("root", (0.0, 0.944604, 0.0)),
    "neck": ("chest", (0.0, 0.895576, 0.0)),
    "right_hip": ("root", (0.0, 0.0, 0.339548)),
    "right_knee": ("right_hip", (0.0, -1.686184, 0.0)),
    "right_ankle": ("right_knee", (0.0, -1.63948, 0.0)),
    "right_shoulder": ("chest", (-0.0962, 0.974, 0.73244)),
    "right_elbow": ("right_shoulder", (0.0, -1.099152, 0.0)),
    "right_wrist": ("right_elbow", (0.0, -1.035788, 0.0)),
    "left_hip": ("root", (0.0, 0.0, -0.339548)),
    "left_knee": ("left_hip", (0.0, -1.686184, 0.0)),
    "left_ankle": ("left_knee", (0.0, -1.63948, 0.0)),
    "left_shoulder": ("chest", (-0.0962, 0.974, -0.73244)),
    "left_elbow": ("left_shoulder", (0.0, -1.099152, 0.0)),
    "left_wrist": ("left_elbow", (0.0, -1.035788, 0.0)),
}

JOINTS: tuple[str, ...] = tuple(_TREE)  #: names of the joints, parents before children
PARENTS: tuple[int, ...] = tuple(JOINTS.index(up) if up else -1 for up, _ in _TREE.values())
#: from parent to joint in the parent's frame, metres, float64 (15, 3)
OFFSETS: Tensor = _SCALE * torch.tensor([offset for _, offset in _TREE.values()], dtype=torch.float64)


def _other_side(name: str) -> str:
    side, _, rest = name.partition("_")
    return {"right": f"left_{rest}", "left": f"right_{rest}"}.get(side, name)


#: the joint on the other side of each, which a mirror shows in its place
SWAPPED: tuple[int, ...] = tuple(JOINTS.index(_other_side(name)) for name in JOINTS)


def forward_kinematics(
    root: Tensor, rotations: Tensor, offsets: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return positions (..., 15, 3) in metres and world rotations (..., 15, 3, 3) of all joints.

    world[j] = world[parent] R(j) and position[j] = position[parent] + world[parent] offset[j].

    Shapes: root (..., 3), the root's position; rotations (..., 15, 4), unit quaternions (w, x, y, z) of each
    joint relative to its parent; ``offsets`` (..., 15, 3) of another body, :data:`OFFSETS` if not given.
    Raises: ValueError if the shapes do not fit.
    """
    if rotations.shape[-2:] != (len(JOINTS), 4) or root.shape != (*rotations.shape[:-2], 3):
        wanted = f"(..., 3) and (..., {len(JOINTS)}, 4)"
        raise ValueError(f"root {tuple(root.shape)} and rotations {tuple(rotations.shape)}; wanted {wanted}")
    offsets = (OFFSETS if offsets is None else offsets).to(rotations)
    local = to_matrix(rotations)
    positions, world = [root], [local[..., 0, :, :]]
    for joint, parent in enumerate(PARENTS):
        if parent >= 0:
            moved = (world[parent] @ offsets[..., joint, :, None]).squeeze(-1)
            positions.append(positions[parent] + moved)
            world.append(world[parent] @ local[..., joint, :, :])
    return torch.stack(positions, -2), torch.stack(world, -3)
