"""The theoretically provable attack: adversarial points with a flat neighbourhood."""

import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from withstand.attacks.engine import Point, Problem
from withstand.attacks.transfer.named import MI
from withstand.attacks.transfer.parts import Look, around, mean
from withstand.errors import bad
from withstand.models.state import frozen
from withstand.protocols import Oracle
from withstand.random import Rows
from withstand.registry import component
from withstand.threats import per_row


@component("attack", "tpa", systems=("tpa",))
class TPA(MI):
    """Theoretically provable attack (TPA): a rising loss at the point, flat in its neighbourhood.

    variant "paper" ascends g - weight * mean (h - g_u) / probe over points x + u, u uniform within radius, with h the
    gradient at x + u + probe * g_u / |g_u|_2: L - weight * E |grad L(x + u)|_2 by finite differences. Its steps can lead
    downhill: once weight exceeds 1 / (p |w|) on a logistic model with weights w and probability p of the true class, the
    point becomes more right. "published" is what the authors' code does: (1 - weight) * g + weight * mean h, h the gradient
    at x + u - probe * sign(g_u), then momentum on the signs, so that steps grow up to 1 / (1 - decay) times; only that here
    it begins at the clean point (there up to 1/200 above it, in normalised units) and is clipped to the range of images at
    every step, not at the last alone. `notes` has "loss_fell" [N]: the objective at the last step taken from was below the
    first.

    weight: None takes 5 (paper, lambda) or 0.8 (published, a share). radius, probe: in input units; None takes 16/255 and
    0.05 (paper), 28/255 and 2.9/255 (published, converted from normalised units). samples: draws per step, each two
    gradients. decay: of the momentum on signs; None takes 0 (paper) or 0.9 (published).

    Reference: Fan, Li, Chen, Zhou, Li, "Transferability Bound Theory: Exploring Relationship between Adversarial
    Transferability and Flatness", 2024, arXiv 2311.06423.
    """

    steps: int = 20
    step: float | None = 0.1
    shapings: tuple[Any, ...] = ()
    variant: Literal["published", "paper"] = "published"
    weight: float | None = None
    radius: float | None = None
    probe: float | None = None
    samples: int = 10
    decay: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decay is not None and not 0 <= self.decay < 1:
            raise bad("decay", self.decay, "a number in [0, 1)")
        if self.parameterisation is not None:
            raise bad("parameterisation", repr(self.parameterisation), "None: the neighbourhood is one of inputs")
        self.neighbourhood  # noqa: B018 (refuses senseless settings before work starts)

    @property
    def neighbourhood(self) -> Any:
        """The view of this variant."""
        made = Penalty if self.variant == "paper" else Mix
        given = {"weight": self.weight, "radius": self.radius, "probe": self.probe, "samples": self.samples}
        return made(**{k: v for k, v in given.items() if v is not None})

    @property
    def looks(self) -> int:
        """Gradients per step."""
        return self.neighbourhood.looks

    def problem(self, **settings: Any) -> Problem:
        return super().problem(**{"views": (_Watch(), self.neighbourhood, *self.views), **settings})

    def search(self, p: Problem) -> Point:
        z = super().search(p)
        fell = int(p.notes["loss_fell"].sum())
        if 2 * fell > len(p.x):
            text = f"tpa: the objective fell on {fell} of {len(p.x)} examples; lower the weight or take variant='published'"
            warnings.warn(text, stacklevel=2)
        return z

    def move(self, p: Problem, z: Point, gradient: Point, size: float) -> Point:
        decay = self.decay if self.decay is not None else 0.0 if self.variant == "paper" else 0.9
        assert isinstance(z, Tensor)
        assert isinstance(gradient, Tensor)
        threat: Any = p.threat
        direction, before = threat.steepest(gradient), p.memory.get("velocity")
        p.memory["velocity"] = velocity = direction if before is None else direction + decay * before
        return p.project(z + per_row(threat.scale(p.x_alive) * size, z) * velocity)


class _Watch:
    """Notes of which rows the objective fell, at no further pass."""

    def wrap(self, oracle: Oracle, search: Any) -> Oracle:
        search.notes["loss_fell"] = torch.zeros(len(search.x), dtype=torch.bool, device=search.x.device)

        def watched(x: Tensor, rows: Rows, step: int) -> Look:
            gradient, value = oracle(x, rows, step)
            first = search.memory.setdefault("first value", value.clone())
            search.notes["loss_fell"][search.alive] = value < first
            return gradient, value

        return watched


@component("view", "neighbourhood_penalty", systems=("tpa",))
class Penalty:
    """g - weight * mean (h - g_u) / probe: the gradient of L - weight * E |grad L(x + u)|_2, by finite differences.

    u is uniform within radius, g_u the gradient at x + u, h at x + u + probe * g_u / |g_u|_2. With radius 0 the norm at
    the point itself is penalised. radius, probe: in input units. A look costs 1 + 2 samples.

    Reference: Fan et al., 2024, arXiv 2311.06423 (equations 5 to 10).
    """

    weight: float = 5.0
    radius: float = 16 / 255
    probe: float = 0.05
    samples: int = 10

    def __post_init__(self) -> None:
        if not 0 <= self.weight < float("inf"):
            raise bad("weight", self.weight, "a number >= 0")
        _check(self)

    @property
    def looks(self) -> int:
        """How often one look asks the model."""
        return 1 + 2 * self.samples

    def __call__(self, oracle: Oracle) -> Oracle:
        def probed(point: Tensor, near: Tensor) -> Tensor:
            length = near.flatten(1).norm(dim=1).clamp_min(1e-12)
            return point + self.probe * near / per_row(length, near)

        def penalised(x: Tensor, rows: Rows, step: int) -> Look:
            gradient, value = oracle(x, rows, step * self.looks)
            rise = _behind(self, oracle, x, rows, step, probed, lambda near, far: (far - near) / self.probe)
            return gradient - self.weight * rise, value

        return penalised


@component("view", "neighbourhood_mix", systems=("tpa",))
class Mix:
    """(1 - weight) * g + weight * mean h, h the gradient at x + u - probe * sign(gradient at x + u), u uniform in radius.

    radius, probe: in input units. A look costs 1 + 2 samples.

    Reference: the authors' code for Fan et al., 2024, arXiv 2311.06423, which differs from the paper's equations.
    """

    weight: float = 0.8
    radius: float = 28 / 255
    probe: float = 2.9 / 255
    samples: int = 10

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise bad("weight", self.weight, "a share in [0, 1]")
        _check(self)

    @property
    def looks(self) -> int:
        """How often one look asks the model."""
        return 1 + 2 * self.samples

    def __call__(self, oracle: Oracle) -> Oracle:
        def lower(point: Tensor, near: Tensor) -> Tensor:
            return point.add(near.sign(), alpha=-self.probe)

        def mixed(x: Tensor, rows: Rows, step: int) -> Look:
            gradient, value = oracle(x, rows, step * self.looks)
            behind = _behind(self, oracle, x, rows, step, lower, lambda near, far: far)
            return torch.lerp(gradient, behind, self.weight), value

        return mixed


def _behind(
    view: Any,
    oracle: Oracle,
    x: Tensor,
    rows: Rows,
    step: int,
    probed: Callable[[Tensor, Tensor], Tensor],
    take: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """The mean over neighbours of take(gradient there, gradient at the point that `probed` makes of both)."""

    def look(i: int) -> Look:
        own = step * view.looks + 1 + 2 * i
        point = around(rows, x, view.radius, "tpa", own)
        near, value = oracle(point, rows, own)
        far, _ = oracle(probed(point, near), rows, own + 1)
        return take(near, far), value

    return mean(look(i) for i in range(view.samples))[0]


def _check(view: Any) -> None:
    if not 0 <= view.radius < float("inf"):
        raise bad("radius", view.radius, "a number >= 0 in input units, e.g. 16/255")
    if not 0 < view.probe < float("inf"):
        raise bad("probe", view.probe, "a number > 0 in input units, e.g. 0.05")
    if view.samples < 1:
        raise bad("samples", view.samples, "a whole number >= 1")


def neighbourhood_gradient_norm(
    model: nn.Module, x: Tensor, y: Tensor, radius: float, samples: int = 10, seed: int = 0
) -> Tensor:
    """How steep the cross-entropy is around x: the mean of |grad L(x + u)|_2 over u uniform within radius, [N].

    x [N, ...], y long [N]; radius >= 0 in input units. What TPA keeps low, to compare attacks by.
    """
    if samples < 1:
        raise bad("samples", samples, "a whole number >= 1")
    rows, total = Rows.count(seed, len(x), x.device), x.new_zeros(len(x))
    with frozen(model), torch.enable_grad():
        for i in range(samples):
            point = around(rows, x, radius, "neighbourhood", i).detach().requires_grad_(True)
            loss = nn.functional.cross_entropy(model(point), y, reduction="sum")
            total += torch.autograd.grad(loss, point)[0].flatten(1).norm(dim=1)
    return total / samples
