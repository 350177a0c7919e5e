"""Attacks that lead the features of an example towards reference examples of one wrong class."""

from typing import Any, Literal

import torch
from torch import Tensor

from withstand.attacks.carlini_wagner import CarliniWagner
from withstand.attacks.engine import Attack, Point, Problem
from withstand.attacks.engine.needs import needs_positive, needs_threat, needs_whole
from withstand.attacks.neighbours.inside import Layers
from withstand.attacks.pgd import PGD, needs_fixed_set
from withstand.objectives import Misclassified, State
from withstand.protocols import Seen
from withstand.random import Rows
from withstand.registry import component
from withstand.threats import L2, Linf, ThreatField

Loss = Literal["mean", "sigmoid"]

_INSIDE = 0.99  # where Adam begins at most, as a share of the way to the border, beyond which tanh is flat
_BLOCK = 32


@component("attack", "mean_guide", systems=("ask",))
class MeanGuide(Attack):
    """Towards the guides, the m nearest references of one wrong class, inside a ball; the attack of Sitawarin and Wagner.

    "mean"     minimises sum_l sum_j |h_l(z) - h_l(g_j)|^2, g_1..g_m the guides;
    "sigmoid"  minimises sum_l sum_j w_j sigmoid(sharpness (eta_l - |h_l(z) - h_l(g_j)|)), over the guides (w = -1) and the m
               nearest references of the own class (w = 1), eta_l the distance of the clean h_l to its k-th reference.

    The guides belong to the class other than the label whose m nearest references lie closest on average to the clean
    example, in the last of the attacked `HiddenKNN`'s layers. guides: m, at most the references of the smallest class.

    rule: "adam" is the published search for Linf: `steps` of Adam at the rate lr in w, z = the middle of the interval
    around x plus its half-width times tanh w, begun just inside. "sign" takes steepest steps of `step` * eps instead, as
    other attacks here do, so that the losses can be compared at equal cost, from a uniform start.

    Reference: Sitawarin, Wagner, "On the Robustness of Deep K-Nearest Neighbors", 2019, arXiv 1903.08333.
    """

    threat: ThreatField = Linf(8 / 255)
    guides: int = 100
    loss: Loss = "mean"
    sharpness: float = 4.0
    rule: Literal["adam", "sign"] = "adam"
    steps: int = 500
    step: float = 0.25
    lr: float = 0.01

    access = "features"

    def __post_init__(self) -> None:
        needs_fixed_set(self)
        if self.rule == "adam":
            needs_threat(self, Linf)
        needs_whole(self, "guides", "steps")
        needs_positive(self, "sharpness", "lr", "step")

    def problem(self, **settings: Any) -> Problem:
        return super().problem(**{"objective": Towards(settings["model"], self), **settings})

    def search(self, p: Problem) -> Point:
        if self.rule == "sign":
            return PGD(self.threat, self.steps, self.step, keep=self.keep, active=self.active).search(p)
        low, high = p.threat.interval(p.x_alive, p.box)  # type: ignore[attr-defined]
        middle, half = (low + high) / 2, (high - low) / 2
        w = torch.atanh(((p.x_alive - middle) / half.clamp_min(1e-12)).clamp(-_INSIDE, _INSIDE))
        mean, square, z = torch.zeros_like(w), torch.zeros_like(w), p.x_alive
        if self.keep == "best" or self.active:
            p.clean  # noqa: B018 (the clean point counts as a candidate)
        for step in range(1, self.steps + 1):
            t = torch.tanh(w)
            z = middle + half * t
            gradient: Any = p.gradient(z)
            push = gradient * half * (1 - t * t)
            z, w, mean, square, push, middle, half = p.drop_done(z, w, mean, square, push, middle, half)
            if p.finished:
                return z
            mean = 0.9 * mean + 0.1 * push
            square = 0.999 * square + 0.001 * push * push
            w = w + self.lr * (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
        z = middle + half * torch.tanh(w)
        if self.keep == "best" or self.active:
            p.look(z)
        return z


@component("attack", "mean_guide_l2", systems=("ask",))
class MeanGuideL2(Attack):
    """The nearest point, in L2, that the guides' pull takes across: the search of Carlini and Wagner on `mean_guide`'s loss.

    Minimises |z - x|^2 + c * loss with Adam, z = (tanh w + 1) / 2; c rises tenfold until the real vote is wrong, then is
    bisected. guides, loss, sharpness: see `mean_guide`. steps, searches, c, lr: see `carlini_wagner`.

    Reference: Sitawarin, Wagner, "On the Robustness of Deep K-Nearest Neighbors", 2019, arXiv 1903.08333.
    """

    threat: ThreatField = L2()
    guides: int = 100
    loss: Loss = "mean"
    sharpness: float = 4.0
    steps: int = 500
    searches: int = 5
    c: float = 1.0
    lr: float = 0.01

    access = "features"
    nearest = True

    def __post_init__(self) -> None:
        needs_threat(self, L2)
        needs_whole(self, "guides", "steps", "searches")
        needs_positive(self, "sharpness", "c", "lr")

    def problem(self, **settings: Any) -> Problem:
        return super().problem(**{"objective": Towards(settings["model"], self), **settings})

    def search(self, p: Problem) -> None:
        return CarliniWagner(self.threat, self.steps, self.searches, self.c, self.lr).search(p)


class Towards:
    """The objective: minus the loss (of "mean", less what is the same for all z)."""

    coupled = False
    criterion = Misclassified()

    def __init__(self, model: Any, attack: MeanGuide | MeanGuideL2) -> None:
        self.layers, self.attack = Layers(model), attack
        self.reads = self.layers.reads

    def begin(self, clean: Seen, y: Tensor, rows: Rows) -> dict[str, Tensor]:
        knn, m = self.layers.knn, self.attack.guides
        own = self.layers.own(clean.input)
        near, found = knn.nearest(knn.layers[-1], clean.features[self.reads[-1]], m, own)
        distance = near.mean(2).scatter(1, y[:, None], torch.inf)
        every = torch.arange(len(y), device=y.device)
        guides, friends = found[every, distance.argmin(1)], found[every, y]
        if self.attack.loss == "sigmoid":
            state = {"guides": guides, "friends": friends}
            for i, name in enumerate(self.reads):
                far = knn.indexes[i].search(clean.features[name], knn.k, own)[1][:, -1]  # type: ignore[operator]
                kth = self.layers.vectors(i)[far]
                state[f"eta {name}"] = (clean.features[name] - kth).norm(dim=1)
            return state
        centre = [
            torch.cat([self.layers.vectors(i)[part].mean(1) for part in guides.split(_BLOCK)])
            for i in range(len(self.reads))
        ]
        return dict(zip(self.reads, centre))

    def __call__(self, seen: Seen, y: Tensor, state: State) -> Tensor:
        value = torch.zeros(len(y), device=y.device, dtype=seen.input.dtype)
        for i, name in enumerate(self.reads):
            h = seen.features[name]
            if self.attack.loss == "mean":
                value = value - self.attack.guides * (h - state[name]).square().sum(1)
                continue
            distance = torch.cdist(h, self.layers.vectors(i).to(h.dtype))
            close = [
                torch.sigmoid(self.attack.sharpness * (state[f"eta {name}"][:, None] - distance.gather(1, state[who])))
                for who in ("guides", "friends")
            ]
            value = value + close[0].sum(1) - close[1].sum(1)
        return value
