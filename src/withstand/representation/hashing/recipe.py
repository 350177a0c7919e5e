"""Deep hashing: a network whose outputs' signs are codes, similar for images that share a label."""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from withstand.attacks.hashing.centres import as_labels
from withstand.attacks.hashing.cga import CgA
from withstand.attacks.hashing.database import Database
from withstand.errors import bad
from withstand.models.embedding import headless
from withstand.models.hashing import Hasher, hasher_in
from withstand.models.target import read_as
from withstand.protocols import Batch, Dataset, Space, Update
from withstand.random import Rows
from withstand.registry import component
from withstand.registry import replace as changed
from withstand.representation.hashing.bank import Bank
from withstand.representation.hashing.losses import CSQ, LossField
from withstand.representation.metrics import code_scores, means
from withstand.training.recipe import Recipe, Step, System

BITS = 32
_CSQ = CSQ()


@dataclass(frozen=True, kw_only=True)
class HashingRecipe(Recipe):
    """What trainings of hashing models share: the model, its loss, the bank, and MAP as what counts.

    A classifier becomes a `Hasher`: its last linear layer gives way to one with `bits` outputs and a tanh. A hashing model
    goes on learning as it is; bits=None takes its own (32 of a classifier). In distributed training every process compares
    its share of a batch with the outputs of all examples; weights that count pairs (hashnet, dch) count its own.
    """

    loss: LossField = _CSQ  # type: ignore[assignment]
    bits: int | None = None

    task: ClassVar[str] = "hashing"
    wraps: ClassVar[bool] = True
    shards: ClassVar[bool] = False
    selects_on: ClassVar[tuple[str, str]] = ("map", "robust_map")
    defaults: ClassVar[Mapping[str, Any]] = {"optimizer": "sgd(0.01)", "schedule": "steps((1 / 2, 3 / 4))", "batch": 32}
    banked: ClassVar[bool] = False
    """Whether the method needs the bank, whatever its loss."""

    def __post_init__(self) -> None:
        if self.bits is not None and self.bits < 1:
            raise bad("bits", self.bits, "a whole number >= 1, or None")

    def deploy(self, model: Any, space: Space) -> nn.Module:
        """The model as it is, where it is a hashing model, else a `Hasher` in the place of its last layer."""
        held = hasher_in(model)
        if held is None:
            backbone, width = headless(model)
            return Hasher(backbone, width, self.bits or BITS)
        if self.bits not in (None, held[1].bits):
            raise bad("bits", self.bits, f"{held[1].bits}, those of the model, or None")
        return copy.deepcopy(read_as(model)[0])  # with the normalisation around it, if there is one

    def setup(self, model: nn.Module, data: Dataset, rows: Rows) -> nn.Module:
        if len(data.classes) < 1:
            raise bad("data", f"{data.name}, without labels", "labelled examples")
        deployed = self.deploy(model, data.space)
        held = hasher_in(deployed)
        assert held is not None
        bits = held[1].bits
        system: Any = System(deployed, own=self.loss.parts(bits, len(data.classes), rows))
        system.classes = len(data.classes)
        if self.banked or self.loss.banked:
            system.add_module("bank", Bank(data, bits))
        return system

    def craft(self, system: Any, batch: Batch, step: Step) -> Batch:
        bank: Bank | None = getattr(system, "bank", None)
        if bank is not None:
            bank.fill(system.model)
            starts = step.step * step.epochs % step.steps == 0
            if starts and hasattr(self.loss, "begin_epoch"):
                self.loss.begin_epoch(bank, system.own)
        return replace(batch, y=labels_of(system, batch))

    def updates(self, system: Any, batch: Batch, step: Step) -> Iterator[Update]:
        yield Update(lambda: self.learn(system, batch, step))

    def learn(self, system: Any, batch: Batch, step: Step) -> Tensor:
        """What is minimised; by default the hashing loss, of outputs that enter the bank."""
        return self.hash_loss(system, batch, self.seen(system, batch))

    def seen(self, system: Any, batch: Batch) -> Tensor:
        """The outputs of a batch, which enter the bank where there is one."""
        u = system(batch.x)
        if hasattr(system, "bank"):
            system.bank.write(batch, u)
        return u

    def hash_loss(self, system: Any, batch: Batch, u: Tensor) -> Tensor:
        """The hashing loss of outputs u of a batch, in single precision: torch refuses the cross-entropy of probabilities
        under autocast on CUDA, and products of half precision are too coarse."""
        loss: Any = self.loss
        with torch.autocast(u.device.type, enabled=False):
            return loss(u, batch.y, getattr(system, "bank", None), system.own)

    def validate(
        self,
        model: nn.Module,
        data: Dataset,
        attack: Any,
        device: torch.device | str,
        seed: int,
        rank: int = 0,
        world: int = 1,
        total: Callable[[Tensor], Tensor] = lambda counts: counts,
    ) -> dict[str, float]:
        """`map` of the validation examples among themselves, each left out of its own ranking, and where there is an
        attack `robust_map`, the queries moved and the database not. What is no attack on codes gives its threat and steps
        to the centre-guided one. Every process does it all."""
        base = Database.hashed(model, data, device)
        own = torch.arange(len(data))
        found = {"map": _map(base.codes, base, own)}
        if attack is None:
            return found
        if getattr(attack, "task", "") != "hashing":
            attack = CgA(attack.threat, steps=getattr(attack, "steps", 10), step=2.5 / getattr(attack, "steps", 10))
        attack, moved = changed(attack, database=base) if hasattr(attack, "database") else attack, []
        for begin in range(0, len(data), 256):
            batch = data.batch(range(begin, min(begin + 256, len(data)))).to(device)
            z = attack(model, batch.x, batch.y, seed=seed, ids=batch.ids, box=data.space.box)
            with torch.no_grad():
                moved.append(torch.where(model(z) >= 0, 1.0, -1.0))
        return found | {"robust_map": _map(torch.cat(moved), base, own)}


def _map(codes: Tensor, base: Database, own: Tensor) -> float:
    """MAP of queries that stand in the database at the positions `own`, each without itself."""
    held = [t.cpu() for t in (codes, base.labels, base.codes, base.labels)]
    return means(code_scores(*held, radius=None, lone="zero", without=own))["map"]


def labels_of(system: Any, batch: Batch) -> Tensor:
    """The labels of a batch, 0/1 [n, C]. Raises: BadInput for shares of labels, such as mixing makes."""
    if batch.y is None:
        raise bad("y", "none", "labels, which tell what is similar")
    return as_labels(batch.y, "y", system.classes)


@component("recipe", "hashing", systems=("cgat",))
class Hashing(HashingRecipe):
    """Deep hashing by one of the usual losses: images that share a label get similar codes.

    Ships a `Hasher`: u = tanh(F(x)) in (-1, 1)^bits, whose signs are the code. loss: csq, hashnet, dpsh, dph, dch, dsdh or
    greedyhash; csq and hashnet hold up on balanced classes, where dph may give all images one code. bits: of a classifier's
    new head; None takes 32. A hashing model goes on learning. The best epoch is that of the highest MAP among the
    validation examples, each without itself.

    The official training is SGD 0.01, batch 64, 100 epochs, a tenth of the rate every third.
    """

    defaults: ClassVar[Mapping[str, Any]] = {
        "optimizer": "sgd(0.01)",
        "schedule": "steps((1 / 3, 2 / 3))",
        "batch": 64,
        "epochs": 100,
    }
