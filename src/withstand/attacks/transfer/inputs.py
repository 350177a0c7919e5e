"""Views that show the surrogate changed inputs: resized and padded, scaled, mixed, or with another spectrum."""

import math
from typing import Any

import torch
from torch import Tensor

from withstand.attacks.engine.outputs import see
from withstand.attacks.transfer.parts import SMALL, Look, images, mean
from withstand.errors import bad
from withstand.protocols import Oracle
from withstand.random import Rows
from withstand.registry import component

Maps = tuple[Tensor, Tensor, Tensor]
"""Rows that are changed, int64 [M], and their matrices [M, H', H] and [M, W', W]."""


@component("view", "diversity", systems=("transfer_baselines",))
class Diversity:
    """Input diversity (DI): with a probability, show the image at another size, at a random place in a frame of zeros.

    probability: of the change, drawn for each example and look. rate: the side is drawn between the image's own and rate
    times it. Above 1 the frame is the largest side, and image and frame are resized back together; below 1 the frame is
    the image's own. None takes 1.1, and 0.8 for images below 64 pixels: there 1.1 leaves two or three sides, and growing
    and resizing back blurs (0.8 was chosen on training images of CIFAR-10). All steps are linear in the image (bilinear
    weights), so that they are two matrices per example.

    larger: the network takes the larger frame as it is, as in the paper; for rates above 1 (None: 1.1) and networks that
    accept any size. All examples are then changed in the same looks, since a pass has one size; side and place are drawn
    for each. Views named after this one see the larger image.

    Reference: Xie et al., "Improving Transferability of Adversarial Examples with Input Diversity", 2019, arXiv 1803.06978
    (there the network takes the larger image; resizing back is common in later code and fits any network).
    """

    probability: float = 0.5
    rate: float | None = None
    larger: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise bad("probability", self.probability, "a share in [0, 1]")
        if self.rate is not None and not (0.25 <= self.rate < 1 or 1 < self.rate <= 4):
            raise bad("rate", self.rate, "a factor in [0.25, 1) or (1, 4]")
        if self.larger and self.rate is not None and self.rate < 1:
            raise bad("larger", f"True with a rate of {self.rate}", "a rate above 1", "Below 1 the image shrinks.")

    def wrap(self, oracle: Oracle, search: Any) -> Oracle:
        """The view of a search, whose model is asked once whether it takes the larger image: a pass of one image of the
        block. Raises: BadInput where it does not, or where the frame is no larger than the image."""
        if self.larger and self.probability > 0:
            sides = images("diversity", search.x)
            shown = tuple(int(side * self._rate(search.x)) for side in sides)
            if shown[0] <= sides[0] or shown[1] <= sides[1]:
                got = f"{self._rate(search.x)}, which leaves images of {sides[0]}x{sides[1]} as they are"
                raise bad("rate", got, f"at least {1 + 1 / min(sides):.3g}")
            takes_images_of(search.model, search.x[:1].new_zeros(1, search.x.shape[1], *shown), search.precision)
        ahead = 1 if search.active else max(1, (1 << 18) // search.x[:, 0].numel())
        return self(oracle, ahead)

    def __call__(self, oracle: Oracle, ahead: int = 1) -> Oracle:
        """ahead: for how many looks at the same rows matrices are made at once, since small ones cost little but calls."""
        made: dict[int, Maps] = {}
        made_for = None

        def diverse(x: Tensor, rows: Rows, step: int) -> Look:
            nonlocal made, made_for
            if step not in made or made_for is not rows:
                made = dict(zip(range(step, step + ahead), self._maps(x, rows, step, ahead)))
                made_for = rows
            changed, down, across = made.pop(step)
            gradient, value = oracle(_mapped(x, changed, down, across.mT), rows, step)
            return _mapped(gradient, changed, down.mT, across), value

        return diverse

    def change(self, x: Tensor, rows: Rows, step: int) -> Tensor:
        """Images [N, C, H, W] as this step shows them; where they grow, all at the size of the frame."""
        ((changed, down, across),) = self._maps(x, rows, step)
        return _mapped(x, changed, down, across.mT)

    def _rate(self, x: Tensor) -> float:
        return self.rate or (1.1 if self.larger or min(x.shape[2:]) >= SMALL else 0.8)

    def _maps(self, x: Tensor, rows: Rows, step: int, ahead: int = 1) -> list[Maps]:
        """For each look from step on: the M rows that are changed, and their matrices."""
        sides, rate, n = images("diversity", x), self._rate(x), len(x)
        many, steps = (rows, step) if ahead == 1 else _looks(rows, step, ahead)
        draws = many.uniform((4,), "diversity", steps, dtype=torch.float64)
        if self.larger:  # one coin for all, which no example and no block decides
            one, steps = _looks(Rows.count(rows.seed, 1, x.device), step, ahead)
            coins = one.uniform((), "diversity for all", steps).repeat_interleave(n)
        else:
            coins = draws[:, 0]
        chosen = coins < self.probability
        changed = chosen.nonzero().flatten()
        draws = draws[changed]
        if sides[0] == sides[1]:  # both lines in one go
            both = self._lines(sides[0], rate, draws[:, 1].repeat(2), draws[:, 2:].T.flatten(), x.dtype)
            down, across = both.chunk(2)
        else:
            down, across = (self._lines(s, rate, draws[:, 1], draws[:, i], x.dtype) for i, s in zip((2, 3), sides))
        if ahead == 1:
            return [(changed, down, across)]
        count = chosen.reshape(ahead, n).sum(1).tolist()
        return list(zip((changed % n).split(count), down.split(count), across.split(count)))

    def _lines(self, side: int, rate: float, size: Tensor, shift: Tensor, dtype: torch.dtype) -> Tensor:
        least, canvas = sorted((side, int(side * rate)))
        inner = least + (size * (canvas - least)).long()
        line = _bilinear(side, inner, canvas, (shift * (canvas - inner)).long(), dtype)
        if canvas > side and not self.larger:
            line = _bilinear(canvas, inner.new_tensor([side]), side, inner.new_zeros(1), dtype) @ line
        return line


def _looks(rows: Rows, step: int, ahead: int) -> tuple[Rows, Tensor]:
    """The rows once for each of several looks, and the looks that they are for."""
    looks = torch.arange(step, step + ahead, device=rows.ids.device)
    return Rows(rows.seed, rows.ids.repeat(ahead)), looks.repeat_interleave(len(rows))


def takes_images_of(model: Any, probe: Tensor, precision: torch.dtype | None) -> None:
    """Refuse a model that has no logits for an image of another size than its own. probe: [1, C, H, W]."""
    size = "x".join(map(str, probe.shape[2:]))
    try:
        with torch.no_grad():
            output = see(model, probe, precision=precision).logits
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a model raises on a size it does not take
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        output, got = None, f"a model that fails on images of {size} ({why})"
    else:
        got = f"a model that returns {type(output).__name__} for an image of {size}"
    if not isinstance(output, Tensor) or output.dim() != 2 or len(output) != 1:
        mend = "diversity(rate=...) without larger shows the network images of its own size."
        raise bad("larger", got, "a model that takes images of any size", mend)


def _mapped(x: Tensor, changed: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """x [N, C, H, W] with left @ image @ right in place of each changed row, left [M, H', H], right [M, W, W']."""
    if len(changed) == 0:
        return x
    part = x if len(changed) == len(x) else x.index_select(0, changed)
    wide = torch.bmm(part.reshape(len(part), -1, part.shape[3]), right)
    made = left[:, None] @ wide.reshape(*part.shape[:3], -1)
    return made if len(changed) == len(x) else x.index_copy(0, changed, made)


def _bilinear(side: int, to: Tensor, canvas: int, offset: Tensor, dtype: torch.dtype) -> Tensor:
    """[N, canvas, side]: the weights that resize a line of `side` pixels to `to` [N] pixels, which lie on a line of `canvas`
    pixels from `offset` [N] on; the rest is zero. Pixels are areas: the corners of the lines coincide, not the centres."""
    to = to[:, None]
    i = torch.arange(canvas, device=to.device) - offset[:, None]
    inside = (i >= 0) & (i < to)
    source = i.double().add_(0.5).mul_(side / to.double()).sub_(0.5).clamp_(0, side - 1)
    low = source.long()
    weight = source.sub_(low).to(dtype)
    made = torch.zeros(len(to), canvas, side, dtype=dtype, device=to.device)
    made.scatter_(2, low[..., None], ((1 - weight) * inside)[..., None])
    return made.scatter_add_(2, (low + 1).clamp_max_(side - 1)[..., None], weight.mul_(inside)[..., None])


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
