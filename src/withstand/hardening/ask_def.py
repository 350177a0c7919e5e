"""The adversarial soft k-nearest-neighbour defence."""

import copy
from dataclasses import fields, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from withstand.attacks import PGD
from withstand.attacks.engine import AttackField
from withstand.attacks.neighbours.soft_knn import Metric, check_settings, soft_vote
from withstand.errors import bad
from withstand.hardening.terms import at_least_zero, on_term, say_accuracy
from withstand.models.state import frozen
from withstand.models.taps import Tap, penultimate, see
from withstand.objectives import CrossEntropy, State
from withstand.protocols import Batch, Dataset, Seen
from withstand.random import Rows, derive
from withstand.registry import component
from withstand.threats import Linf
from withstand.training.augment import AugmentationsField
from withstand.training.recipe import Recipe, Step, System

_BLOCK = 1000


@component("recipe", "ask_def", systems=("ask",))
class ASKDef(Recipe):
    """Adversarial training whose hidden layer also votes right: CE + beta * the instance-wise ASK loss.

    L = CE(f(x'), y) + beta * ASK(h(x''), y; h(r)),  ASK = -log(sum_{j: y_j = y} e_j / sum_j e_j + 1e-6),
    e_j = exp(S(h, h(r_j)) / tau), S the cosine or minus the distance ("l2"), averaged over the batch.

    References r are drawn anew for every batch: `per_class` training images of each class, at random (not the nearest), the
    same on every process. references="both" adds their own adversarial copies ("mixing"), "adversarial" takes those alone.
    The gradient flows through h(r) as well.

    attack: makes x' and the copies, on the cross-entropy. ask_attack: makes x'', on the ASK loss; its objective is set.
    features: the submodule whose flattened output is h; None takes what the last layer reads. Train for the layer in which
    the deployed classifier votes. augment: what is done to references; the trainer augments the batch only.
    beta=0 is `pgd_at`.

    The attacks run in eval mode, and then see features of references in eval mode too. The official code attacks in train
    mode, which moves the statistics of batch norm ten times a step; ask_attack=pgd(..., mode="train") does so and puts
    them back. In the official code, besides, nine in ten references carry a wrong label in this loss; here all are right.

    Judge it by `ask` at several temperatures, not by the one it was trained with alone.

    Reference: Wang, Chen, Yao, Liu, Rajapakse, Hero, "ASK: Adversarial Soft k-Nearest Neighbor Attack and Defense", 2022,
    arXiv 2106.14300.
    """

    attack: AttackField = PGD(Linf(4 / 255), steps=10, step=1 / 2)
    ask_attack: AttackField = PGD(Linf(8 / 255), steps=10, step=1 / 4)
    features: str | None = None
    per_class: int = 5
    references: Literal["both", "clean", "adversarial"] = "both"
    tau: float = 0.1
    metric: Metric = "cosine"
    beta: float = 1.0
    augment: AugmentationsField = ()

    def __post_init__(self) -> None:
        check_settings(self.tau, self.metric, "instance")
        at_least_zero(beta=self.beta)
        if self.per_class < 1:
            raise bad("per_class", self.per_class, "a whole number >= 1")
        if "objective" not in {f.name for f in fields(self.ask_attack)}:
            raise bad("ask_attack", repr(self.ask_attack), "one that takes an objective, e.g. pgd")
        on_term(self.ask_attack, CrossEntropy())

    def setup(self, model: nn.Module, data: Dataset, rows: Rows) -> nn.Module:
        system: Any = System(copy.deepcopy(model))
        if self.beta:
            system.tap = penultimate(system.model, data.batch([0]).x, self.features)
            system.shelf = Shelf(data, self.per_class)
        return system

    def craft(self, system: Any, batch: Batch, step: Step) -> Batch:
        if batch.y is None or batch.y.dim() != 1:
            raise bad("y", "no class indices", "one class for each example", "ask_def does not go with mixed labels.")
        extra = {**batch.extra, "adversarial": step.attack(self.attack, system.model, batch.x, batch.y)}
        if self.beta:
            references, labels = self._references(system, step, batch.x.device)
            with torch.no_grad(), frozen(system.model, self.ask_attack.mode):
                held = see(system.model, references, system.tap)[1].flatten(1)
            vote = SoftVote(system.tap, held, labels, system.shelf.classes, self.tau, self.metric)
            extra["ask"] = step.attack(on_term(self.ask_attack, vote), system.model, batch.x, batch.y, "ask")
            extra |= {"references": references, "reference_labels": labels}
        return replace(batch, extra=extra)

    def loss(self, system: Any, batch: Batch, step: Step) -> Tensor:
        if not self.beta:
            return self._supervised(system, batch, step)
        held, h = (see(system.model, batch.extra[name], system.tap)[1].flatten(1) for name in ("references", "ask"))
        labels, classes = batch.extra["reference_labels"], system.shelf.classes
        assert batch.y is not None
        voted = soft_vote(h, batch.y, held, labels, classes, self.tau, self.metric, "instance").mean()
        supervised = self._supervised(system, batch, step)
        step.say("loss_adversarial", supervised)
        step.say("loss_ask", voted)
        return supervised + self.beta * voted

    def _supervised(self, system: Any, batch: Batch, step: Step) -> Tensor:
        adversarial = system(batch.extra["adversarial"])
        say_accuracy(step, batch.y, adversarial=adversarial)
        return step.cross_entropy(adversarial, batch.y)  # type: ignore[arg-type]

    def _references(self, system: Any, step: Step, device: torch.device) -> tuple[Tensor, Tensor]:
        """The references of this step and their labels."""
        drawn = system.shelf.draw(derive(step.seed, "ask/references", step.step)).to(device)
        ids = drawn.ids if drawn.ids is not None else torch.arange(len(drawn), device=device)
        own = replace(step, rows=Rows(derive(step.rows.seed, "ask/references", step.step), ids))
        for augmentation in self.augment:
            drawn = augmentation(drawn, own, system.shelf.classes)
        if drawn.y.dim() != 1:
            raise bad("augment", repr(self.augment), "augmentations that leave labels alone, e.g. crop_flip")
        kinds = [drawn.x] if self.references != "adversarial" else []
        if self.references != "clean":
            kinds.append(own.attack(self.attack, system.model, drawn.x, drawn.y, "ask/references"))
        return torch.cat(kinds), drawn.y.repeat(len(kinds))


class SoftVote:
    """The objective of x'': the instance-wise ASK loss against fixed features of references [M, D]."""

    coupled = False

    def __init__(self, tap: Tap, held: Tensor, labels: Tensor, classes: int, tau: float, metric: Metric) -> None:
        self.read = tap.name if tap.side == "output" else f">{tap.name}"
        self.reads = (self.read,)
        self.held, self.labels, self.classes, self.tau, self.metric = held, labels, classes, tau, metric

    def __call__(self, seen: Seen, y: Tensor, state: State) -> Tensor:
        h = seen.features[self.read].flatten(1)
        return soft_vote(h, y, self.held, self.labels, self.classes, self.tau, self.metric, "instance")


class Shelf:
    """Where references are drawn from: the training data, and where in it each class stands. Copies of a system share it,
    and checkpoints do not hold it."""

    def __init__(self, data: Dataset, per_class: int) -> None:
        """Raises: BadInput for data without labels, and classes with fewer than per_class examples."""
        y = _labels(data)
        self.data, self.per_class, self.classes = data, per_class, len(data.classes)
        self.positions = [(y == c).nonzero().flatten() for c in range(self.classes)]
        sizes = [len(p) for p in self.positions]
        if self.classes < 2 or min(sizes) < per_class:
            got = f"{per_class} with {min(sizes, default=0)} examples of the smallest of {self.classes} classes"
            raise bad("per_class", got, "at most the size of the smallest class, of two or more")

    def draw(self, seed: int) -> Batch:
        """per_class examples of every class, none of them twice, class by class."""
        generator = torch.Generator().manual_seed(seed)
        chosen = [p[torch.randperm(len(p), generator=generator)[: self.per_class]] for p in self.positions]
        return self.data.batch(torch.cat(chosen).tolist())

    def __deepcopy__(self, memo: Any) -> "Shelf":
        return self


def _labels(data: Any) -> Tensor:
    if isinstance(known := getattr(data, "labels", None), np.ndarray):
        return torch.from_numpy(known)
    parts = [data.batch(range(i, min(i + _BLOCK, len(data)))).y for i in range(0, len(data), _BLOCK)]
    if any(p is None for p in parts):
        raise bad("data", f"{data.name}, without labels", "labelled examples")
    return torch.cat(parts)
