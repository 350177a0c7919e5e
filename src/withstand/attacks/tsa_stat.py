"""TSA-STAT: series whose statistics stay what they were, found among polynomial transformations."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from withstand.attacks.engine import Attack, AttackResult, Problem
from withstand.attacks.engine.needs import needs_positive, needs_threat, needs_whole
from withstand.attacks.engine.outputs import needs_gradient, usable
from withstand.errors import bad
from withstand.objectives import Penalised, TargetedMargin
from withstand.parameterisations import Polynomial
from withstand.random import Rows
from withstand.registry import component
from withstand.statistics import Statistics
from withstand.threats import ThreatField, clip, per_row

_FLOOR, _HALVING = 1e-4, 100  # the rate's lowest value, and the steps after which it halves
_SLACK = 0.01  # the search of a series ends this close to its lowest loss
_JITTER = 0.01  # uniform noise around the identity of polynomials of degree >= 1


@component("attack", "tsa_stat", systems=("tsa_stat",))
class TSASTAT(Attack):
    """Gradient descent on the coefficients of a polynomial transformation, with a price on changed statistics.

    min_a max(max_{i != t} z_i - z_t, rho) + stat_weight * sum_i a_i max_c |S_i(PT(x; a))_c - S_i(x)_c|,
    PT(x; a)_cj = sum_k a_kcj x_cj^k (degree 0: x + a_0). Plain descent with rate lr, halved every 100 steps down to 1e-4;
    a series is done when its loss is at most rho + 0.01. The coefficients of x^k move by lr / max(1, mean(x^2k)): with one
    rate for all of them, powers of series that are not normalised diverge. Degree 0 begins at U(-1, 1); higher degrees
    begin near the identity, since the official code's U(-1, 1) fails there.

    Of all points visited, the one returned reached its goal inside the threat's set, and has the lowest loss of these; else
    the lowest loss. The distance is reported with it: success alone, or a small distance alone, says nothing.

    threat: which statistics, their weights, and the eps beyond which a point counts as failed (None: none does). target: the
    class t; series of that class are left alone and count as failed. None takes the runner-up of the clean logits, where
    any wrong class is a success. rho: loss below which confidence buys nothing more, < 0. universal: one transformation for
    each class of y, found on the mean loss of its series. warm_start: each series of a predicted class begins at the
    coefficients of the one before it, as in the official code; the result then depends on the order of the series, and the
    search takes as many rounds as the largest class has series. Both see the whole batch at once.

    The result's notes hold "coefficients" [N, degree + 1, C, T]: `Polynomial(degree).decode` applies them to other series,
    and `universal_coefficients` picks those of each class.

    >>> TSASTAT(target=0, steps=400).run(model, x, y, box=None).distance

    Reference: Belkhouja, Doppa, "Adversarial Framework with Certified Robustness for Time-Series Domain via Statistical
    Features", JAIR 73, 2022, arXiv 2207.04307; rates, start and stop as in the official code.
    """

    threat: ThreatField = Statistics()
    target: int | None = None
    degree: int = 0
    rho: float = -1.0
    lr: float = 0.5
    steps: int = 5000
    stat_weight: float = 1.0
    universal: bool = False
    warm_start: bool = False

    def __post_init__(self) -> None:
        needs_threat(self, Statistics)
        needs_whole(self, "steps")
        needs_positive(self, "lr")
        if not self.rho < 0:
            raise bad("rho", self.rho, "a number < 0", "It is the loss at which the target leads by the margin -rho.")
        if self.target is not None and self.target < 0:
            raise bad("target", self.target, "a class >= 0, or None for the runner-up")
        if self.universal and self.warm_start:
            raise bad("warm_start", True, "False with universal=True, which has one transformation for all series")
        Polynomial(self.degree)
        Penalised("cross_entropy", self.threat, self.stat_weight)

    @property
    def objective(self) -> Penalised:
        """Minus the loss, [N]."""
        return Penalised(TargetedMargin(self.target, kappa=-self.rho), self.threat, self.stat_weight)

    def problem(self, **settings: Any) -> Problem:
        return super().problem(**{**settings, "nearest": False})  # without eps the lowest loss counts, not the nearest

    def run(
        self, model: Any, x: Tensor, y: Tensor | None = None, *, block: int | None = None, **more: Any
    ) -> AttackResult:
        """See `Attack.run`. Forms that share coefficients between series take the batch as one block."""
        return super().run(model, x, y, block=len(x) if self.universal or self.warm_start else block, **more)

    def search(self, p: Problem) -> Tensor:
        self.threat.check(p.x)  # type: ignore[attr-defined]
        begun = Polynomial(self.degree).identity(p.x)["coefficients"]
        clean = p.clean.logits.argmax(1)
        p.state  # noqa: B018 (aims; refuses targets that are no class)
        skipped = torch.zeros_like(p.won) if self.target is None else p.y == self.target
        p.won &= ~skipped
        best = _Best.of(p.x, begun, p.won)
        left = (~skipped & ~(p.won & self.active)).nonzero().flatten()
        kept: dict[int, Tensor] = {}
        for rows in _rounds(left, clean) if self.warm_start else [left]:
            if not len(rows):
                continue
            p._select(rows)
            family = p.y_alive if self.universal else clean[rows] if self.warm_start else None
            group = torch.arange(len(rows), device=rows.device)
            if self.universal:
                family, group = p.y_alive.unique(return_inverse=True)
            start = self._start(p, p.rows.ids if family is None else family)
            if self.warm_start:
                classes = clean[rows].tolist()
                start = torch.stack([kept.get(c, a) for c, a in zip(classes, start)])
            self._descend(p, start, group, best)
            if self.warm_start:
                kept.update(zip(clean[rows].tolist(), best.a[rows]))
        p._select(torch.arange(len(p.x), device=p.x.device))
        p.won.copy_(best.hit)
        p.best.copy_(best.z)
        p.best_value.copy_(best.value)
        p.cost_at_win.copy_(best.cost)
        p.notes["coefficients"] = best.a
        return best.last

    def _start(self, p: Problem, ids: Tensor) -> Tensor:
        shape = tuple(p.x.shape[1:])
        size = _JITTER if self.degree else 1.0
        noise = Rows(p.rows.seed, ids).uniform((self.degree + 1, *shape), "coefficients", 0, -size, size, p.x.dtype)
        return noise + Polynomial(self.degree).identity(p.x[:1])["coefficients"]

    def _descend(self, p: Problem, a: Tensor, group: Tensor, best: "_Best") -> None:
        """Move coefficients a [G, ...], shared by the alive rows as `group` [A] says, and keep the best of each row."""
        powers = torch.arange(self.degree + 1, device=a.device)
        size = torch.stack([_mean(p.x_alive.pow(2 * int(k)).flatten(1).mean(1), group, len(a)) for k in powers], 1)
        size = size.clamp_min(1)[(..., *[None] * (a.dim() - 2))]
        judged = self.keep == "best" or self.active
        for step in range(self.steps + judged):
            z, value, hit, gradient = self._look(p, a, group, step < self.steps)
            share, worth = _mean(hit.to(value), group, len(a)), _mean(value, group, len(a))
            best.update(p, z, a[group], hit, share[group], worth[group])
            if gradient is not None:
                rate = max(self.lr * 0.5 ** (step // _HALVING), _FLOOR)
                done = (worth >= -self.rho - _SLACK) & (share == 1)
                a = a + per_row(torch.where(done & self.active, 0.0, rate).to(a), a) * gradient / size
                if self.active and bool(done.any()):
                    stay = ~done
                    group = p.keep_only(stay[group], group)
                    a, size, group = a[stay], size[stay], (stay.cumsum(0) - 1)[group]
                    if p.finished:
                        return
        best.last[p.alive] = clip(Polynomial(self.degree).decode({"coefficients": a[group]}, p.x_alive), p.box)

    def _look(
        self, p: Problem, a: Tensor, group: Tensor, descend: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Points, minus their losses [A], whether they reach the goal, and the ascent direction [G, ...] of the mean."""
        with torch.set_grad_enabled(descend):
            leaf = a.detach().requires_grad_(descend)
            z = clip(Polynomial(self.degree).decode({"coefficients": leaf[group]}, p.x_alive), p.box)
            seen = p._see(z)
            value = p.objective(seen, p.y_alive, p.state)
            gradient = None
            if descend:
                needs_gradient(value)
                gradient = usable(torch.autograd.grad(_mean(value, group, len(a)).sum(), leaf)[0])
        p.passes(1, int(descend))
        p._refuse_nan(seen, value)
        with torch.no_grad():
            return z.detach(), value.detach(), p.broken(seen), gradient


@dataclass
class _Best:
    """The best point of each row of a block: z [N, ...], its coefficients a, whether it reached the goal, its value, the
    share of its group that did; `last` is the last iterate and `cost` what the first success had cost, -1 without."""

    z: Tensor
    a: Tensor
    last: Tensor
    hit: Tensor
    share: Tensor
    value: Tensor
    cost: Tensor

    @classmethod
    def of(cls, x: Tensor, a: Tensor, won: Tensor) -> "_Best":
        low = x.new_full((len(x),), -torch.inf)
        return cls(x.clone(), a, x.clone(), won.clone(), won.to(x.dtype), low, torch.where(won, 1, -1))

    def update(self, p: Problem, z: Tensor, a: Tensor, hit: Tensor, share: Tensor, value: Tensor) -> None:
        rows = p.alive
        first = hit & (self.cost[rows] < 0)
        if bool(first.any()):
            self.cost[rows[first]] = (p.forwards + p.backwards)[rows[first]]
        better = (share > self.share[rows]) | ((share == self.share[rows]) & (value > self.value[rows]))
        chosen = rows[better]
        for held, new in ((self.z, z), (self.a, a), (self.hit, hit), (self.share, share), (self.value, value)):
            held[chosen] = new[better].to(held.dtype)


def _mean(values: Tensor, group: Tensor, groups: int) -> Tensor:
    """The mean of each group, [groups]."""
    zeros = values.new_zeros(groups)
    return zeros.index_add(0, group, values) / zeros.index_add(0, group, torch.ones_like(values))


def _rounds(rows: Tensor, classes: Tensor) -> list[Tensor]:
    """The first row of each class, then the second of each, ..."""
    turn, seen = [], {}
    for c in classes[rows].tolist():
        turn.append(seen.get(c, 0))
        seen[c] = turn[-1] + 1
    order = torch.tensor(turn, device=rows.device)
    return [rows[order == t] for t in range(max(turn, default=-1) + 1)]


def universal_coefficients(result: AttackResult, fitted: Tensor, y: Tensor) -> Tensor:
    """The universal transformation of each label y [N], from a result of `tsa_stat(universal=True)`; [N, degree + 1, ...].

    fitted: the labels that the result was made with. Raises: BadInput for labels that were not among them.
    """
    if missing := sorted(set(y.tolist()) - set(fitted.tolist())):
        raise bad("y", f"the label {missing[0]}", f"labels that were attacked: {sorted(set(fitted.tolist()))}")
    first = {int(c): int((fitted == c).nonzero()[0]) for c in fitted.unique()}
    return result.notes["coefficients"][[first[c] for c in y.tolist()]]
