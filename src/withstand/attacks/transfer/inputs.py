"""Views that show the surrogate changed inputs: resized and padded, scaled, mixed, or with another spectrum."""

import math
from typing import Any

import torch
from torch import Tensor

from withstand.attacks.transfer.parts import SMALL, Look, images, mean
from withstand.errors import bad
from withstand.protocols import Oracle
from withstand.random import Rows
from withstand.registry import component


@component("view", "diversity", systems=("transfer_baselines",))
class Diversity:
    """Input diversity (DI): with a probability, show the image at another size, at a random place in a frame of zeros.

    probability: of the change, drawn for each example and look. rate: the side is drawn between the image's own and rate
    times it. Above 1 the frame is the largest side, and image and frame are resized back together; below 1 the frame is
    the image's own. None takes 1.1, and 0.8 for images below 64 pixels: there 1.1 leaves two or three sides, and growing
    and resizing back blurs (0.8 was chosen on training images of CIFAR-10). All steps are linear in the image (bilinear
    weights), so that they are two matrices per example.

    Reference: Xie et al., "Improving Transferability of Adversarial Examples with Input Diversity", 2019, arXiv 1803.06978
    (there the network takes the larger image; resizing back is common in later code and fits any network).
    """

    probability: float = 0.5
    rate: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise bad("probability", self.probability, "a share in [0, 1]")
        if self.rate is not None and not (0.25 <= self.rate < 1 or 1 < self.rate <= 4):
            raise bad("rate", self.rate, "a factor in [0.25, 1) or (1, 4]")

    def __call__(self, oracle: Oracle) -> Oracle:
        def diverse(x: Tensor, rows: Rows, step: int) -> Look:
            changed, down, across = self._maps(x, rows, step)
            gradient, value = oracle(_mapped(x, changed, down, across.mT), rows, step)
            return _mapped(gradient, changed, down.mT, across), value

        return diverse

    def change(self, x: Tensor, rows: Rows, step: int) -> Tensor:
        """Images [N, C, H, W] as this step shows them."""
        changed, down, across = self._maps(x, rows, step)
        return _mapped(x, changed, down, across.mT)

    def _maps(self, x: Tensor, rows: Rows, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """The M rows that are changed, int64 [M], and their matrices [M, 1, H, H] and [M, 1, W, W]."""
        sides = images("diversity", x)
        rate = self.rate or (1.1 if min(sides) >= SMALL else 0.8)
        draws = rows.uniform((4,), "diversity", step, dtype=torch.float64)
        changed = (draws[:, 0] < self.probability).nonzero().flatten()
        draws, maps = draws[changed], []
        for side, shift in zip(sides, (draws[:, 2], draws[:, 3])):
            least, canvas = sorted((side, int(side * rate)))
            inner = least + (draws[:, 1] * (canvas - least)).long()
            line = _bilinear(side, inner, canvas, (shift * (canvas - inner)).long()).to(x.dtype)
            if canvas > side:
                line = _bilinear(canvas, torch.tensor([side], device=x.device), side).to(x.dtype) @ line
            maps.append(line[:, None])
        return changed, maps[0], maps[1]


def _mapped(x: Tensor, changed: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """x with left @ image @ right in place of each changed row."""
    return x.index_copy(0, changed, left @ x[changed] @ right)


def _bilinear(side: int, to: Tensor, canvas: int, offset: Tensor | None = None) -> Tensor:
    """[N, canvas, side]: the weights that resize a line of `side` pixels to `to` [N] pixels, which lie on a line of `canvas`
    pixels from `offset` [N] on; the rest is zero. Pixels are areas: the corners of the lines coincide, not the centres."""
    i = torch.arange(canvas, device=to.device) - (0 if offset is None else offset[:, None])
    inside = ((i >= 0) & (i < to[:, None])).double()
    source = ((i + 0.5) * (side / to[:, None].double()) - 0.5).clamp(0, side - 1)
    low = source.long()
    high = (low + 1).clamp_max(side - 1)
    weight = source - low
    made = torch.zeros(len(to), canvas, side, dtype=torch.float64, device=to.device)
    made.scatter_add_(2, low[..., None], ((1 - weight) * inside)[..., None])
    return made.scatter_add_(2, high[..., None], (weight * inside)[..., None])


@component("view", "scale", systems=("transfer_baselines",))
class Scale:
    """Scale invariance (SI): the mean over copies x / 2^i, i = 0..copies - 1.

    Reference: Lin et al., "Nesterov Accelerated Gradient and Scale Invariance for Adversarial Attacks", 2020, arXiv
    1908.06281.
    """

    copies: int = 5

    @property
    def looks(self) -> int:
        """How often one look asks the model."""
        return self.copies

    def __post_init__(self) -> None:
        if self.copies < 1:
            raise bad("copies", self.copies, "a whole number >= 1")

    def __call__(self, oracle: Oracle) -> Oracle:
        def scaled(x: Tensor, rows: Rows, step: int) -> Look:
            def look(i: int) -> Look:
                gradient, value = oracle(x * 0.5**i, rows, step * self.copies + i)
                return gradient * 0.5**i, value

            return mean(look(i) for i in range(self.copies))

        return scaled


@component("view", "admixture", systems=("transfer_baselines",))
class Admixture:
    """The mean over copies x + portion * x', x' another clean image of the block, of another label where there is one.

    The copies keep the label of x. What is mixed in depends on the block that an example is in, which must have at least
    two. The published stack looks at each copy at five scales: views=(admixture(), scale()).

    portion: weight of x'. images: how many x' per look.

    Reference: Wang et al., "Admix: Enhancing the Transferability of Adversarial Attacks", 2021, arXiv 2102.00436.
    """

    portion: float = 0.2
    images: int = 3

    @property
    def looks(self) -> int:
        """How often one look asks the model."""
        return self.images

    def __post_init__(self) -> None:
        if self.portion < 0:
            raise bad("portion", self.portion, "a number >= 0")
        if self.images < 1:
            raise bad("images", self.images, "a whole number >= 1")

    def wrap(self, oracle: Oracle, search: Any) -> Oracle:
        """The view of a search, whose clean block is mixed in."""
        if len(search.x) < 2:
            raise bad(
                "x", "one example in the block", "at least two, since others are mixed in", "Give a larger block."
            )

        def admixed(x: Tensor, rows: Rows, step: int) -> Look:
            others = torch.arange(len(search.x), device=x.device) != search.alive[:, None]
            if search.y.dim() == 1:
                unlike = search.y_alive[:, None] != search.y
                others = torch.where(unlike.any(1, keepdim=True), unlike, others)
            count, order = others.sum(1, keepdim=True), others.cumsum(1)

            def look(i: int) -> Look:
                own = step * self.images + i
                rank = (rows.uniform((1,), "admixture", own, dtype=torch.float64) * count).long()
                picked = (order > rank).double().argmax(1)
                return oracle(x + self.portion * search.x[picked], rows, own)

            return mean(look(i) for i in range(self.images))

        return admixed


@component("view", "spectrum", systems=("transfer_baselines",))
class Spectrum:
    """Spectrum simulation (SSA): the mean over images IDCT(DCT(x + noise) * mask), with the gradient taken there.

    rho: the mask is uniform in [1 - rho, 1 + rho). sigma: standard deviation of the noise, in input units. samples: draws.

    Reference: Long et al., "Frequency Domain Model Augmentation for Adversarial Attack", 2022, arXiv 2207.05382.
    """

    rho: float = 0.5
    sigma: float = 16 / 255
    samples: int = 20

    def __post_init__(self) -> None:
        if self.rho < 0:
            raise bad("rho", self.rho, "a number >= 0")
        if self.sigma < 0:
            raise bad("sigma", self.sigma, "a number >= 0")
        if self.samples < 1:
            raise bad("samples", self.samples, "a whole number >= 1")

    def __call__(self, oracle: Oracle) -> Oracle:
        def simulated(x: Tensor, rows: Rows, step: int) -> Look:
            down, across = (_dct(side, x) for side in images("spectrum", x))
            shape = tuple(x.shape[1:])

            def look(i: int) -> Look:
                own = step * self.samples + i
                noisy = x + self.sigma * rows.normal(shape, "spectrum noise", own, x.dtype)
                mask = rows.uniform(shape, "spectrum mask", own, 1 - self.rho, 1 + self.rho, x.dtype)
                return oracle(down.T @ (down @ noisy @ across.T * mask) @ across, rows, own)

            return mean(look(i) for i in range(self.samples))

        return simulated


def _dct(side: int, like: Tensor) -> Tensor:
    """The orthonormal DCT-II as a matrix [side, side]."""
    k = torch.arange(side, dtype=torch.float64, device=like.device)
    made = torch.cos(math.pi / side * k[:, None] * (k + 0.5)) * math.sqrt(2 / side)
    made[0] /= math.sqrt(2)
    return made.to(like.dtype)
