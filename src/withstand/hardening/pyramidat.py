"""Adversarial training on pyramids of perturbations, with the same dropout masks in every pass."""

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from withstand.attacks import PGD
from withstand.attacks.engine import AttackField
from withstand.errors import bad
from withstand.hardening.terms import aimed, at_least_zero, say_accuracy
from withstand.models.layers import add_branches, keep_branch, matched_masks, route
from withstand.parameterisations import Pyramid
from withstand.protocols import Batch, Dataset
from withstand.random import Rows
from withstand.registry import component
from withstand.threats import Linf
from withstand.training.recipe import Recipe, Step, System

MAIN, ADVERSARIAL = "main", "adversarial"


@component("recipe", "pyramidat", systems=("pyramidat",))
class PyramidAT(Recipe):
    """Training on clean examples and on ones that a pyramid of perturbations pulls towards random classes.

    min E[CE(f(x), y) + weight CE(f(x'), y)], x' after a few sign steps on the levels of a `pyramid`, from zero, that descend
    CE(f(.), t), t drawn evenly from all classes (the label included) and held for the whole attack.

    It is meant for transformers and raises clean and out-of-distribution accuracy; it claims no robustness in Linf. Choose
    the best epoch by the clean accuracy (judge="none" of `harden`).

    attack: the default is the published one for 224 pixels, in units of [0, 1]: eps 3/255 on each level, 5 steps of 0.5/255,
    levels of 32, 16 and 1 pixels with multipliers 20, 10 and 1. For 32 pixels take pyramid((8, 4, 1), (20, 10, 1)); with
    pyramid((1,), (1,)) it is the pixel-wise baseline, PixelAT. weight >= 0 of the adversarial half; the terms are summed.
    matched: the clean pass, the attack and the adversarial pass drop the same units of the same example (dropout and
    stochastic depth, all in train mode); False draws anew in each, and attacks in the attack's own mode. The released code
    is matched in part only: the masks of residual branches differ between the clean and the other passes. Its stochastic
    depth leaves what it keeps unscaled; here the model's own layers decide (timm's scale).

    A network with batch norm gets a branch of its own for adversarial examples, as in AdvProp; the main one ships.

    Reference: Herrmann, Sargent, Jiang, Zabih, Chang, Liu, Krishnan, Sun, "Pyramid Adversarial Training Improves ViT
    Performance", 2022, arXiv 2111.15121.
    """

    attack: AttackField = PGD(Linf(3 / 255), steps=5, step=1 / 6, random_start=False, parameterisation=Pyramid())
    weight: float = 1.0
    matched: bool = True

    def __post_init__(self) -> None:
        at_least_zero(weight=self.weight)
        aimed(self.attack)

    def setup(self, model: nn.Module, data: Dataset, rows: Rows) -> nn.Module:
        if not data.classes:
            raise bad("classes", "none", "labelled data")
        system: Any = System(copy.deepcopy(model))
        system.branched = any(isinstance(m, _BatchNorm) for m in model.modules())
        if system.branched:
            add_branches(system.model, [MAIN, ADVERSARIAL])
        if self.matched:
            with matched_masks(system.model, rows):  # layers that cannot be matched are refused here
                pass
        system.classes = len(data.classes)
        return system

    def craft(self, system: Any, batch: Batch, step: Step) -> Batch:
        target = step.rows.integers((), 0, system.classes, "pyramid target")
        attack = aimed(self.attack)
        attack = replace(attack, mode="train") if self.matched else attack
        with self._pass(system, step, ADVERSARIAL):
            adversarial = step.attack(attack, system.model, batch.x, target)
        return replace(batch, extra={**batch.extra, "adversarial": adversarial})

    def loss(self, system: Any, batch: Batch, step: Step) -> Tensor:
        y: Any = batch.y
        with self._pass(system, step, MAIN):
            clean = system(batch.x)
        with self._pass(system, step, ADVERSARIAL):
            adversarial = system(batch.extra["adversarial"])
        say_accuracy(step, y, clean=clean, adversarial=adversarial)
        natural, moved = step.cross_entropy(clean, y), step.cross_entropy(adversarial, y)
        step.say("loss_clean", natural)
        step.say("loss_adversarial", moved)
        return natural + self.weight * moved

    def finish(self, system: Any) -> nn.Module:
        return keep_branch(system.model, MAIN) if system.branched else system.model

    @contextmanager
    def _pass(self, system: Any, step: Step, branch: str) -> Iterator[None]:
        with ExitStack() as stack:
            if self.matched:
                stack.enter_context(matched_masks(system.model, step.rows, step.step))
            if system.branched:
                stack.enter_context(route(system.model, branch))
            yield
