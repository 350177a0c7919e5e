"""Helper-based adversarial training."""

import copy
from dataclasses import replace
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import PlainValidator
from torch import Tensor, nn

from withstand.attacks import PGD
from withstand.attacks.engine import AttackField
from withstand.errors import bad
from withstand.hardening.terms import at_least_zero, divergence, on_term, say_accuracy
from withstand.models import load_model
from withstand.objectives import KL
from withstand.protocols import Batch, Dataset
from withstand.random import Rows
from withstand.registry import component
from withstand.threats import Linf
from withstand.training.recipe import Recipe, Step, System


def _helper(value: Any) -> Any:
    if isinstance(value, (str, nn.Module)):
        return value
    if isinstance(getattr(value, "module", None), nn.Module):
        return value.module
    allowed = "a torch model, or a text that load_model reads"
    raise bad("helper", repr(value), allowed, "It is the same network trained by the recipe standard.")


@component("recipe", "hat")
class HAT(Recipe):
    """TRADES with helper examples, which keep the margin from growing further than it must (helper-based training).

    min E[CE(f(x), y) + beta * KL(p, p') + gamma * CE(f(x + h (x' - x)), argmax_k f_std(x')_k)], p = softmax f(x),
    p' = softmax f(x'), x' = attack on KL(p, softmax f(.)).

    helper: f_std, a network of plain training for the same classes, as a module or as what `load_model` reads, such as
    "artefact:FOLDER" with the folder of a training by `standard`; it stays frozen in eval mode. attack: the inner
    maximisation; by default 10 steps of 2/255 in the ball of 8/255, from Gaussian noise of 0.001. beta, gamma: weights.
    h: how far beyond x' the helper example lies; it may leave the range of inputs, as in the official code. Labels of
    helper examples are not smoothed. The defaults are those published for ResNet-18.
    (Not the augmentation of high frequencies for vision transformers that is called HAT as well, arXiv 2204.00993.)

    Reference: Rade, Moosavi-Dezfooli, "Reducing Excessive Margin to Achieve a Better Accuracy vs. Robustness Trade-off",
    ICLR 2022 (no arXiv version).
    """

    helper: Annotated[Any, PlainValidator(_helper)]
    attack: AttackField = PGD(Linf(8 / 255), steps=10, step=1 / 4, random_start=0.001, objective=KL())
    beta: float = 2.5
    gamma: float = 0.5
    h: float = 2.0

    def __post_init__(self) -> None:
        on_term(self.attack, KL())
        at_least_zero(beta=self.beta, gamma=self.gamma)
        if not 1 <= self.h < float("inf"):
            raise bad("h", self.h, "a factor >= 1")

    def setup(self, model: nn.Module, data: Dataset, rows: Rows) -> nn.Module:
        given: Any = load_model(self.helper).module if isinstance(self.helper, str) else self.helper
        helper = Frozen(copy.deepcopy(given).cpu())
        x = data.batch(range(min(2, len(data)))).x
        with torch.no_grad():
            logits = helper(x)
        if logits.shape != (len(x), len(data.classes)):
            got = f"outputs {tuple(logits.shape)} for {len(x)} examples"
            raise bad("helper", got, f"logits of the {len(data.classes)} classes of {data.name}")
        return System(copy.deepcopy(model), helper=helper)

    def optimizers(self, system: Any, main: Any) -> dict[str, torch.optim.Optimizer]:
        return {"main": main(system.model.parameters())}

    def craft(self, system: Any, batch: Batch, step: Step) -> Batch:
        adversarial = step.attack(on_term(self.attack, KL()), system.model, batch.x, batch.y)
        with torch.no_grad():
            advised = system.helper(adversarial).argmax(1)
        return replace(batch, extra={**batch.extra, "adversarial": adversarial, "advised": advised})

    def loss(self, system: Any, batch: Batch, step: Step) -> Tensor:
        x, adversarial, advised = batch.x, batch.extra["adversarial"], batch.extra["advised"]
        clean, attacked, helped = system(x), system(adversarial), system(x + self.h * (adversarial - x))
        say_accuracy(step, batch.y, clean=clean, adversarial=attacked)
        natural, robust = step.cross_entropy(clean, batch.y), divergence(clean, attacked).mean()  # type: ignore[arg-type]
        help_ = F.cross_entropy(helped, advised)
        step.say("loss_clean", natural)
        step.say("loss_kl", robust)
        step.say("loss_helper", help_)
        return natural + self.beta * robust + self.gamma * help_


class Frozen(nn.Module):
    """A network that neither learns nor leaves eval mode, whatever the system around it does."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> "Frozen":
        return super().train(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)
