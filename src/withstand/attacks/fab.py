"""Fast adaptive boundary attack: the nearest point beyond the decision boundary, by projections onto linearised ones."""

from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from withstand.attacks.apgd import needs_ranks, ranks
from withstand.attacks.engine import Attack, Problem
from withstand.attacks.engine.gradients import each_gradient
from withstand.attacks.hyperplane import to_hyperplane
from withstand.errors import bad
from withstand.objectives import Margin, TargetedDifference, at
from withstand.registry import component, replace
from withstand.threats import L1, L2, Linf, Threat, ThreatField, clip, clip_, per_row

_DUAL = {Linf: 1.0, L2: 2.0, L1: torch.inf}


@component("attack", "fab", systems=("classic_attacks",))
class FAB(Attack):
    """Fast adaptive boundary attack towards the nearest of all linearised boundaries.

    With f_k = z_k - z_y and w_k its gradient at the present point u, k is the class with the smallest |f_k| / ||w_k||_q (q
    dual to the norm). d1 and d2 are the shortest steps inside the box from u and from the clean x onto the plane where
    f_k, linearised at u, vanishes; then, with a = min(||d1|| / (||d1|| + ||d2||), alpha_max),

        u <- clip((1 - a)(u + eta d1) + a (x + eta d2)).

    A misclassified u is remembered if it is the closest, and drawn back: u <- x + beta (u - x).

    threat: linf, l2 or l1. Without a radius the nearest point is the result; with one, an example is done as soon as
    it is broken within it. steps: per restart. restarts: the first starts at x, the others at a random point at eps / 2
    (without a radius: half the distance found so far). Costs a backward pass for each class and step.

    Reference: Croce, Hein, "Minimally distorted Adversarial Examples with a Fast Adaptive Boundary Attack", 2020, arXiv
    1907.02044.
    """

    threat: ThreatField = Linf(8 / 255)
    steps: int = 100
    restarts: int = 1
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9

    objective: ClassVar[Margin] = Margin()
    nearest: ClassVar[bool] = True
    prepares: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check(self)
        if self.restarts < 1:
            raise bad("restarts", self.restarts, "a whole number >= 1")

    def search(self, p: Problem) -> Tensor:
        p.clean  # noqa: B018 (the clean point counts as a candidate)
        z = p.x
        for restart in range(self.restarts):
            p.restart()
            leave_broken(p, p.x_alive)
            if p.finished:
                break
            z = p.x_alive if restart == 0 else self._random(p, restart)
            for _ in range(self.steps):
                value, slope = self._closest(p, z)
                z = forward_and_back(p, z, value, slope, self)
                if p.finished:
                    break
        return z

    def _closest(self, p: Problem, z: Tensor) -> tuple[Tensor, Tensor]:
        """The difference [A] and its gradient [A, ...] of the class whose linearised boundary is closest to z.

        One class after the other: all gradients of 1,000 classes would be a thousand times the batch.
        """
        least = torch.full((len(z),), torch.inf, dtype=z.dtype, device=z.device)
        value, slope = torch.zeros_like(least), torch.zeros_like(z)
        for k, (f, w) in enumerate(each_gradient(p, z, partial(_differences, y=p.y_alive))):
            size = torch.linalg.vector_norm(w.flatten(1), ord=_DUAL[type(self.threat)], dim=1)
            away = torch.where(p.y_alive == k, torch.inf, f.abs() / size.clamp_min(1e-12))
            closer = away < least
            least, value = torch.where(closer, away, least), torch.where(closer, f, value)
            slope = torch.where(per_row(closer, z), w, slope)
        return value, slope

    def _random(self, p: Problem, restart: int) -> Tensor:
        """A random point at half the radius, or at half the distance found so far where there is no radius."""
        shape, stream = tuple(p.x.shape[1:]), f"fab/{restart}"
        if isinstance(self.threat, Linf):
            noise = p.rows.uniform(shape, stream, low=-1.0, high=1.0, dtype=p.x.dtype)
        else:
            noise = p.rows.normal(shape, stream, dtype=p.x.dtype)
        far = p.threat.radius(p.x_alive).minimum(p.best_distance[p.alive])
        far = torch.where(far.isfinite(), far, 0.0)
        return clip(p.x_alive + per_row(far / 2 / p.threat.norm(noise), noise) * noise, p.box)


@component("attack", "fab_t", systems=("classic_attacks",))
class FABT(Attack):
    """Targeted FAB: one run towards each of the classes that the clean logits rank next.

    targets: how many classes, from the runner-up on; at most one less than the model has (`notes["targets"]` says how
    many were tried). The rest as for `fab`, with one backward pass a step.

    Reference: Croce, Hein, "Minimally distorted Adversarial Examples with a Fast Adaptive Boundary Attack", 2020, arXiv
    1907.02044; the targeted form: Croce, Hein, 2020, arXiv 2003.01690.
    """

    threat: ThreatField = Linf(8 / 255)
    targets: int = 9
    steps: int = 100
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9

    objective: ClassVar[TargetedDifference] = TargetedDifference()
    nearest: ClassVar[bool] = True
    prepares: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check(self)
        needs_ranks(self.objective, self.targets)

    def search(self, p: Problem) -> Tensor:
        z = p.x
        for rank in ranks(p, self.targets):
            p.aim(replace(self.objective, rank=rank))
            p.restart()
            z = leave_broken(p, p.x_alive)
            for _ in range(self.steps):
                if p.finished:
                    break
                value, gradient = p.value_and_gradient(z, remember="nothing")
                z = forward_and_back(p, z, value, gradient, self)
        return z


def forward_and_back(p: Problem, z: Tensor, value: Tensor, gradient: Tensor, attack: FAB | FABT) -> Tensor:
    """One step of FAB from points z [A, ...] where the difference of logits is value [A], with its gradient [A, ...].

    Returns the next points of the rows that stay.
    """
    w, x, u = gradient.flatten(1), p.x_alive.flatten(1), z.flatten(1)
    moved, other = p.scratch("moved", u), p.scratch("other", u)
    torch.sub(u, x, out=moved)
    d = to_hyperplane(u, w, -value, p.threat, p.box, p.scratch)
    near = p.threat.norm(d).clamp_min(1e-8)
    gap = torch.linalg.vecdot(w, moved) - value
    torch.add(u, d, alpha=attack.eta, out=moved)
    d = to_hyperplane(x, w, gap, p.threat, p.box, p.scratch)
    far = p.threat.norm(d).clamp_min(1e-8)
    torch.add(x, d, alpha=attack.eta, out=other)
    a = (near / (near + far)).clamp_max(attack.alpha_max)[:, None]
    z = clip_(torch.lerp(moved, other, a), p.box).reshape(z.shape)
    broken = p.broken(p.look(z)[0])
    if not bool(broken.any()):
        return z
    z = torch.where(per_row(broken, z), torch.lerp(p.x_alive, z, attack.beta), z)
    return leave_broken(p, z)


def leave_broken(p: Problem, z: Tensor) -> Tensor:
    """Let the rows leave that are broken within the radius; z [A, ...] of those that stay."""
    if p.active and p.threat.eps is not None:
        done = p.best_distance[p.alive] <= p.threat.radius(p.x_alive)
        if bool(done.any()):
            return p.keep_only(~done, z)
    return z


def _differences(logits: Tensor, y: Tensor) -> Tensor:
    """z_k - z_y for every class k, [A, K]."""
    return logits - at(logits, y)[:, None]


def _check(attack: FAB | FABT) -> None:
    threat: Threat = attack.threat
    if type(threat) not in _DUAL:
        raise bad("threat", repr(threat), "linf, l2 or l1, with or without a radius")
    if attack.steps < 1:
        raise bad("steps", attack.steps, "a whole number >= 1")
    if not 0 < attack.alpha_max <= 1:
        raise bad("alpha_max", attack.alpha_max, "a share in (0, 1]")
    if attack.eta < 1:
        raise bad("eta", attack.eta, "a number >= 1")
    if not 0 < attack.beta < 1:
        raise bad("beta", attack.beta, "a share in (0, 1)")
