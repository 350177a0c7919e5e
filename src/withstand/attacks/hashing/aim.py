"""What attacks on hashing models share: labels and a database, objectives on codes, a tanh that hardens on the way."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from withstand.attacks.engine import Attack, AttackResult, Point, Problem
from withstand.attacks.engine.needs import needs_whole
from withstand.attacks.hashing.centres import as_labels, sign
from withstand.attacks.pgd import needs_fixed_set
from withstand.errors import bad
from withstand.models.hashing import hasher_in
from withstand.objectives import State
from withstand.protocols import Seen
from withstand.random import Rows

ALPHAS = ((0.5, 0.1), (0.6, 0.2), (0.7, 0.3), (0.8, 0.5), (0.9, 0.7), (1.0, 1.0))
"""(share of the steps, alpha until there), as in the official code of the targeted attack."""
_EDGE = 1 - 1e-6


@dataclass(frozen=True, kw_only=True)
class HashingAttack(Attack):
    """Sign steps on an objective of codes. A method names its objective, and has steps, step and random_start.

    Labels may be class indices [N] or 0/1 [N, C]. Nothing counts as a success: what an attack achieves is a matter of
    rankings. Points are compared by the bits that they move, then by the real outputs.
    """

    prepares = True
    task = "hashing"
    """What the attacked model must do."""
    labelled = True
    """Whether the queries' labels are needed."""
    anneals = False
    """Whether alpha of tanh(alpha F(x)) grows with the steps, see `ALPHAS`."""

    def __post_init__(self) -> None:
        needs_fixed_set(self)
        needs_whole(self, "steps")
        if not self.step > 0:  # type: ignore[attr-defined]
            raise bad("step", self.step, "a share of eps > 0")  # type: ignore[attr-defined]

    def run(self, model: Any, x: Tensor, y: Tensor | None = None, **context: Any) -> AttackResult:
        """See `Attack.run`; y: class indices [N], or 0/1 [N, C]. Raises: BadInput for queries without labels as well."""
        if y is None and self.labelled:
            raise bad(
                "y", "none", "the queries' labels, which the attack is guided by", "Or take hag, which needs none."
            )
        if y is not None and isinstance(x, Tensor) and len(y) == len(x):
            y = as_labels(y)
        elif y is None and isinstance(x, Tensor):
            y = x.new_zeros(len(x), 1)  # never read
        return super().run(model, x, y, **context)

    def search(self, p: Problem) -> Point:
        if self.keep == "best":
            p.clean  # noqa: B018 (the clean point counts as a candidate)
        z = p.start(self.random_start, "hashing")  # type: ignore[attr-defined]
        for step in range(self.steps):  # type: ignore[attr-defined]
            if self.anneals:
                p.objective.alpha = alpha_at(step / self.steps)  # type: ignore[attr-defined]
            z = p.step(z, p.gradient(z), self.step)  # type: ignore[attr-defined]
        if self.keep == "best":
            p.look(z)
        return z


def alpha_at(progress: float) -> float:
    """alpha of tanh(alpha F(x)) when a share of the steps in [0, 1) is done."""
    return next(alpha for until, alpha in ALPHAS if progress < until)


class Codes:
    """Base of objectives on u = tanh(F(x)) [N, K]: reads F where alpha softens it, and refuses outputs beyond 1.

    alpha: None takes the model's own output, and else tanh(alpha F). Of a model without a `Hasher`, F is the inverse tanh
    of the output, which floating point bounds.
    """

    coupled = False
    criterion = None
    classifies = False

    def __init__(self, model: Any, alpha: float | None = None) -> None:
        found = hasher_in(model)
        self.head = None if found is None else ".".join(filter(None, (found[0], "head")))
        self.alpha = alpha
        self.reads = ("logits",) if alpha is None or self.head is None else ("logits", self.head)

    def begin(self, clean: Seen, y: Tensor, rows: Rows) -> dict[str, Tensor]:
        """Refuses what is no hashing model."""
        if bool((clean.logits.abs() > 1).any()):
            got = f"outputs up to {float(clean.logits.abs().max()):.3g}"
            raise bad(
                "model", got, "a hashing model, whose outputs lie in [-1, 1]", "withstand harden --recipe hashing"
            )
        return {}

    def soft(self, seen: Seen) -> Tensor:
        """tanh(alpha F), [N, K]."""
        if self.alpha is None:
            return seen.logits
        reals = torch.atanh(seen.logits.clamp(-_EDGE, _EDGE)) if self.head is None else seen.features[self.head]
        return torch.tanh(self.alpha * reals.to(seen.logits.dtype))


class CodeProduct(Codes):
    """The objective: +-(1/K) u . b for a code b of each example; as a number, that of sign(u), and u where those are equal.

    code: (labels 0/1 [N, C], rows) -> b [N, K] in {-1, 0, 1}, asked once. away: minus, else plus. source: the argument that
    codes come from, which a refusal names.
    """

    def __init__(
        self,
        model: Any,
        code: Callable[[Tensor, Rows], Tensor],
        away: bool,
        alpha: float | None = None,
        source: str = "database",
    ) -> None:
        super().__init__(model, alpha)
        self.code, self.way, self.source = code, -1.0 if away else 1.0, source

    def begin(self, clean: Seen, y: Tensor, rows: Rows) -> dict[str, Tensor]:
        """The codes. Raises: BadInput where they are of another length than the outputs."""
        super().begin(clean, y, rows)
        code = self.code(y, rows).to(clean.logits)
        if code.shape != clean.logits.shape:
            raise bad(
                self.source, f"codes of {code.shape[1]} bits", f"{clean.logits.shape[1]} bits, as the model returns"
            )
        return {"code": code}

    def __call__(self, seen: Seen, y: Tensor, state: State) -> Tensor:
        return counted(self.way * (self.soft(seen) * state["code"]).mean(1), seen.logits, self.way * state["code"])


def counted(smooth: Tensor, u: Tensor, code: Tensor) -> Tensor:
    """The gradient of `smooth` [N] under the number (sign(u) + u / 4K) . code / K: bits decide, then outputs."""
    u = u.detach()
    number = ((sign(u) + u / (4 * u.shape[1])) * code).mean(1)
    return smooth - smooth.detach() + number
