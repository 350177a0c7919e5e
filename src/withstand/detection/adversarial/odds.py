"""How the logits of the other classes move against that of the predicted one when noise is added to the input."""

from collections.abc import Mapping

import torch
from torch import Tensor

from withstand.detection.adversarial.classes import class_labels
from withstand.errors import bad
from withstand.protocols import Target
from withstand.random import Rows
from withstand.registry import component


@component("detector", "odds", systems=("classic_attacks",))
class Odds:
    """Log-odds under noise: max over other classes z of the mean change of logit z against the predicted y, z-scored.

    g_{y,z}(x, n) = (f_z - f_y)(x + n) - (f_z - f_y)(x), n ~ N(0, noise^2); score = max_{z != y} (mean_n g_{y,z} - m_{y,z}) /
    d_{y,z}, with m and d the mean and deviation of g over trusted examples of class y and over their noise. Adversarial
    points lie where noise carries them back, clean ones do not.

    noise: standard deviation, in units of the input (the paper combines several kinds and strengths of noise; here it is
    one). samples: draws for each example, one pass each. The noise comes from the example's identity, so that a score does
    not depend on the batch; it is not clipped to the input's range.

    Reference: Roth, Kilcher, Hofmann, "The Odds are Odd: A Statistical Test for Detecting Adversarial Examples", 2019,
    arXiv 1902.04818.
    """

    noise: float = 0.05
    samples: int = 16

    taps = ("logits",)
    needs_input = True

    def __post_init__(self) -> None:
        if not 0 < self.noise < float("inf"):
            raise bad("noise", self.noise, "a number > 0")
        if self.samples < 1:
            raise bad("samples", self.samples, "a whole number >= 1")

    def look(self, target: Target, x: Tensor, rows: Rows) -> dict[str, Tensor]:
        """{"noisy": [N, T, K]}: the logits of each noisy pass."""
        shape = tuple(x.shape[1:])
        passes = [target(x + self.noise * rows.normal(shape, "odds", t, x.dtype)) for t in range(self.samples)]
        return {"noisy": torch.stack(passes, 1)}

    def fit(self, features: Mapping[str, Tensor], y: Tensor | None = None) -> dict[str, Tensor]:
        """Mean and deviation [K, K] of g, row = predicted class. With labels only examples that the model gets right
        count. Raises BadInput where it says a class for fewer than 2 of them."""
        logits = features["logits"]
        said = logits.argmax(1)
        known = said == y.to(said.device) if y is not None else torch.ones_like(said, dtype=torch.bool)
        said = class_labels(said[known], logits[known], least=2)
        moved = _moved(logits[known], features["noisy"][known], said)
        means, deviations = [], []
        for label in range(logits.shape[1]):
            own = moved[said == label].flatten(0, 1)
            means.append(own.mean(0))
            deviations.append(own.std(0, correction=0).clamp_min(1e-12))
        return {"mean": torch.stack(means), "deviation": torch.stack(deviations)}

    def score(self, features: Mapping[str, Tensor], fitted: Mapping[str, Tensor]) -> Tensor:
        said = features["logits"].argmax(1)
        moved = _moved(features["logits"], features["noisy"], said).mean(1)
        z = (moved - fitted["mean"][said]) / fitted["deviation"][said]
        return z.scatter(1, said[:, None], -torch.inf).amax(1)


def _moved(logits: Tensor, noisy: Tensor, said: Tensor) -> Tensor:
    """g [N, T, K] of logits [N, K] and noisy logits [N, T, K]."""
    change = noisy.double() - logits.double()[:, None]
    return change - change.gather(2, said[:, None, None].expand(-1, change.shape[1], 1))
