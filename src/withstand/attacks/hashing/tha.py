"""THA: targets by a network that has learned which code stands for a set of labels."""

import copy
from typing import Annotated, Any, ClassVar

import torch
from pydantic import PlainValidator
from torch import Tensor, nn

from withstand.attacks.engine import Problem
from withstand.attacks.fit import load_fitted
from withstand.attacks.hashing.aim import CodeProduct
from withstand.attacks.hashing.centres import as_labels, sign
from withstand.attacks.hashing.database import outputs
from withstand.attacks.hashing.targets import Targeted
from withstand.errors import bad
from withstand.protocols import Batch, Dataset, Space
from withstand.random import Rows
from withstand.registry import component
from withstand.threats import Linf, ThreatField
from withstand.training.recipe import Recipe, Step, System


class PrototypeNet(nn.Module):
    """Label sets 0/1 [N, C] to h in (-1, 1)^K, [N, K]: C -> hidden -> feature -> K, one ReLU, tanh."""

    def __init__(self, classes: int, bits: int, hidden: int = 4096, feature: int = 512) -> None:
        super().__init__()
        self.classes, self.bits = classes, bits
        self.feature = nn.Sequential(nn.Linear(classes, hidden), nn.ReLU(), nn.Linear(hidden, feature))
        self.hashing = nn.Linear(feature, bits)

    def forward(self, y: Tensor) -> Tensor:
        return torch.tanh(self.hashing(self.feature(y)))


@component("recipe", "prototypes", systems=("cgat",))
class Prototypes(Recipe):
    """A network that learns the code of each set of labels, for the attack `tha`; the hashing model stands still.

    h = PrototypeNet(y_t) for label sets y_t drawn from those of the training examples, s = h . b / K for their codes b; with
    positives (a shared label) and negatives, weights a without a gradient,

    L = (logsumexp_n a_n s_n + logsumexp_p -a_p s_p) / batch + (quantisation / batch) * |sign h - h|^2,
    a_n = 2 + s_n, a_p = 2 - s_p.

    Given: a hashing model and the data that it learned from. The official code leaves out the pairs below the diagonal of
    (label set, example), which means nothing there; all pairs count here. batch counts label sets; images are not read after
    the codes are known, but an epoch is as long as the data, where the paper has 300 steps. bits: of the model.

    Reference: Wang, Zhang, Lu, Li, "Targeted Attack and Defense for Deep Hashing", SIGIR 2021.
    """

    bits: int = 32
    quantisation: float = 1e-4
    hidden: int = 4096
    feature: int = 512

    verb: ClassVar[str] = "fit-attack"
    ships: ClassVar[str] = "prototypes"
    learned: ClassVar[bool] = True
    defaults: ClassVar[dict[str, Any]] = {
        "optimizer": "adam(1e-4, (0.5, 0.999))",
        "schedule": "steps((1 / 2, 3 / 4))",
        "batch": 32,
        "epochs": 100,
    }

    def __post_init__(self) -> None:
        for name in ("bits", "hidden", "feature"):
            if getattr(self, name) < 1:
                raise bad(name, getattr(self, name), "a whole number >= 1")
        if self.quantisation < 0:
            raise bad("quantisation", self.quantisation, "a weight >= 0")

    def setup(self, model: nn.Module, data: Dataset, rows: Rows) -> nn.Module:
        codes, labels, kinds = known_codes(model, data, self.bits)
        system = _Learning(PrototypeNet(labels.shape[1], self.bits, self.hidden, self.feature))
        for name, held in (("codes", codes), ("labels", labels), ("kinds", kinds)):
            system.register_buffer(name, held, persistent=False)
        return system

    def deploy(self, model: Any, space: Space) -> nn.Module:
        assert space.classes is not None
        return PrototypeNet(space.classes, self.bits, self.hidden, self.feature)

    def craft(self, system: Any, batch: Batch, step: Step) -> Batch:
        drawn = step.rows.integers((), 0, len(system.kinds), "label sets")
        return Batch(batch.x, system.kinds[drawn], batch.ids)

    def loss(self, system: Any, batch: Batch, step: Step) -> Tensor:
        assert batch.y is not None
        h = system.model(batch.y)
        pairs = prototype_loss(h, batch.y, system.codes, system.labels) / len(h)
        rest = self.quantisation / len(h) * (sign(h.detach()) - h).square().sum()
        step.say("loss_pairs", pairs)
        return pairs + rest


def known_codes(model: Any, data: Dataset, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of all examples the codes [N, K] and the labels 0/1 [N, C], and the different sets of labels [M, C] but the empty one.

    Raises: BadInput for a model that does not return `bits` numbers in [-1, 1], and for data without labels.
    """
    u, labels, _ = outputs(model, data)
    if u.shape[1] != bits or bool((u.abs() > 1).any()):
        got = f"{bits} for a model that returns {u.shape[1]} numbers up to {float(u.abs().max()):.3g}"
        raise bad("bits", got, "the number of bits of a hashing model")
    kinds = labels.unique(dim=0)
    return sign(u), labels, kinds[kinds.sum(1) > 0]


def prototype_loss(h: Tensor, y: Tensor, codes: Tensor, labels: Tensor) -> Tensor:
    """logsumexp over negatives of (2 + s) s plus logsumexp over positives of -(2 - s) s, factors without a gradient."""
    s = h @ codes.T / codes.shape[1]
    near = y @ labels.T > 0
    fixed = s.detach()
    terms = [
        ((2 + fixed) * s)[~near].logsumexp(0) if bool((~near).any()) else s.new_zeros(()),
        (-(2 - fixed) * s)[near].logsumexp(0) if bool(near.any()) else s.new_zeros(()),
    ]
    return torch.stack(terms).sum()


class _Learning(System):
    def forward(self, x: Tensor) -> Tensor:
        """The codes of the label sets that were met: what shows whether the network still returns numbers."""
        return self.model(self.kinds)


def _prototypes(value: Any) -> Any:
    """A module, or what stands for one; texts are loaded when they are needed first."""
    return value if value is None or isinstance(value, str) else load_fitted(value, "prototypes")


PrototypesField = Annotated[Any, PlainValidator(_prototypes)]
"""The type of a field that holds a `PrototypeNet`: "artefact:FOLDER", what `fit_attack` returned, or a module."""


@component("attack", "tha", systems=("cgat",))
class THA(Targeted):
    """Draw the query's code to the prototype of a wanted set of labels (targeted, hashing models).

    As `dhta`, with the anchor sign(PrototypeNet(y_t)). prototypes: "artefact:FOLDER" of `withstand fit-attack prototypes`,
    what `fit_attack` returned, or a module. target, database: see `Targeted`; the database tells which labels there are.

    Reference: Wang, Zhang, Lu, Li, "Targeted Attack and Defense for Deep Hashing", SIGIR 2021.
    """

    threat: ThreatField = Linf(8 / 255)
    steps: int = 100
    step: float = 1 / 8
    random_start: bool = False
    prototypes: PrototypesField = None

    def problem(self, **settings: Any) -> Problem:
        if self.prototypes is None:
            mend = "Fit one: withstand fit-attack 'prototypes(bits=32)' artefact:HASHING --data DATA --out DIR"
            raise bad("prototypes", "none", '"artefact:FOLDER", a module, or what fit_attack returned', mend)
        net: Any = load_fitted(self.prototypes, "prototypes")

        def prototype(wanted: Tensor, rows: Rows) -> Tensor:
            y = as_labels(wanted, "target", net.classes)
            if y.shape[1] != net.classes:
                raise bad(
                    "prototypes", f"a network of {net.classes} classes", f"one of {y.shape[1]}, as the labels are"
                )
            with torch.no_grad():
                return sign(copy.deepcopy(net).to(y)(y))

        aim = CodeProduct(settings["model"], prototype, away=False, source="prototypes")
        return super().problem(**{"objective": aim, **settings})
