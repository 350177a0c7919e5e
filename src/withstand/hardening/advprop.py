"""Adversarial examples as further training data, behind normalisation branches of their own."""

import copy
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from withstand.attacks import PGD
from withstand.attacks.engine import AttackField
from withstand.errors import bad
from withstand.hardening.terms import aimed, at_least_zero, copies, say_accuracy
from withstand.models.layers import add_branches, keep_branch, route
from withstand.protocols import Batch, Dataset
from withstand.random import Rows
from withstand.registry import component
from withstand.threats import Linf
from withstand.training.augment import AugmentationsField
from withstand.training.recipe import Recipe, Step, System

MAIN, ADVERSARIAL = "main", "adversarial"


@component("recipe", "advprop", systems=("advprop",))
class AdvProp(Recipe):
    """Clean and adversarial examples in one batch, each kind through batch norm of its own; the main branch ships.

    min E[w_c CE(f(x; theta, main), y) + w_a CE(f(x'; theta, adversarial), y)], x' = attack on f(.; theta, adversarial).

    Everything of a batch norm is doubled: scale, shift and running statistics. It raises clean and out-of-distribution
    accuracy; it is no defence, since the branch that has seen adversarial examples is left behind.

    attack: on the adversarial branch, in eval mode unless the attack says mode="train"; one step of 1/255 in the ball of
    1/255, a fifth of the examples from the clean point. For larger radii the paper takes eps * 255 + 1 steps of 1/255:
    pgd(linf(4/255), steps=5, step=1/4, clean_starts=0.2).
    target: "random" pulls each example towards another class, drawn evenly; "true" pushes it away from its label. What the
    paper did could not be confirmed; public re-implementations draw at random, the label itself included, and start
    a whole batch at the clean point by a draw that succeeds with probability 0.58 instead of 0.2.
    weights: (w_c, w_a); the paper has the plain sum (1, 1), twice the learning rate of this default. adversarial_share: of
    the examples, those that have an adversarial twin, rounded, one at least (Fast AdvProp has 1/5, without the clean
    copy: paired=False).
    sources: augmentations, each of which makes a further copy of the batch with a branch of its own (fine-grained
    AdvProp); their losses are summed with weight w_c. branches: "shared" sends all through the same batch norm, the
    mixed training that AdvProp is compared with. ship: the branch that is kept. As it is no defence, choose the best epoch
    by the clean accuracy (judge="none" of `harden`).

    Of Fast AdvProp the reuse of the attack's weight gradient, the shuffling over devices and the learning rates by group are
    not built.

    Reference: Xie, Tan, Gong, Wang, Yuille, Le, "Adversarial Examples Improve Image Recognition", 2020, arXiv 1911.09665.
    Fast AdvProp: Mei et al., 2022, arXiv 2204.09838.
    """

    attack: AttackField = PGD(Linf(1 / 255), steps=1, step=1.0, clean_starts=0.2)
    target: Literal["random", "true"] = "random"
    weights: tuple[float, float] = (0.5, 0.5)
    adversarial_share: float = 1.0
    paired: bool = True
    sources: AugmentationsField = ()
    branches: Literal["own", "shared"] = "own"
    ship: Literal["main", "adversarial"] = "main"

    def __post_init__(self) -> None:
        at_least_zero(**{f"weights[{i}]": w for i, w in enumerate(self.weights)})
        if not 0 < self.adversarial_share <= 1:
            raise bad("adversarial_share", self.adversarial_share, "a share in (0, 1]")
        if not self.paired and self.adversarial_share == 1:
            raise bad("paired", False, "True where every example has a twin", "Give adversarial_share, e.g. 0.2.")
        if self.branches == "shared" and self.ship != MAIN:
            raise bad("ship", self.ship, "'main' where the branches are shared")
        if self.target == "random":
            aimed(self.attack)

    def setup(self, model: nn.Module, data: Dataset, rows: Rows) -> nn.Module:
        if self.target == "random" and len(data.classes) < 2:
            raise bad("classes", len(data.classes), "two or more", "There is no other class to aim at.")
        system: Any = System(copy.deepcopy(model))
        if self.branches == "own":
            names = [MAIN, ADVERSARIAL, *(f"source_{i}" for i in range(len(self.sources)))]
            if not any(isinstance(m, _BatchNorm) for m in model.modules()):
                mend = "advprop splits it; for networks without it take pyramidat or nofrost."
                raise bad("model", "no batch norm", "a network with batch norm", mend)
            add_branches(system.model, names)
        system.classes = len(data.classes)
        return system

    def craft(self, system: Any, batch: Batch, step: Step) -> Batch:
        n = max(1, round(self.adversarial_share * len(batch)))
        if not self.paired and n == len(batch):
            got = f"{self.adversarial_share} of {n} examples, unpaired"
            raise bad("adversarial_share", got, "a share that leaves clean examples", "Or take larger batches.")
        extra = {**batch.extra, **copies(self.sources, batch, step, system.classes, "source")}
        few = batch.index(torch.arange(n, device=batch.x.device))
        rows = step.rows.take(torch.arange(n, device=batch.x.device))
        attack, y = self.attack, few.y
        if self.target == "random":
            offset = rows.integers((), 1, system.classes, "advprop target")
            own = few.y if few.y is not None and few.y.dim() == 1 else few.y.argmax(1)  # type: ignore[union-attr]
            attack, y = aimed(attack), (own + offset) % system.classes
        with self._through(system, ADVERSARIAL):
            extra_x = replace(step, rows=rows).attack(attack, system.model, few.x, y)
        # values that are not of length N travel beside the batch
        return replace(batch, extra={**extra, "adversarial": extra_x})

    def loss(self, system: Any, batch: Batch, step: Step) -> Tensor:
        y: Any = batch.y
        adversarial = batch.extra["adversarial"]
        n = len(adversarial)
        first = 0 if self.paired else n
        parts = [(batch.x[first:], y[first:], self.weights[0]), (adversarial, y[:n], self.weights[1])]
        sources = [f"source_{i}" for i in range(len(self.sources))]
        parts += [(batch.extra[name], batch.extra[f"{name}_labels"], self.weights[0]) for name in sources]
        sizes = [len(x) for x, _, _ in parts]
        ids = torch.arange(len(parts), device=batch.x.device).repeat_interleave(
            torch.tensor(sizes, device=batch.x.device)
        )
        with self._through(system, ids):
            logits = system(torch.cat([x for x, _, _ in parts])).split(sizes)
        say_accuracy(step, parts[0][1], clean=logits[0])
        say_accuracy(step, y[:n], adversarial=logits[1])
        losses = [step.cross_entropy(z, labels) for z, (_, labels, _) in zip(logits, parts)]
        step.say("loss_clean", losses[0])
        step.say("loss_adversarial", losses[1])
        return torch.stack([w * loss for loss, (_, _, w) in zip(losses, parts)]).sum()

    def finish(self, system: Any) -> nn.Module:
        return keep_branch(system.model, self.ship) if self.branches == "own" else system.model

    def _through(self, system: Any, to: Any) -> Any:
        return route(system.model, to) if self.branches == "own" else nullcontext()
