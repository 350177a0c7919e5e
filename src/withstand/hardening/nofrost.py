"""Adversarial training without normalisation layers."""

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from withstand.attacks import PGD
from withstand.attacks.engine import AttackField
from withstand.errors import bad
from withstand.hardening.terms import copies, say_accuracy
from withstand.protocols import Batch, Dataset
from withstand.random import Rows
from withstand.registry import component
from withstand.threats import Linf
from withstand.training.augment import AugmentationsField
from withstand.training.recipe import Recipe, Step, System

NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.LocalResponseNorm)


@component("recipe", "nofrost", systems=("nofrost",))
class NoFrost(Recipe):
    """Clean and adversarial examples through a network without normalisation, e.g. zoo:nf_resnet18.

    min (1 - mix) E[CE(f(x), y)] + mix E[CE(f(x'), y)], x' = attack on CE(f(.), y) with hard labels, in eval mode.

    No layer couples the examples of a batch, so that the two kinds need no statistics in common. Both go through the
    network together, which equals two passes up to the masks of dropout.

    attack: 10 steps of 1/255 in the ball of 8/255, from a uniform start; the official step for other radii and numbers K
    of steps is min(1.25 eps, eps + 4/255) / K. mix: 0 is plain training (and crafts nothing), 1 adversarial training.
    domains: augmentations, each of which makes a further labelled copy of the batch (NoFrost*, where the published
    streams are DeepAugment and texture-debiased images); then the loss is the plain mean over all streams.

    The official run smooths labels by 0.1 and clips no gradients; both are options of the trainer (label_smoothing, agc).
    It has SGD with Nesterov momentum, weight decay 5e-5, a learning rate of 0.1 for batches of 256, 90 epochs of cosine.
    It picks its checkpoint on the test set; here the validation set decides. The abstract and the official repository
    disagree on the PGD accuracy of ResNet-50 (23.56 and 22.45).

    Reference: Wang, Zhang, Zheng, Shi, Li, Wang, "Removing Batch Normalization Boosts Adversarial Training", 2022, arXiv
    2207.01156.
    """

    attack: AttackField = PGD(Linf(8 / 255), steps=10, step=1 / 8)
    mix: float = 0.5
    domains: AugmentationsField = ()

    def __post_init__(self) -> None:
        if not 0 <= self.mix <= 1:
            raise bad("mix", self.mix, "a share in [0, 1]")
        if self.domains and self.mix == 0:
            raise bad("domains", self.domains, "none with mix=0", "Every stream counts alike, adversarial ones too.")

    def setup(self, model: nn.Module, data: Dataset, rows: Rows) -> nn.Module:
        found = [
            f"{name or 'the model'} ({type(m).__name__})" for name, m in model.named_modules() if isinstance(m, NORMS)
        ]
        if found:
            some = ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
            raise bad("model", f"normalisation layers: {some}", "a network without", "For example zoo:nf_resnet18.")
        system: Any = System(copy.deepcopy(model))
        system.classes = len(data.classes)
        return system

    def craft(self, system: Any, batch: Batch, step: Step) -> Batch:
        if self.mix == 0:
            return batch
        extra = copies(self.domains, batch, step, system.classes, "domain")
        y = batch.y if batch.y is None or batch.y.dim() == 1 else batch.y.argmax(1)
        extra["adversarial"] = step.attack(self.attack, system.model, batch.x, y)
        return replace(batch, extra={**batch.extra, **extra})

    def loss(self, system: Any, batch: Batch, step: Step) -> Tensor:
        y: Any = batch.y
        names = ["adversarial", *(f"domain_{i}" for i in range(len(self.domains)))] if self.mix else []
        streams = [batch.x, *(batch.extra[name] for name in names)]
        clean, *others = system(torch.cat(streams)).chunk(len(streams))
        loss = step.cross_entropy(clean, y)
        step.say("loss_clean", loss)
        if not others:
            say_accuracy(step, y, clean=clean)
            return loss
        say_accuracy(step, y, clean=clean, adversarial=others[0])
        labels = [y, *(batch.extra[f"{name}_labels"] for name in names[1:])]
        losses = [step.cross_entropy(z, own) for z, own in zip(others, labels)]
        step.say("loss_adversarial", losses[0])
        if self.domains:
            return torch.stack([loss, *losses]).mean()
        return (1 - self.mix) * loss + self.mix * losses[0]
