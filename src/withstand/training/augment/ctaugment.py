"""CTAugment: how strong each operation may be is learned while the model trains."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from withstand.errors import bad
from withstand.protocols import Batch
from withstand.random import Rows
from withstand.registry import component
from withstand.training.augment import photometric as light
from withstand.training.augment.cutout import cells
from withstand.training.augment.photometric import images
from withstand.training.augment.randaugment import GEOMETRIC, Change, apply
from withstand.training.augment.simclr import crop
from withstand.training.recipe import Step


class Rates(nn.Module):
    """What was learned: how well the model still knows images changed by each operation, bin by bin of its strength,
    float [operations, bins]; 1 at first."""

    values: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("values", torch.ones(len(POOL), max(BINS)))


@dataclass(frozen=True)
class Probe:
    """Labelled examples changed at any strength. x: [N, C, H, W]; operation, bin: int64 [N, depth]."""

    x: Tensor
    operation: Tensor
    bin: Tensor


@component("augmentation", "ctaugment", systems=("maxmatch",))
class CTAugment:
    """A few changes of light and shape, of strengths at which the model still knows labelled examples (CTAugment).

    Each strength is cut into bins with a rate each. In every step the labelled examples are changed by `depth` operations
    of any strength, and r <- decay * r + (1 - decay) * p for the bins that were met, p the probability of the true label.
    The unlabelled get operations by chance, in bins by chance in proportion to v = (r + 1 - decay) / max(...), of each
    operation, where v reaches the threshold, at a place in the bin by chance.

    depth: operations for an image, drawn with replacement. It needs labels and something that keeps the rates: it stands
    among the strong augmentations of `fixmatch` and `maxmatch`, followed by `cutout(0.5)`, and is refused elsewhere.

    p is taken in eval mode, from the averaged weights where the trainer averages; the official code takes 1 - |q - onehot|_1
    / 2 with the model's probabilities q, which is the same number. Operations and bins are the official ones, but: shifts
    reach 0.3 of the side, where there they are 0.3 of a pixel, which changes nothing; the sizes of `rescale` are made
    bilinear, where there the filter is learned too; turns are not rounded to degrees.

    References: Berthelot, Carlini, Cubuk, Kurakin, Sohn, Zhang, Raffel, "ReMixMatch: Semi-Supervised Learning with
    Distribution Alignment and Augmentation Anchoring", 2020, arXiv 1911.09785; with depth 2, threshold 0.8: the official
    code of Sohn et al., "FixMatch", 2020, arXiv 2001.07685.
    """

    depth: int = 2
    threshold: float = 0.8
    decay: float = 0.99

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise bad("depth", self.depth, "a whole number >= 1")
        for name in ("threshold", "decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise bad(name, getattr(self, name), "a share in [0, 1]")

    def __call__(self, batch: Batch, step: Step, classes: int) -> Batch:
        mend = "'randaugment' does without labels."
        raise bad("ctaugment", "a place without labels", "one among the strong of fixmatch or maxmatch", mend)

    def bound(self, rates: Rates) -> Callable[[Batch, Step, int], Batch]:
        """The augmentation with the rates learned so far."""

        def augmentation(batch: Batch, step: Step, classes: int) -> Batch:
            operation, within = self._drawn(step.rows)
            ends = self.chances(rates).to(within.device).cumsum(1)[operation]
            aim = step.rows.uniform((self.depth, 1), "ctaugment bin", dtype=torch.float64) * ends[..., -1:]
            bin = (aim >= ends).sum(2)
            return replace(batch, x=self._changed(batch.x, step, operation, bin, within))

        return augmentation

    def probe(self, batch: Batch, step: Step) -> Probe:
        """The examples changed by operations of any strength."""
        operation, level = self._drawn(step.rows)
        bins = _bins(level.device)[operation]
        bin = (level * bins).long()
        return Probe(self._changed(batch.x, step, operation, bin, level * bins - bin), operation, bin)

    def chances(self, rates: Rates) -> Tensor:
        """Of each bin [operations, bins], in float64; the rows sum to 1."""
        values = rates.values.double() + 1 - self.decay
        values = values * (torch.arange(values.shape[1], device=values.device) < _bins(values.device)[:, None])
        values = values / values.amax(1, keepdim=True)
        values = torch.where(values < self.threshold, 0, values)
        return values / values.sum(1, keepdim=True)

    @torch.no_grad()
    def learn(self, rates: Rates, operation: Tensor, bin: Tensor, p: Tensor) -> None:
        """Move the rates by one probe after another: r <- decay * r + (1 - decay) * p, in place.

        operation, bin: int64 [N, depth]; p: [N]. Of n probes of one bin the j-th counts (1 - decay) * decay^(n - j).
        """
        size = rates.values.shape[1]
        met = F.one_hot((operation * size + bin).flatten(), rates.values.numel()).double()
        later = (met.sum(0) - met.cumsum(0))[met.bool()]
        weight = (1 - self.decay) * self.decay**later * p.double().repeat_interleave(self.depth)
        kept = self.decay ** met.sum(0)
        rates.values.copy_((kept * rates.values.double().flatten() + weight @ met).view_as(rates.values))

    def _drawn(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Operations, int64 [N, depth], and places in [0, 1), float64 [N, depth]."""
        operation = rows.integers((self.depth,), 0, len(POOL), "ctaugment operation")
        return operation, rows.uniform((self.depth,), "ctaugment strength", dtype=torch.float64)

    def _changed(self, x: Tensor, step: Step, operation: Tensor, bin: Tensor, within: Tensor) -> Tensor:
        low, high = images("ctaugment", x, step)
        light.grey(x[:0])  # whatever is drawn, refuse at the first batch what has no luma
        x = (x - low) / (high - low)
        level = ((bin + within) / _bins(within.device)[operation]).to(x.dtype)
        middle = step.rows.uniform((self.depth, 2), "ctaugment middle").to(x.dtype)
        names = tuple(POOL)
        for slot, chosen in enumerate(operation.T.cpu().tolist()):
            how = torch.cat([level[:, slot, None], middle[:, slot]], 1)
            x = apply([names[i] for i in chosen], x, how, 2 * level[:, slot] - 1, POOL, 45)
        return x * (high - low) + low


def _bins(device: torch.device) -> Tensor:
    return torch.tensor(BINS, device=device)


def _level(change: Callable[[Tensor, Tensor], Tensor]) -> Change:
    return lambda x, how: change(x, how[:, 0])


def _enhanced(change: Callable[[Tensor, Tensor], Tensor]) -> Change:
    return lambda x, how: change(x, 0.1 + 1.9 * how[:, 0])


def _blended(change: Callable[[Tensor], Tensor]) -> Change:
    return lambda x, how: light.blend(change(x), x, how[:, 0])


def _rescale(x: Tensor, level: Tensor) -> Tensor:
    """The middle, without up to a quarter on each side, stretched to the size of the image."""
    h, w = x.shape[2:]
    edges = [(torch.round(level / 4 * side), torch.round(side - level / 4 * side)) for side in (h, w)]
    (top, bottom), (left, right) = edges
    return crop(x, torch.stack([top, left, bottom - top, right - left], 1))


def _cutout(x: Tensor, how: Tensor) -> Tensor:
    """A grey square, up to half the side of the image."""
    side = 1 + (how[:, :1] * 0.499 * min(x.shape[2:])).floor()
    return x.masked_fill(cells(how[:, 1:], x.shape[2:], [side // 2 * 2] * 2), 0.5)


POOL: dict[str, Change | None] = {
    "autocontrast": _blended(light.autocontrast),
    "blur": _blended(light.blurred),
    "brightness": _enhanced(light.brightness),
    "colour": _enhanced(light.colour),
    "contrast": _enhanced(light.contrast),
    "cutout": _cutout,
    "equalise": _blended(light.equalise),
    "identity": None,
    "invert": _blended(lambda x: 1 - x),
    "posterise": _level(lambda x, level: light.posterise(x, (1 + (level * 7.999).floor()).long())),
    "rescale": _level(_rescale),
    "sharpness": _enhanced(light.sharpness),
    "smooth": _blended(light.smoothed),
    "solarise": _level(lambda x, level: light.solarise(x, (level * 255.999).floor() / 255)),
    **dict.fromkeys(GEOMETRIC),
}
"""The operations; a change gets its strength in [0, 1] and a random place in [0, 1)^2, float [N, 3]."""
BINS = [{"identity": 1, "posterise": 8}.get(name, 17) for name in POOL]
