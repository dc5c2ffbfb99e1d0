"""A posed body as capsules, each with the part of the body it belongs to and the garment it wears."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cvlib.data.bodies_people import GARMENTS, SHAPE, limb_offsets
from cvlib.data.mocap_skeleton import JOINTS, forward_kinematics

__all__ = ["CAPSULES", "MERGED", "PARTS", "Figures", "merge", "pose_figures"]

_SIDED = ("upper_arm", "lower_arm", "hand", "thigh", "shin", "foot")
#: parts in the order of their ids; 0 is the background
PARTS: tuple[str, ...] = (
    "background",
    "head",
    "torso",
    *(f"right_{part}" for part in _SIDED),
    *(f"left_{part}" for part in _SIDED),
)
#: the labels that the paper's evaluation has, in the order of its table; 0 is the background
MERGED: tuple[str, ...] = ("background", "arms", "feet", "head", "legs", "torso")
_MERGED_OF = {"head": "head", "torso": "torso", "foot": "feet", "thigh": "legs", "shin": "legs"}
_MERGED_OF |= {"upper_arm": "arms", "lower_arm": "arms", "hand": "arms"}


Place = tuple[float, float, float]
_HERE: Place = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Capsule:
    """One capsule: its axis goes from a in the frame of ``joint`` to b in that of ``to``, in metres."""

    part: str
    garment: str
    radius: float
    joint: str
    a: Place
    to: str
    b: Place
    reference: Place = (1.0, 0.0, 0.0)  #: in the frame of ``joint``: where the texture begins around the axis

    @property
    def is_across(self) -> bool:
        """Whether it lies from side to side, so that its pattern must be turned to continue the others'."""
        return self.joint == self.to and self.a[2] != self.b[2]


def _limbs(side: str) -> list[Capsule]:
    """The capsules of one side; a foot's axis lies along x, so its texture begins above."""
    r, ankle = f"{side}_", f"{side}_ankle"
    z = 1.0 if side == "right" else -1.0
    shoulder, waist = (-0.02, 0.165, 0.095 * z), (0.0, 0.06, 0.045 * z)
    hand, foot = ((0.0, -0.035, 0.0), (0.0, -0.08, 0.0)), ((-0.02, -0.02, 0.0), (0.125, -0.035, 0.0))
    return [
        Capsule("torso", "shirt", 0.085, "chest", shoulder, "root", waist),
        Capsule(r + "upper_arm", "shirt", 0.053, r + "shoulder", _HERE, r + "elbow", _HERE),
        Capsule(r + "lower_arm", "shirt", 0.045, r + "elbow", _HERE, r + "wrist", _HERE),
        Capsule(r + "hand", "skin", 0.043, r + "wrist", hand[0], r + "wrist", hand[1]),
        Capsule(r + "thigh", "trousers", 0.078, r + "hip", _HERE, r + "knee", _HERE),
        Capsule(r + "shin", "trousers", 0.058, r + "knee", _HERE, ankle, _HERE),
        Capsule(r + "foot", "shoes", 0.047, ankle, foot[0], ankle, foot[1], (0.0, 1.0, 0.0)),
    ]


CAPSULES: tuple[Capsule, ...] = (
    Capsule("torso", "trousers", 0.093, "root", (0.0, -0.01, -0.065), "root", (0.0, -0.01, 0.065)),
    Capsule("torso", "shirt", 0.1, "chest", (-0.01, 0.15, 0.0), "root", (0.005, 0.06, 0.0)),
    Capsule("torso", "shirt", 0.075, "chest", (-0.02, 0.185, -0.11), "chest", (-0.02, 0.185, 0.11)),
    Capsule("head", "skin", 0.052, "neck", (-0.01, 0.0, 0.0), "neck", (0.01, 0.1, 0.0)),
    Capsule("head", "skin", 0.085, "neck", (0.035, 0.125, 0.0), "neck", (0.03, 0.18, 0.0)),
    Capsule("head", "hair", 0.09, "neck", (-0.002, 0.16, 0.0), "neck", (0.008, 0.2, 0.0)),
    *_limbs("right"),
    *_limbs("left"),
)  #: of everybody, in metres before a person's shape is applied


def _table(values: list[Place]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


_FROM, _TO = (
    torch.tensor([JOINTS.index(name) for name in names])
    for names in zip(*((c.joint, c.to) for c in CAPSULES), strict=True)
)
_A, _B, _REFERENCE = (
    _table(list(places)) for places in zip(*((c.a, c.b, c.reference) for c in CAPSULES), strict=True)
)
_RADIUS = torch.tensor([one.radius for one in CAPSULES], dtype=torch.float64)
_PART = torch.tensor([PARTS.index(one.part) for one in CAPSULES])
_GARMENT = torch.tensor([GARMENTS.index(one.garment) for one in CAPSULES])
_IS_HEAD = torch.tensor([one.part == "head" for one in CAPSULES])
_IS_TORSO = torch.tensor([one.part == "torso" for one in CAPSULES])


@dataclass(frozen=True)
class Figures:
    """B posed bodies of N capsules in the world, float64, metres; the root joint is at the origin."""

    joints: Tensor  #: (B, 15, 3)
    a: Tensor  #: (B, N, 3), where each capsule's axis begins
    b: Tensor  #: (B, N, 3), and ends
    radius: Tensor  #: (B, N)
    reference: Tensor  #: (B, N, 3), a direction across the axis that turns with the link

    part = _PART  #: int64 (N,), rows of PARTS
    garment = _GARMENT  #: int64 (N,), rows of GARMENTS


def pose_figures(rotations: Tensor, shapes: Tensor) -> Figures:
    """Return bodies of ``shapes`` (B, 6) in the poses ``rotations`` (B, 15, 4), unit quaternions."""
    rotations, shapes = rotations.double(), shapes.double()
    factor = dict(zip(SHAPE, shapes.unbind(-1), strict=True))
    joints, world = forward_kinematics(torch.zeros_like(rotations[:, 0, :3]), rotations, limb_offsets(shapes))
    size = factor["height"][:, None].expand(-1, len(CAPSULES))
    girth = torch.where(_IS_HEAD, factor["head"][:, None], factor["girth"][:, None])

    def place(joint: Tensor, at: Tensor) -> Tensor:
        """Points of the capsules: a torso's width follows hips and shoulders, a head grows as a whole."""
        is_low = joint == JOINTS.index("root")
        across = torch.where(is_low, factor["hips"][:, None], factor["shoulders"][:, None])
        scale = torch.where(_IS_HEAD, girth, 1.0)[..., None].repeat(1, 1, 3)
        scale[..., 2] *= torch.where(_IS_TORSO, across, 1.0)
        return joints[:, joint] + _turn(world[:, joint], at * scale * size[..., None])

    reference = _turn(world[:, _FROM], _REFERENCE.expand(len(shapes), -1, 3))
    return Figures(joints, place(_FROM, _A), place(_TO, _B), _RADIUS * size * girth, reference)


def _turn(R: Tensor, x: Tensor) -> Tensor:
    return (R @ x[..., None]).squeeze(-1)


def merge(mask: Tensor) -> Tensor:
    """Return ids of :data:`PARTS` (...) as ids of :data:`MERGED`: left and right together, hands with arms.

    These are the labels of the paper's evaluation on people (background, arms, feet, head, legs, torso). The
    neck counts as head, the pelvis as torso although it wears the trousers.

    >>> [MERGED[k] for k in merge(torch.tensor([PARTS.index("left_hand"), PARTS.index("right_shin")]))]
    ['arms', 'legs']
    """
    names = [_MERGED_OF.get(part.removeprefix("right_").removeprefix("left_"), part) for part in PARTS]
    table = torch.tensor([MERGED.index(name) for name in names], device=mask.device)
    return table[mask.long()]
