"""A small run that has everything a real one has: two optimisers, dropout, BatchNorm, EMA, schedules."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cvlib.train import EMA, RunResult, Runtime, fit, seed_everything, warmup_linear


class Numbers:
    """Batches of which each is a pure function of seed and position, as the data modules make them."""

    def __init__(self, size: int = 8, seed: int = 0, rank: int = 0, world: int = 1) -> None:
        self.size, self.seed, self.rank, self.world, self.position = size, seed, rank, world, 0

    def __iter__(self) -> Numbers:
        return self

    def __next__(self) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(1000 * self.seed + self.position)
        self.position += 1
        image = torch.rand(self.size, 3, 8, 8, generator=generator) * 2 - 1
        return {"image": image[self.rank :: self.world]}

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position, "seed": self.seed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position, self.seed = state["position"], state["seed"]


class Experiment:
    """A tiny adversarial autoencoder, built from its seed; ``run`` calls fit on it."""

    noise_level = 0.1

    def __init__(
        self, precision: str = "fp32", seed: int = 0, dropout: float = 0.2, norm: bool = True
    ) -> None:
        seed_everything(seed)
        self.config = {"seed": seed, "precision": precision, "dropout": dropout}
        self.runtime = Runtime("cpu", precision)
        between = [nn.BatchNorm2d(8) if norm else nn.Identity(), nn.SiLU(), nn.Dropout(dropout)]
        self.model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *between, nn.Conv2d(8, 3, 3, padding=1))
        self.critic = nn.Sequential(nn.Conv2d(3, 8, 4, 2), nn.LeakyReLU(0.2), nn.Conv2d(8, 1, 3))
        self.optimizers = {
            "model": torch.optim.Adam(self.model.parameters(), 1e-2, betas=(0.5, 0.9)),
            "critic": torch.optim.AdamW(self.critic.parameters(), 1e-2),
        }
        self.ema = EMA(self.model, 0.9)
        self.noise = torch.Generator().manual_seed(seed)
        self.batches: Any = Numbers(seed=seed)
        self.seen: list[int] = []
        self.before_step: Callable[[int], None] = lambda t: None

    @property
    def modules(self) -> dict[str, nn.Module]:
        return {"model": self.model, "critic": self.critic}

    def step(self, batch: dict[str, torch.Tensor], t: int) -> dict[str, torch.Tensor | float]:
        self.before_step(t)
        self.seen.append(t)
        real = batch["image"]
        noise = torch.randn(real.shape, generator=self.noise) + torch.randn_like(real)
        noisy = real + self.noise_level * noise
        with self.runtime.autocast():
            fake = self.model(noisy)
            score = self.critic(fake)
        rec = (fake.float() - real).abs().mean()
        loss = rec - 0.1 * score.float().mean()
        self.optimizers["model"].zero_grad()
        self.runtime.backward(loss)
        self.runtime.clip(self.optimizers["model"], 1.0)
        self.optimizers["model"].step()
        with self.runtime.autocast():
            gap = self.critic(fake.detach()).float().mean() - self.critic(real).float().mean()
        self.optimizers["critic"].zero_grad()
        self.runtime.backward(gap)
        self.optimizers["critic"].step()
        return {"loss": loss, "rec": rec, "gap": gap.item()}

    def run(self, folder: Path, steps: int = 12, **options: Any) -> RunResult:
        options = {"log_every": 3, "save_every": 4, "quiet": True, "ema": self.ema} | options
        options.setdefault("schedules", {"model": warmup_linear(3, steps)})
        return fit(
            folder,
            config=self.config,
            modules=self.modules,
            optimizers=self.optimizers,
            batches=self.batches,
            step=self.step,
            steps=steps,
            runtime=self.runtime,
            extras={"noise": self.noise},
            **options,
        )

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything that training changes, to be compared bit for bit."""
        found = {f"{n}.{k}": v for n, m in self.modules.items() for k, v in m.state_dict().items()}
        found |= {f"ema.{k}": v for k, v in self.ema.mean.items()}
        for name, optimizer in self.optimizers.items():
            for index, moments in optimizer.state_dict()["state"].items():
                found |= {f"{name}.{index}.{k}": torch.as_tensor(v) for k, v in moments.items()}
        found["noise"] = self.noise.get_state()
        return copy.deepcopy(found)

    def assert_same(self, other: Experiment) -> None:
        """Equal names, shapes and bits."""
        one, two = self.tensors(), other.tensors()
        assert one.keys() == two.keys()
        different = [name for name in one if not torch.equal(one[name], two[name])]
        assert not different, different

    @staticmethod
    def rows(result: RunResult) -> list[dict[str, Any]]:
        """The history without the clock."""
        return [{k: v for k, v in row.items() if k not in ("rate", "seconds")} for row in result.history]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors of a few hundred numbers: threads that wait for each other only cost time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def experiment() -> type[Experiment]:
    return Experiment
