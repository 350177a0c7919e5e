"""SDHA: away from all that is relevant, while the picture stays the same."""

from typing import Any

import torch
from torch import Tensor

from withstand.attacks.engine import AttackResult, Problem
from withstand.attacks.engine.needs import needs_positive
from withstand.attacks.hashing.aim import Codes, HashingAttack
from withstand.attacks.hashing.centres import same_classes, sign
from withstand.attacks.hashing.database import Database, DatabaseField, resolve
from withstand.errors import bad
from withstand.objectives import State
from withstand.protocols import Seen
from withstand.random import Rows
from withstand.registry import component, replace
from withstand.threats import Linf, ThreatField


@component("attack", "sdha", systems=("cgat",))
class SDHA(HashingAttack):
    """Drive the query away from every relevant item with Adam, near ones first (untargeted, hashing models).

    Minimises MSE(x', x) - (weight / K) * mean over relevant items r of d(u', r) * D_H(u', r)^(-z), with u' in the place of
    codes, d = sum_k (|u'_k - r_k| / 2) g_k + 1 - g_k and g_k = sigmoid(5 u'_k r_k), so that a bit that has flipped counts
    in full and is let alone.

    Relevant items are those of the database that share a label; of a query without any, and without a database, its own
    clean code. (In the public reimplementation they are other queries of the batch, on which a point would depend.)
    Distances below one bit count as one: the power would draw a query back to what it is about to leave. After each step of
    Adam the point is moved into the threat. z: the power. weight: 25. lr: of Adam.

    Reference: Lu, Chen, Sun, Wang, Wang, Yang, "A Smart Adversarial Attack on Deep Hashing Based Image Retrieval", ICMR
    2021; the form is that of a public reimplementation, since the article was not at hand.
    """

    threat: ThreatField = Linf(8 / 255)
    steps: int = 100
    lr: float = 0.01
    z: float = 0.5
    weight: float = 25.0
    database: DatabaseField = None

    step = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        needs_positive(self, "lr", "weight")
        if not 0 <= self.z <= 1:
            raise bad("z", self.z, "a power in [0, 1]")

    @property
    def labelled(self) -> bool:  # type: ignore[override]
        """With a database."""
        return self.database is not None

    def run(self, model: Any, x: Tensor, y: Tensor | None = None, **context: Any) -> AttackResult:
        """See `HashingAttack.run`."""
        held = self if self.database is None else replace(self, database=resolve(self.database, model, "sdha"))
        return super(SDHA, held).run(model, x, y, **context)

    def problem(self, **settings: Any) -> Problem:
        base = None if self.database is None else self.database.to(settings["x"])
        aim = Leaving(settings["model"], base, self.z, self.weight)
        return super().problem(**{"objective": aim, **settings})

    def search(self, p: Problem) -> Tensor:
        if self.keep == "best":
            p.clean  # noqa: B018 (the clean point counts as a candidate)
        z, mean, square = p.x.clone(), torch.zeros_like(p.x), torch.zeros_like(p.x)
        for step in range(1, self.steps + 1):
            gradient = p.gradient(z)
            assert isinstance(gradient, Tensor)
            mean.mul_(0.9).add_(gradient, alpha=0.1)
            square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
            move = (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
            z = p.project(z + self.lr * move)
        if self.keep == "best":
            p.look(z)
        return z


class Leaving(Codes):
    """The objective: minus SDHA's loss. Different codes of the database are held once, with their numbers."""

    def __init__(self, model: Any, base: Database | None, z: float, weight: float) -> None:
        super().__init__(model)
        self.base, self.z, self.weight = base, z, weight
        self.reads = ("logits", "input")

    def begin(self, clean: Seen, y: Tensor, rows: Rows) -> dict[str, Tensor]:
        super().begin(clean, y, rows)
        state = {"x": clean.input, "own": sign(clean.logits)}
        if self.base is not None:
            if self.base.codes.shape[1] != clean.logits.shape[1]:
                got = f"codes of {self.base.codes.shape[1]} bits"
                raise bad("database", got, f"{clean.logits.shape[1]} bits, as the model returns")
            own, known = same_classes(y, self.base.labels)
            self.codes, place = self.base.codes.unique(dim=0, return_inverse=True)
            near = (own @ known.T > 0).to(clean.logits.dtype)
            state["count"] = near.new_zeros(len(y), len(self.codes)).index_add_(1, place, near)
        return state

    def __call__(self, seen: Seen, y: Tensor, state: State) -> Tensor:
        u, own = seen.logits, state["own"]
        value = farness(u, own, self.z, each=True)
        if self.base is not None:
            count = state["count"]
            many = (farness(u, self.codes, self.z) * count).sum(1) / count.sum(1).clamp_min(1)
            value = torch.where(count.sum(1) > 0, many, value)
        return self.weight / u.shape[1] * value - (seen.input - state["x"]).square().flatten(1).mean(1)


def farness(u: Tensor, codes: Tensor, z: float, each: bool = False) -> Tensor:
    """d(u, r) * max(D_H(u, r), 1)^(-z): [N, M] for codes r [M, K], or [N] for one code of each row.

    d depends on u_k r_k alone, and r_k is 1 or -1: what it is for each of both makes all M by one product.
    """
    up, down = _part(u), _part(-u)
    even, odd = (up + down) / 2, (up - down) / 2
    pair = (lambda a: (a * codes).sum(1)) if each else (lambda a: a @ codes.T)
    d = (even.sum(1) if each else even.sum(1, keepdim=True)) + pair(odd)
    far = (u.shape[1] - pair(u)) / 2
    return d * far.clamp_min(1) ** -z


def _part(product: Tensor) -> Tensor:
    """One bit's part of d where u_k r_k is `product`."""
    g = torch.sigmoid(5 * product)
    return (1 - product) / 2 * g + 1 - g
