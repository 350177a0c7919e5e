"""CgAT: queries driven away from what is relevant to them must come back; and ATRDH, the defence before it."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, ClassVar

from torch import Tensor

from withstand.attacks import PGD
from withstand.attacks.engine import AttackField
from withstand.attacks.hashing.aim import CodeProduct
from withstand.attacks.hashing.centres import Weights
from withstand.errors import bad
from withstand.protocols import Batch
from withstand.registry import component
from withstand.registry import replace as changed
from withstand.representation.hashing.bank import Bank
from withstand.representation.hashing.recipe import HashingRecipe
from withstand.threats import Linf
from withstand.training.recipe import Step

_INNER = PGD(Linf(8 / 255), steps=7, step=1 / 4)
_TRAINING = {"optimizer": "sgd(0.01)", "schedule": "steps((1 / 2, 3 / 4))", "batch": 32, "epochs": 30}


@component("recipe", "cgat", systems=("cgat",))
class CgAT(HashingRecipe):
    """Centre-guided adversarial training of a hashing model: its own loss, and adversarial outputs drawn to the centre.

    L = L_hash(u, y, bank) - lam (1/K) mean u' . b2,  u' = F(x') with x' = attack on -(1/K) u . b1 around x,

    b1 the centre codes of the labels in the bank of training outputs before the step, b2 after this batch has entered it;
    see `centre_codes`. Begin with a trained hashing model (`hashing`) and its loss.

    attack: the inner maximisation; the recipe sets its objective. It runs in eval mode, as does the pass that fills the bank
    (the official code never leaves train mode, so that dropout disturbs codes and examples). weights: of relevant items in
    the centre; "published" is the official code's, which differs where images have several labels. lam=0 is `hashing`.
    Of several processes every one keeps the outputs of all examples; see `Bank`.

    Hash the database again with the model that comes out: the codes of the one before are another model's.

    Reference: Wang, Lin, Li, "CgAT: Center-Guided Adversarial Training for Deep Hashing-Based Retrieval", WWW 2023, arXiv
    2204.10779.
    """

    attack: AttackField = _INNER
    lam: float = 1.0
    weights: Weights = "jaccard"

    banked: ClassVar[bool] = True
    defaults: ClassVar[Mapping[str, Any]] = _TRAINING

    def __post_init__(self) -> None:
        super().__post_init__()
        _takes_objective(self.attack)
        if not 0 <= self.lam < float("inf"):
            raise bad("lam", self.lam, "a weight >= 0")

    def craft(self, system: Any, batch: Batch, step: Step) -> Batch:
        batch = super().craft(system, batch, step)
        if not self.lam:
            return batch
        assert batch.y is not None
        return _attacked(self.attack, system, batch, batch.y, self.weights, True, step)

    def learn(self, system: Any, batch: Batch, step: Step) -> Tensor:
        if not self.lam:
            return super().learn(system, batch, step)
        assert batch.y is not None
        moved = system(batch.extra["adversarial"])
        natural = self.hash_loss(system, batch, self.seen(system, batch))
        drawn = -(moved * system.bank.centres(batch.y, self.weights)).mean()
        step.say("loss_hashing", natural)
        step.say("loss_adversarial", drawn)
        return natural + self.lam * drawn


@component("recipe", "atrdh", systems=("cgat",))
class ATRDH(HashingRecipe):
    """Adversarial training of a hashing model against targeted attacks: its own loss on both kinds of outputs.

    L = L_hash(u, y, bank) + L_hash(u', y, bank), x' = attack on (1/K) u . a around x, a the code that stands for a label set
    which is drawn for each example from those of the training data.

    In the paper a `PrototypeNet` learns a beside the model. Here a is the centre code of the label set in the bank: closed
    form, and at the same cost as `cgat`. Begin with a trained hashing model. attack: as for `cgat`.

    Reference: Wang, Zhang, Lu, Li, "Targeted Attack and Defense for Deep Hashing", SIGIR 2021.
    """

    attack: AttackField = _INNER

    banked: ClassVar[bool] = True
    defaults: ClassVar[Mapping[str, Any]] = _TRAINING

    def __post_init__(self) -> None:
        super().__post_init__()
        _takes_objective(self.attack)

    def craft(self, system: Any, batch: Batch, step: Step) -> Batch:
        batch = super().craft(system, batch, step)
        bank: Bank = system.bank
        wanted = bank.y[step.rows.integers((), 0, len(bank.y), "target")]
        return _attacked(self.attack, system, batch, wanted, "jaccard", False, step)

    def learn(self, system: Any, batch: Batch, step: Step) -> Tensor:
        moved = system(batch.extra["adversarial"])
        natural = self.hash_loss(system, batch, self.seen(system, batch))
        adversarial = self.hash_loss(system, batch, moved)
        step.say("loss_hashing", natural)
        step.say("loss_adversarial", adversarial)
        return natural + adversarial


def _attacked(
    attack: Any, system: Any, batch: Batch, labels: Tensor, weights: Weights, away: bool, step: Step
) -> Batch:
    """The batch with its adversarial examples, driven away from or towards the centres of label sets 0/1 [n, C]."""
    aim = CodeProduct(system.model, lambda y, rows: system.bank.centres(y, weights), away)
    moved = step.attack(changed(attack, objective=aim), system.model, batch.x, labels)
    return replace(batch, extra={**batch.extra, "adversarial": moved})


def _takes_objective(attack: Any) -> None:
    if "objective" not in {f.name for f in fields(attack)}:
        raise bad("attack", repr(attack), "one that takes an objective, e.g. pgd", "The recipe sets it.")
