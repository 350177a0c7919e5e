"""The centre-guided attack."""

from typing import Any

from torch import Tensor

from withstand.attacks.engine import AttackResult, Problem
from withstand.attacks.hashing.aim import CodeProduct, HashingAttack
from withstand.attacks.hashing.centres import Weights, centres, same_classes
from withstand.attacks.hashing.database import DatabaseField, resolve
from withstand.registry import component, replace
from withstand.threats import Linf, ThreatField


@component("attack", "cga", systems=("cgat",))
class CgA(HashingAttack):
    """Drive the query's code away from the centre of what is relevant to it (untargeted, hashing models).

    z <- P(z - step * eps * sign(grad (1/K) u(z) . b*)), b* the centre code of the query's labels in the database, see
    `centre_codes`. That is PGD from a random start.

    database: what the attacker knows: (codes, labels), or a data set or its name, whose items the attacked model hashes.
    weights: of relevant items in the centre.

    Reference: Wang, Lin, Li, "CgAT: Center-Guided Adversarial Training for Deep Hashing-Based Retrieval", WWW 2023, arXiv
    2204.10779.
    """

    threat: ThreatField = Linf(8 / 255)
    steps: int = 100
    step: float = 1 / 8
    random_start: bool = True
    weights: Weights = "jaccard"
    database: DatabaseField = None

    def run(self, model: Any, x: Tensor, y: Tensor | None = None, **context: Any) -> AttackResult:
        """See `HashingAttack.run`. Raises: BadInput without a database as well."""
        held = replace(self, database=resolve(self.database, model, "cga"))
        return super(CgA, held).run(model, x, y, **context)

    def problem(self, **settings: Any) -> Problem:
        base = self.database.to(settings["x"])

        def centre(y: Tensor, rows: Any) -> Tensor:
            own, known = same_classes(y, base.labels)
            return centres(own, base.codes, known, self.weights)

        return super().problem(**{"objective": CodeProduct(settings["model"], centre, away=True), **settings})
