"""Gaussian noise."""

from dataclasses import replace

from withstand.errors import bad
from withstand.protocols import Batch
from withstand.registry import component
from withstand.training.recipe import Step


@component("augmentation", "add_noise")
class Noise:
    """Gaussian noise of mean 0, cut to the range of inputs where they have one. sd: its deviation in their units."""

    sd: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.sd < float("inf"):
            raise bad("sd", self.sd, "a finite number >= 0")

    def __call__(self, batch: Batch, step: Step, classes: int) -> Batch:
        noisy = batch.x + self.sd * step.rows.normal(batch.x.shape[1:], "noise", dtype=batch.x.dtype)
        return replace(batch, x=noisy if step.box is None else noisy.clamp(*step.box))
