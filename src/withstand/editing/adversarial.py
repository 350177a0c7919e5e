"""Backgrounds that lead a classifier astray while the object stays as it is."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor

from withstand.attacks.pgd import PGD
from withstand.editing.contract import Painter
from withstand.editing.spectrum import Spectral
from withstand.errors import WithstandError, bad
from withstand.threats import Linf, Masked


@dataclass(frozen=True)
class Adversarial:
    """Paints as `base` does, then searches around that for the background by which the guide errs most.

    guide: a classifier, module or target: images [N, 3, H, W] in [0, 1] -> logits. eps: the largest change of a
    background value that the search makes, in units of the [0, 1] range; steps: of projected gradient ascent on the
    guide's cross-entropy. The complexity asked for is the base's affair, and the search moves it a little.

    The paper's `20-adv` edit, without its diffusion model: there the gradient of the guide is added to that of the
    complexity at each denoising step, and nothing bounds the change.
    """

    guide: Any
    eps: float = 16 / 255
    steps: int = 20
    base: Painter = field(default_factory=Spectral)

    def __post_init__(self) -> None:
        if not 0 < self.eps <= 1:
            raise bad("eps", self.eps, "a share of the range in (0, 1], e.g. 16/255")
        if self.steps < 1:
            raise bad("steps", self.steps, "a whole number >= 1")
        if self.guide is None:
            raise bad("guide", None, "a classifier", "An adversarial background needs one to be led astray.")

    def paint(
        self,
        scene: Tensor,
        image: Tensor,
        mask: Tensor,
        complexity: float,
        generator: Generator,
        label: int | None = None,
    ) -> Tensor:
        """See `Painter`; nothing is drawn. Raises: BadInput without a label, and where the guide does not take the image."""
        if label is None:
            raise bad("label", None, "the true class", "An adversarial background leads away from it.")
        painted = self.base.paint(scene, image, mask, complexity, generator, label)
        start = torch.where(mask, image, painted)
        attack = PGD(
            Masked(Linf(self.eps), ~mask), steps=self.steps, random_start=False, keep="last", active=False
        )  # the first point that fools the guide would be too weak for other models
        try:
            return attack(self.guide, start[None], torch.tensor([label], device=start.device))[0]
        except WithstandError:
            raise
        except (RuntimeError, ValueError, AssertionError) as error:  # whatever layers raise for other sizes
            height, width = mask.shape
            got = f"a classifier that fails on an image of {height} x {width} pixels: {error}"
            raise bad("guide", got, "one that takes it", "Bring the images to the size that it expects.") from error
