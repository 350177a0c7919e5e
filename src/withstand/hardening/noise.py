"""Training with Gaussian noise, which randomised smoothing starts from."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from withstand.errors import bad
from withstand.protocols import Batch
from withstand.registry import component
from withstand.training.recipe import Recipe, Step


@component("recipe", "gaussian_noise", systems=("classic_attacks",))
class GaussianNoise(Recipe):
    """Training on images with Gaussian noise, the base classifier of randomised smoothing.

    min E[CE(f(x + e), y)], e ~ N(0, sigma^2), drawn anew in every epoch and not clipped to the range of images, as the
    certificate supposes. sigma: standard deviation in units of [0, 1]. Certify what comes out with
    `withstand.hardening.smoothing` or the check `certified`.

    Reference: Cohen, Rosenfeld, Kolter, "Certified Adversarial Robustness via Randomized Smoothing", 2019, arXiv
    1902.02918.
    """

    sigma: float = 0.25

    def __post_init__(self) -> None:
        if not self.sigma >= 0:
            raise bad("sigma", self.sigma, "a standard deviation >= 0")

    def craft(self, system: Any, batch: Batch, step: Step) -> Batch:
        noise = step.rows.normal(batch.x.shape[1:], "gaussian noise", dtype=batch.x.dtype)
        return replace(batch, x=batch.x + self.sigma * noise)

    def loss(self, system: Any, batch: Batch, step: Step) -> Tensor:
        return step.cross_entropy(system(batch.x), batch.y)  # type: ignore[arg-type]
