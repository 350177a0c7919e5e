"""Auto-PGD: projected gradient ascent that chooses its own step sizes, untargeted and against one target after another."""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from withstand.attacks.engine import Attack, Point, Problem
from withstand.attacks.pgd import needs_fixed_set
from withstand.errors import bad
from withstand.objectives import DLR, CrossEntropy, ObjectiveField, TargetedDLR
from withstand.registry import component, replace
from withstand.threats import L1, Linf, ThreatField, per_row


@component("attack", "apgd", systems=("classic_attacks",))
class APGD(Attack):
    """Auto-PGD: steepest steps with momentum, whose size is halved where an example stops rising.

    u = P(z + eta * steepest(grad f(z))),  z' = P(z + a (u - z) + (1 - a)(z - z_before)), a = 0.75 (1 at the first step),
    eta = 2 eps at first. At each checkpoint an example halves eta and goes back to its best point if f rose in too few
    of the steps since the last one (at most a share rho), or if neither eta nor its best value changed since then.

    Under L1 the steps are sparse: the signs of the share k of the values with the largest gradients, k following how
    sparse the best point is ("Mind the box"); the projection is the exact one onto the ball inside the box.

    threat: where to search. objective: f. steps: gradient steps per run. restarts: runs for examples that still stand.
    rho: see above. larger_eps: L1 only, spend 60 % of the steps in balls of 3 and 2 times the radius. views: wrap the
    gradient, e.g. `eot(20)`.

    The official code returns the latest misclassified iterate; here an example leaves with its first.

    Reference: Croce, Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
    attacks", 2020, arXiv 2003.01690; L1: Croce, Hein, "Mind the box: l1-APGD for sparse adversarial attacks on image
    classifiers", 2021, arXiv 2103.01208.
    """

    threat: ThreatField = Linf(8 / 255)
    objective: ObjectiveField = CrossEntropy()
    steps: int = 100
    restarts: int = 1
    rho: float = 0.75
    larger_eps: bool = False
    views: tuple[Any, ...] = ()

    prepares: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check(self)
        if self.restarts < 1:
            raise bad("restarts", self.restarts, "a whole number >= 1")

    def search(self, p: Problem) -> Point:
        p.clean  # noqa: B018 (the clean point counts as a candidate)
        _note_zero_gradients(p)
        z = p.x
        for restart in range(self.restarts):
            p.restart()
            if p.finished:
                break
            z = _run(self, p, f"apgd/{restart}")
        return z


@component("attack", "apgd_t", systems=("classic_attacks",))
class APGDT(Attack):
    """Targeted Auto-PGD: one run of APGD towards each of the classes that the clean logits rank next.

    targets: how many classes, from the runner-up on; at most one less than the model has (`notes["targets"]` says how
    many were tried). objective: must be a targeted one; its `rank` is set here. The rest as for `apgd`.

    Reference: Croce, Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
    attacks", 2020, arXiv 2003.01690.
    """

    threat: ThreatField = Linf(8 / 255)
    objective: ObjectiveField = TargetedDLR()
    targets: int = 9
    steps: int = 100
    rho: float = 0.75
    larger_eps: bool = False
    views: tuple[Any, ...] = ()

    prepares: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check(self)
        needs_ranks(self.objective, self.targets)

    def search(self, p: Problem) -> Point:
        _note_zero_gradients(p)
        z = p.x
        for rank in ranks(p, self.targets):
            p.aim(replace(self.objective, rank=rank))
            p.restart()
            if p.finished:
                break
            z = _run(self, p, f"apgd_t/{rank}")
        return z


def checkpoints(steps: int) -> list[int]:
    """The steps after which step sizes are looked at: periods of 22 % of all steps, shrinking by 3 % down to 6 %.

    >>> checkpoints(100)
    [22, 41, 57, 70, 80, 87, 93, 99]
    """
    period, least, less = (max(int(share * steps), 1) for share in (0.22, 0.06, 0.03))
    found, at = [], period
    while at <= steps:
        found.append(at)
        period = max(period - less, least)
        at += period
    return found


def ranks(p: Problem, targets: int) -> range:
    """The ranks of the target classes that this model allows, the runner-up first; noted."""
    number = min(targets, p.clean.logits.shape[1] - 1)
    p.notes["targets"] = number
    return range(2, number + 2)


def needs_ranks(objective: Any, targets: int) -> None:
    """Refuse objectives that cannot be aimed by rank."""
    if not hasattr(objective, "rank") or objective.target is not None:
        raise bad("objective", repr(objective), "an objective with a `rank` and no `target`, e.g. targeted_dlr()")
    if targets < 1:
        raise bad("targets", targets, "a whole number >= 1")


def _check(attack: APGD | APGDT) -> None:
    needs_fixed_set(attack)
    if attack.steps < 1:
        raise bad("steps", attack.steps, "a whole number >= 1")
    if not 0 < attack.rho <= 1:
        raise bad("rho", attack.rho, "a share in (0, 1]")
    if attack.larger_eps and not isinstance(attack.threat, L1):
        raise bad("larger_eps", f"True with {attack.threat!r}", "larger_eps=True with an l1 threat only")


def _run(attack: APGD | APGDT, p: Problem, stream: str) -> Tensor:
    """One run from a random start on the rows that are alive; returns the last iterate of those that still are."""
    if not isinstance(p.threat, L1):
        return _ascend(p, _start(p, stream), attack.steps, attack.rho)
    phases = [(1.0, attack.steps)]
    if attack.larger_eps:
        early = math.ceil(0.3 * attack.steps)
        phases = [(3.0, early), (2.0, early), (1.0, attack.steps - 2 * early)]
    noise = p.rows.normal(tuple(p.x.shape[1:]), stream, dtype=p.x.dtype)
    z = _grown(p, phases[0][0]).project(p.x_alive + noise, p.x_alive, p.box)
    last = z
    for factor, steps in phases:
        z, last = _ascend_sparse(p, _grown(p, factor).project(z, p.x_alive, p.box), steps, factor, attack.larger_eps)
    return last


def _start(p: Problem, stream: str) -> Tensor:
    """A random point with noise of size eps: uniform values under Linf, normal ones otherwise."""
    shape = tuple(p.x.shape[1:])
    if isinstance(p.threat, Linf):
        noise = p.rows.uniform(shape, stream, low=-1.0, high=1.0, dtype=p.x.dtype)
    else:
        noise = p.rows.normal(shape, stream, dtype=p.x.dtype)
    length = p.threat.scale(p.x_alive) / p.threat.norm(noise).clamp_min(1e-12)
    return p.project(torch.addcmul(p.x_alive, noise, per_row(length, noise)))


def _ascend(p: Problem, z: Tensor, steps: int, rho: float) -> Tensor:
    """APGD under a norm with dense steps. Rows that reach the goal leave."""
    value, gradient = p.value_and_gradient(z, remember="wins")
    _note_zero_gradients(p, gradient)
    s = {
        "z": z,
        "before": z,
        "gradient": gradient,
        "value": torch.zeros_like(value),  # as in the official code, the first step is compared with 0
        "best": z.clone(),
        "best_gradient": gradient.clone(),
        "best_value": value.clone(),
        "eta": 2 * p.threat.scale(p.x_alive),
        "rises": torch.zeros_like(value),
        "halved": torch.ones_like(value, dtype=torch.bool),
        "value_at_check": value.clone(),
    }
    dense = isinstance(p.threat, Linf)
    s, at, last_check = p.drop_done(s), set(checkpoints(steps)), 0
    for i in range(steps):
        if p.finished:
            break
        z, a = s["z"], 0.75 if i else 1.0
        # u, then z', in the memory of the iterate before the last two
        u = p.scratch(f"apgd/{i % 3}", z)
        u = torch.sign(s["gradient"], out=u) if dense else p.threat.steepest(s["gradient"])  # type: ignore[attr-defined]
        u = p.project_(torch.addcmul(z, u, per_row(s["eta"], z), out=u))
        u = p.project_(u.mul_(a).add_(z, alpha=2 * (1 - a)).sub_(s["before"], alpha=1 - a))
        s["before"], s["z"] = z, u
        before = s["value"]
        s["value"], s["gradient"] = p.value_and_gradient(u, remember="wins")
        s["rises"] += s["value"] > before
        s = p.drop_done(s)
        _follow_best(s)
        if i + 1 in at and not p.finished:
            stale = ~s["halved"] & (s["value_at_check"] >= s["best_value"])
            s["halved"] = (s["rises"] <= rho * (i + 1 - last_check)) | stale
            s["value_at_check"] = s["best_value"].clone()
            s["eta"] = torch.where(s["halved"], s["eta"] / 2, s["eta"])
            s["rises"].zero_()
            _go_back(s, s["halved"])
            last_check = i + 1
    if not p.finished:
        p.offer(s["best"], torch.zeros_like(s["halved"]), s["best_value"])
    return s["z"]


def _ascend_sparse(p: Problem, z: Tensor, steps: int, factor: float, continued: bool) -> tuple[Tensor, Tensor]:
    """APGD under L1 of factor times the radius; points of a larger ball are no results and nobody leaves there.

    continued: the start is no random point, so that its own sparsity says how many values move at first.
    Returns the best and the last point.
    """
    inside = factor == 1.0
    size = z[0].numel()
    value, gradient = p.value_and_gradient(z, remember="wins" if inside else "nothing")
    _note_zero_gradients(p, gradient)
    moved = _moved(z, p.x_alive)
    full = torch.full_like(moved, size)
    s = {
        "z": z,
        "gradient": gradient,
        "value": value,
        "best": z.clone(),
        "best_gradient": gradient.clone(),
        "best_value": value.clone(),
        "eta": _grown(p, factor).radius(p.x_alive),
        "share": moved / size / 1.5 if continued else torch.full_like(moved, 0.2),
        "moved": moved if continued else full,
    }
    s = p.drop_done(s)
    period = max(int(0.04 * steps), 1)
    for i in range(steps):
        if p.finished:
            break
        direction = _sparse_signs(s["gradient"], s["share"])
        s["z"] = _grown(p, factor).project(s["z"] + per_row(s["eta"], z) * direction, p.x_alive, p.box)
        s["value"], s["gradient"] = p.value_and_gradient(s["z"], remember="wins" if inside else "nothing")
        s = p.drop_done(s)
        _follow_best(s)
        if (i + 1) % period == 0 and not p.finished:
            moved, most = _moved(s["best"], p.x_alive), _grown(p, factor).radius(p.x_alive)
            sparser = moved / s["moved"].clamp_min(1) < 0.95
            s["share"], s["moved"] = moved / size / 1.5, moved
            s["eta"] = torch.where(sparser, most, torch.maximum(s["eta"] / 1.5, most / 10))
            _go_back(s, sparser)
    if inside and not p.finished:
        p.offer(s["best"], torch.zeros(len(s["z"]), dtype=torch.bool, device=z.device), s["best_value"])
    return s["best"], s["z"]


def _follow_best(s: dict[str, Tensor]) -> None:
    """Where the value has risen above the best so far, point, gradient and value become the best."""
    up = s["value"] > s["best_value"]
    wide = per_row(up, s["z"])
    torch.where(wide, s["z"], s["best"], out=s["best"])
    torch.where(wide, s["gradient"], s["best_gradient"], out=s["best_gradient"])
    torch.where(up, s["value"], s["best_value"], out=s["best_value"])


def _go_back(s: dict[str, Tensor], rows: Tensor) -> None:
    """The chosen rows continue from their best point."""
    wide = per_row(rows, s["z"])
    s["z"] = torch.where(wide, s["best"], s["z"])
    s["gradient"] = torch.where(wide, s["best_gradient"], s["gradient"])


def _grown(p: Problem, factor: float) -> L1:
    """The threat of the alive rows with its radius enlarged."""
    assert isinstance(p.threat, L1)
    return p.threat if factor == 1.0 else replace(p.threat, eps=p.threat.eps * factor)


def _moved(z: Tensor, x: Tensor) -> Tensor:
    """How many values differ, [A]."""
    return (z != x).flatten(1).sum(1).to(z.dtype)


def _sparse_signs(gradient: Tensor, share: Tensor) -> Tensor:
    """Signs of the gradient on the share [A] of values where it is largest, divided by how many those are."""
    size = gradient.abs().flatten(1)
    n = size.shape[1]
    index = ((1 - share) * n).clamp(0, n - 1).long()[:, None]
    least = size.sort(dim=1).values.gather(1, index)
    signs = torch.where(size >= least, gradient.flatten(1).sign(), 0.0)
    return (signs / signs.abs().sum(1, keepdim=True).clamp_min(1e-10)).reshape(gradient.shape)


def _note_zero_gradients(p: Problem, gradient: Tensor | None = None) -> None:
    """Remember the rows on which a DLR has no gradient at the start of a run: gradient attacks are blind there.

    Without a gradient the note is only opened: each block has one, whether a run starts in it or not.
    """
    if isinstance(p.objective, (DLR, TargetedDLR)):
        none = torch.zeros(len(p.x), dtype=torch.bool, device=p.x.device)
        note = p.notes.setdefault("dlr_without_gradient", none)
        if gradient is not None:
            note[p.alive] |= ~gradient.flatten(1).any(1)
