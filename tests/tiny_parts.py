"""The model of the pages "parts" in small, and random images and masks for it."""

from __future__ import annotations

from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TINY = {
    "image_size": 16,
    "n_parts": 4,
    "dim_pi": 8,
    "dim_alpha": 6,
    "shape_widths": (8, 8),
    "decoder_widths": (8, 8),
    "generator_widths": (8, 8),
    "appearance_widths": (8,),
    "critic_width": 16,
    "critic_blocks": 1,
}


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rand(*shape: int, seed: int = 0) -> Tensor:
    """Uniform in [-1, 1]."""
    return torch.rand(*shape, generator=gen(seed)) * 2 - 1


def one_hot_masks(b: int = 2, p: int = 4, side: int = 16, seed: int = 0) -> Tensor:
    return F.one_hot(torch.randint(0, p, (b, side, side), generator=gen(seed)), p).movedim(-1, 1).float()


def model_of(story: ModuleType, **objective) -> nn.Module:
    """An untrained model of the page "parts" whose constraint bites."""
    torch.manual_seed(0)
    model = story.PartsModel(story.PartsConfig(**TINY), story.Objective(**objective), story.pyramid_distance)
    model.duals.lam.fill_(3.0)
    return model
