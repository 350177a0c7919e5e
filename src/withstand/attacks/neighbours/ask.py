"""The ASK attack on classifiers that vote by their nearest references."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from withstand.attacks.engine import Attack, Point, Problem
from withstand.attacks.neighbours.inside import Layers
from withstand.attacks.neighbours.soft_knn import Kind, check_settings, soft_vote
from withstand.attacks.pgd import PGD
from withstand.errors import bad
from withstand.objectives import Misclassified, State
from withstand.protocols import Seen
from withstand.random import Rows
from withstand.registry import component
from withstand.threats import Linf, ThreatField

_BLOCK = 32  # examples whose references are held at once


@component("attack", "ask", systems=("ask",))
class ASK(Attack):
    """Projected gradient steps on the adversarial soft k-nearest-neighbour loss; the real vote judges.

    z <- P(z + step * eps * steepest(grad sum_l kappa_l ASK_l(h_l(z), y))), see `ask_loss`, with h_l the features that the
    attacked `HiddenKNN` compares in layer l, by its metric.

    neighbours: K; the references are the K nearest to the CLEAN example of every class, in every layer. They are found once
    and never again. Where an attacked example is a reference itself, it is left out of its own. tau: the temperature, one
    or one for each layer. The official code's default is 0.1, its published run has 0.01, and 0.01 is much the stronger
    with cosines. None takes that, and for distances ("l2"), which have no scale of their own, 0.03 of the spread of the
    references (the root mean square of their distances from their mean). form: of the loss, "class", or "instance" as in
    ASK-Def, but without the 1e-6 that is added to p_y there: where p_y is less, it would end the gradient. kappa: weights
    of the layers; None weighs all alike. random_start: uniform in the set.

    Gradients come from the hidden layers, success from the vote.

    Reference: Wang, Chen, Yao, Liu, Rajapakse, Hero, "ASK: Adversarial Soft k-Nearest Neighbor Attack and Defense", 2022,
    arXiv 2106.14300.
    """

    threat: ThreatField = Linf(8 / 255)
    steps: int = 10
    step: float = 0.25
    neighbours: int = 5
    tau: float | tuple[float, ...] | None = None
    form: Kind = "class"
    kappa: tuple[float, ...] | None = None
    random_start: bool = True
    restarts: int = 1

    access = "features"

    def __post_init__(self) -> None:
        self._steps()
        if self.neighbours < 1:
            raise bad("neighbours", self.neighbours, "a whole number >= 1")
        for tau in self.tau if isinstance(self.tau, tuple) else (1.0 if self.tau is None else self.tau,):
            check_settings(tau, "cosine", self.form)
        if self.kappa is not None and (not any(self.kappa) or not all(0 <= k < float("inf") for k in self.kappa)):
            raise bad("kappa", self.kappa, "a weight >= 0 for each layer, not all of them 0")

    def problem(self, **settings: Any) -> Problem:
        layers = Layers(settings["model"])
        number = len(layers.names)
        tau = layers.taus() if self.tau is None else self.tau
        tau = layers.each("tau", tau if isinstance(tau, tuple) else (tau,) * number)
        kappa = layers.each("kappa", self.kappa or (1.0,) * number)
        return super().problem(**{"objective": SoftVotes(layers, self.neighbours, tau, kappa, self.form), **settings})

    def search(self, p: Problem) -> Point:
        return self._steps().search(p)

    def _steps(self) -> PGD:
        shared = {name: getattr(self, name) for name in ("steps", "step", "random_start", "restarts", "keep", "active")}
        return PGD(self.threat, **shared)


class SoftVotes:
    """The objective: sum_l kappa_l ASK_l, against references that `begin` finds."""

    coupled = False
    criterion = Misclassified()

    def __init__(
        self, layers: Layers, neighbours: int, tau: Sequence[float], kappa: Sequence[float], kind: str
    ) -> None:
        self.layers, self.neighbours, self.tau, self.kappa, self.kind = layers, neighbours, tau, kappa, kind
        self.reads, self.metric = layers.reads, layers.knn.metric  # features of cosines come as unit vectors
        self.by_mean = kind == "class" and self.metric == "cosine"  # the mean of cosines is the product with the mean

    def begin(self, clean: Seen, y: Tensor, rows: Rows) -> dict[str, Tensor]:
        own, state = self.layers.own(clean.input), {}
        for i, (name, read) in enumerate(zip(self.layers.names, self.reads)):
            found = self.layers.knn.nearest(name, clean.features[read], self.neighbours, own)[1]
            if self.by_mean:
                state[read] = torch.cat([self.layers.vectors(i)[part].mean(2) for part in found.split(_BLOCK)])
            else:
                state[read] = self.layers.vectors(i)[found.flatten(1)]
        return state

    def __call__(self, seen: Seen, y: Tensor, state: State) -> Tensor:
        classes, metric = self.layers.knn.classes, "dot" if self.metric == "cosine" else self.metric
        each = 1 if self.by_mean else self.neighbours
        labels = torch.arange(classes, device=y.device).repeat_interleave(each)
        values = [
            kappa * soft_vote(seen.features[name], y, state[name], labels, classes, tau, metric, self.kind, floor=0)
            for name, tau, kappa in zip(self.reads, self.tau, self.kappa)
        ]
        return torch.stack(values).sum(0)
