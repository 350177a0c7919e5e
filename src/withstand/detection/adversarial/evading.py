"""The objective of an attacker who knows the detector."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from withstand.detection.ood.bank import Bank
from withstand.errors import bad
from withstand.objectives import at, best_other
from withstand.protocols import Seen
from withstand.random import Rows, derive

_ABOVE = 1e3
"""Every misclassified point is worth more than any other; float32 still tells scores apart beside it."""


class Evading:
    """An objective: be misclassified, and then be as little suspicious to one detector as can be.

    m = max_{i != y} z_i - z_y, s = asinh((score - centre) / spread); value = 1000 - s where m > 0, else m / scale - w s,
    with scale the clean point's |m|. The best point of a search is thus the misclassified one with the lowest score.
    With w = 0 each step serves the one goal that is not reached (the selective attack of Bryniarski et al.); w > 0 looks
    for a wrong class on the way where the score is low. asinh tames large scores and keeps their order.

    bank, name: the detector; fitted: what the bank fitted. x: an input or more, to find the features. weight: w. centre,
    spread: of the score on trusted examples. Noise of detectors that draw some is another than the one that they score with:
    the attacker knows the detector, not its draws.

    Reference: Carlini, Wagner, "Adversarial Examples Are Not Easily Detected: Bypassing Ten Detection Methods", 2017, arXiv
    1705.07263; Bryniarski et al., "Evading Adversarial Example Detection Defenses with Orthogonal Projected Gradient
    Descent", 2021, arXiv 2106.15023.
    """

    coupled = False
    criterion = None

    def __init__(
        self,
        bank: Bank,
        name: str,
        fitted: Mapping[str, Tensor],
        x: Tensor,
        weight: float = 0.0,
        centre: float = 0.0,
        spread: float = 1.0,
    ) -> None:
        if weight < 0 or not spread > 0:
            raise bad("weight, spread", (weight, spread), "a weight >= 0 and a spread > 0")
        self.bank, self.name, self.fitted = bank, name, fitted
        self.weight, self.centre, self.spread = weight, centre, spread
        places = bank.places(x).values() if bank.target.module is not None else ()
        self._inside = tuple(f">{tap.name}" if tap.side == "input" else tap.name for tap in places)
        self.reads = ("logits", "input", *self._inside)
        self._seed = derive(bank.seed, "evading")

    def begin(self, clean: Seen, y: Tensor, rows: Rows) -> dict[str, Tensor]:
        scale = (best_other(clean.logits, y) - at(clean.logits, y)).abs().clamp_min(1e-6)
        return {"ids": rows.ids, "scale": scale}

    def __call__(self, seen: Seen, y: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        margin = (best_other(seen.logits, y) - at(seen.logits, y)).double()
        read = self._features(seen, state["ids"])
        hidden = torch.asinh((self.bank.score_of(self.name, read, self.fitted) - self.centre) / self.spread)
        return torch.where(margin > 0, _ABOVE - hidden, margin / state["scale"].double() - self.weight * hidden)

    def _features(self, seen: Seen, ids: Tensor) -> dict[str, Any]:
        features = {"logits": seen.logits}
        if self._inside:
            features = self.bank.name(seen.logits, [seen.features[name] for name in self._inside])
        return self.bank.read_by(self.name, features, seen.input, ids, self._seed)
