"""Threats: the sets that an adversary may choose a point from.

A threat is a ball around the clean example, measured on the whole example: `Linf(8/255)`, `L2(0.5)`, `L1(12)`,
`L0(24)`. The radius `eps` is in input units (pixels in [0, 1]), a number or a tensor [N] of one radius per example;
`None` means "no bound": the attack looks for the nearest point instead.

All methods take points, not perturbations: x [N, ...] is clean, z [N, ...] is any point of the same shape. `box` is the
range of the input itself, e.g. (0, 1) for images, or None. Clean points are taken to lie inside their box.

Must also carry, later: patches, unions, statistics of a series (only `contains` and `distance`), per-leaf sets of a
parameterisation.
"""

from typing import Annotated, Any

import torch
from pydantic import BeforeValidator, PlainValidator
from torch import Tensor

from withstand.errors import bad
from withstand.random import Rows
from withstand.registry import coerce, component, replace

Box = tuple[float, float] | None


def _radius(value: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, Tensor):
        if value.dim() != 1 or not torch.isfinite(value).all() or (value < 0).any():
            raise bad("eps", f"a tensor of shape {tuple(value.shape)}", "a tensor [N] of finite radii >= 0")
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
        raise bad(
            "eps",
            repr(value),
            "a finite number >= 0, a tensor [N], or None for minimum distance",
            "Radii are in input units: write 8/255, not 8.",
        )
    return float(value)


Radius = Annotated[Any, PlainValidator(_radius)]


def per_row(value: Tensor, like: Tensor) -> Tensor:
    """[N] -> [N, 1, 1, ...], ready to broadcast against `like`."""
    return value.reshape(-1, *[1] * (like.dim() - 1))


def clip(z: Tensor, box: Box) -> Tensor:
    """z moved into the range of the input."""
    return z if box is None else z.clamp(*box)


def clip_(z: Tensor, box: Box) -> Tensor:
    """`clip` in z's own memory."""
    return z if box is None else z.clamp_(*box)


class Threat:
    """What all threats share. `distance` is all that a new kind of set must define; the rest exists where it can."""

    eps: Any = None

    def norm(self, delta: Tensor) -> Tensor:
        """The size [N] of perturbations [N, ...]."""
        raise TypeError(f"{self!r} has no norm")

    def distance(self, x: Tensor, z: Tensor) -> Tensor:
        """How far z is from x, [N], in the unit of `eps`."""
        return self.norm(z - x)

    def contains(self, x: Tensor, z: Tensor, tolerance: float = 1e-6) -> Tensor:
        """Whether z lies in the set around x, bool [N]; the tolerance is absolute."""
        if self.eps is None:
            return torch.ones(len(x), dtype=torch.bool, device=x.device)
        return self.distance(x, z) <= self.radius(x) + tolerance

    def radius(self, x: Tensor) -> Tensor:
        """The radius of every example, [N]; infinite where there is no bound."""
        value = float("inf") if self.eps is None else self.eps
        if isinstance(value, Tensor):
            if len(value) != len(x):
                raise bad("eps", f"{len(value)} radii", f"one radius for each of the {len(x)} examples")
            return value.to(x)
        return torch.full((len(x),), value, dtype=x.dtype, device=x.device)

    def take(self, rows: Tensor) -> "Threat":
        """The threat for a selection of the examples."""
        return replace(self, eps=self.eps[rows.to(self.eps.device)]) if isinstance(self.eps, Tensor) else self

    def scale(self, x: Tensor) -> Tensor:
        """The length [N] that step sizes are measured against: the radius, where steps are in its unit."""
        return self.radius(x)


@component("threat", "linf")
class Linf(Threat):
    """Every value may change by at most eps.

    >>> Linf(8 / 255).project(torch.ones(1, 2), torch.zeros(1, 2), (0, 1)) * 255
    tensor([[8., 8.]])
    """

    eps: Radius = None

    def norm(self, delta: Tensor) -> Tensor:
        return delta.abs().flatten(1).amax(1)

    def interval(self, x: Tensor, box: Box) -> tuple[Tensor, Tensor]:
        """The set inside the box as its lowest and highest point; projection is one clamp between them. In a box, radii are
        taken less half a unit in the last place of its ends, so that rounding carries no point outside."""
        eps = per_row(self.radius(x), x)
        if box is not None and x.dtype in (torch.float32, torch.float64):
            slack = torch.finfo(x.dtype).eps / 2 * max(abs(box[0]), abs(box[1]))
            eps = torch.where(eps > 1e4 * slack, eps - slack, eps)
        return clip_(x - eps, box), clip_(x + eps, box)

    def project(self, z: Tensor, x: Tensor, box: Box = None) -> Tensor:
        """The nearest point of the set inside the box (exact)."""
        return torch.clamp(z, *self.interval(x, box))

    def steepest(self, gradient: Tensor) -> Tensor:
        """The direction of size 1 along which a linear function with this gradient grows most: its sign."""
        return gradient.sign()

    def random_start(self, x: Tensor, rows: Rows, stream: str = "start", step: int = 0, box: Box = None) -> Tensor:
        """Uniform in the ball, then moved into the box."""
        noise = rows.uniform(tuple(x.shape[1:]), stream, step, -1.0, 1.0, x.dtype)
        return clip(x + per_row(self.radius(x), x) * noise, box)


@component("threat", "l2")
class L2(Threat):
    """The Euclidean length of the change is at most eps."""

    eps: Radius = None

    def norm(self, delta: Tensor) -> Tensor:
        return delta.flatten(1).norm(dim=1)

    def project(self, z: Tensor, x: Tensor, box: Box = None) -> Tensor:
        """Shrunk onto the ball, then moved into the box.

        The result always lies in both; it is the nearest such point wherever the box does not bind (as in AutoAttack).
        """
        delta = z - x
        length = self.norm(delta)
        shrink = (self.radius(x) / length.clamp_min(1e-12)).clamp_max(1.0)
        return clip(x + delta * per_row(shrink, x), box)

    def steepest(self, gradient: Tensor) -> Tensor:
        """The gradient divided by its length; zero where it is zero."""
        return gradient / per_row(self.norm(gradient).clamp_min(1e-12), gradient)

    def random_start(self, x: Tensor, rows: Rows, stream: str = "start", step: int = 0, box: Box = None) -> Tensor:
        """Uniform in the ball (direction normal, length U^(1/d)), then moved into the box."""
        direction = rows.normal(tuple(x.shape[1:]), stream, step, x.dtype)
        share = rows.uniform((), f"{stream}/length", step, dtype=torch.float64) ** (1 / x[0].numel())
        length = self.radius(x) * share.to(x.dtype) / self.norm(direction).clamp_min(1e-12)
        return clip(x + direction * per_row(length, x), box)


@component("threat", "l1")
class L1(Threat):
    """The sum of the absolute changes is at most eps."""

    eps: Radius = None

    def norm(self, delta: Tensor) -> Tensor:
        return delta.abs().flatten(1).sum(1)

    def project(self, z: Tensor, x: Tensor, box: Box = None) -> Tensor:
        """The nearest point of the ball intersected with the box (exact, by sorting breakpoints).

        The solution moves coordinate i by min(max(|d_i| - l, 0), room_i), where room_i is the way to the box and l >=
        0 is the smallest number that makes the sum at most eps; the sum is piecewise linear in l with corners at |d_i|
        and |d_i| - room_i.

        Reference: Croce, Hein, "Mind the box: l1-APGD for sparse adversarial attacks on image classifiers", ICML 2021,
        arXiv 2103.01208.
        """
        delta = (z - x).flatten(1).double()
        size = delta.abs()
        if box is None:
            room = torch.full_like(size, float("inf"))
        else:
            flat = x.flatten(1).double()
            room = torch.where(delta > 0, box[1] - flat, flat - box[0]).clamp_min(0)
        eps = self.radius(x).double()[:, None]
        corners = torch.cat([size, (size - room).clamp_min(0)], 1)
        turn = torch.cat([torch.ones_like(size), -torch.ones_like(size)], 1)
        corners, order = corners.sort(dim=1, descending=True)
        slope = turn.gather(1, order).cumsum(1)  # coordinates that still grow, just below each corner
        drop = corners - torch.cat([corners[:, 1:], torch.zeros_like(corners[:, :1])], 1)
        total = (slope * drop).cumsum(1)  # the sum of the changes when l stands at the next corner
        first = (total < eps).sum(1, keepdim=True)  # the piece in which the sum reaches eps
        inside = first >= corners.shape[1]
        first = first.clamp_max(corners.shape[1] - 1)
        before = torch.where(first > 0, total.gather(1, (first - 1).clamp_min(0)), 0.0)
        level = corners.gather(1, first) - (eps - before) / slope.gather(1, first).clamp_min(1)
        level = torch.where(inside, 0.0, level.clamp_min(0))
        moved = torch.minimum((size - level).clamp_min(0), room) * delta.sign()
        return clip(x + moved.to(x.dtype).reshape(x.shape), box)

    def steepest(self, gradient: Tensor) -> Tensor:
        """All of the step on the coordinate with the largest gradient."""
        flat = gradient.flatten(1)
        top = flat.abs().argmax(1, keepdim=True)
        return torch.zeros_like(flat).scatter(1, top, flat.gather(1, top).sign()).reshape(gradient.shape)

    def random_start(self, x: Tensor, rows: Rows, stream: str = "start", step: int = 0, box: Box = None) -> Tensor:
        """Uniform in the ball (signed exponential spacings), then moved into the box."""
        size = x[0].numel()
        gaps = rows.exponential((size + 1,), stream, step, torch.float64)
        signs = rows.signs((size,), f"{stream}/signs", step, torch.float64)
        noise = signs * gaps[:, :-1] / gaps.sum(1, keepdim=True)
        return clip(x + (noise * self.radius(x).double()[:, None]).to(x.dtype).reshape(x.shape), box)


@component("threat", "l0")
class L0(Threat):
    """At most eps values change, each as far as the box allows."""

    eps: Radius = None

    def norm(self, delta: Tensor) -> Tensor:
        return (delta != 0).flatten(1).sum(1).to(delta.dtype)

    def scale(self, x: Tensor) -> Tensor:
        """1: the radius counts values, so steps are measured in the unit of a value."""
        return torch.ones(len(x), dtype=x.dtype, device=x.device)

    def project(self, z: Tensor, x: Tensor, box: Box = None) -> Tensor:
        """The nearest point of the set inside the box (exact): keep the values whose loss would cost most distance."""
        flat, wanted = x.flatten(1), z.flatten(1)
        allowed = clip(wanted, box)
        gain = (wanted - flat).square() - (wanted - allowed).square()
        gain = torch.where(allowed == flat, -1.0, gain)
        keep = self.radius(x).clamp_max(flat.shape[1]).long()
        most = int(keep.max()) if len(keep) else 0
        if most == 0:
            return x.clone()
        values, order = gain.topk(most, dim=1)
        chosen = (torch.arange(most, device=x.device) < keep[:, None]) & (values > -1.0)
        mask = torch.zeros_like(flat, dtype=torch.bool).scatter(1, order, chosen)
        return torch.where(mask, allowed, flat).reshape(x.shape)

    def steepest(self, gradient: Tensor) -> Tensor:
        """The gradient scaled to a mean absolute value of 1: the projection then chooses which values to keep."""
        size = gradient.abs().flatten(1).mean(1).clamp_min(1e-12)
        return gradient / per_row(size, gradient)

    def random_start(self, x: Tensor, rows: Rows, stream: str = "start", step: int = 0, box: Box = None) -> Tensor:
        """eps values chosen uniformly, each uniform in the box (in x +- 1 without a box)."""
        shape = tuple(x.shape[1:])
        low, high = box if box is not None else (-1.0, 1.0)
        value = rows.uniform(shape, stream, step, low, high, x.dtype)
        value = value if box is not None else x + value
        order = rows.uniform(shape, f"{stream}/order", step, dtype=torch.float64).flatten(1)
        keep = self.radius(x).clamp_max(order.shape[1]).long()
        rank = order.argsort(1).argsort(1)
        return torch.where((rank < keep[:, None]).reshape(x.shape), value, x)


@component("threat", "masked")
class Masked(Threat):
    """Another threat that may touch only some values.

    inner: the threat. mask: 0/1 or bool, broadcastable to one example ([C, H, W]) or, with four dimensions and more, a
    row for each ([N, C, H, W]).
    """

    inner: Annotated[Threat, BeforeValidator(coerce("threat"))]
    mask: Annotated[Any, PlainValidator(lambda v: _mask(v))]

    @property
    def eps(self) -> Any:  # type: ignore[override]
        return self.inner.eps

    def norm(self, delta: Tensor) -> Tensor:
        return self.inner.norm(delta)

    def radius(self, x: Tensor) -> Tensor:
        self._open(x)  # refuses a mask for another number of examples
        return self.inner.radius(x)

    def distance(self, x: Tensor, z: Tensor) -> Tensor:
        """The inner distance; infinite where a value outside the mask has changed."""
        touched = ((z != x) & ~self._open(x)).flatten(1).any(1)
        return torch.where(touched, torch.inf, self.inner.distance(x, z))

    def take(self, rows: Tensor) -> "Threat":
        mask = self.mask[rows.to(self.mask.device)] if self._by_row() else self.mask
        return replace(self, inner=self.inner.take(rows), mask=mask)

    def scale(self, x: Tensor) -> Tensor:
        return self.inner.scale(x)

    def project(self, z: Tensor, x: Tensor, box: Box = None) -> Tensor:
        """The inner projection of the point with all closed values put back."""
        return self._need("project")(torch.where(self._open(x), z, x), x, box)

    def steepest(self, gradient: Tensor) -> Tensor:
        """The inner direction of the gradient on the open values."""
        return self._need("steepest")(gradient * self._open(gradient))

    def random_start(self, x: Tensor, rows: Rows, stream: str = "start", step: int = 0, box: Box = None) -> Tensor:
        """An inner start, kept where the mask is open."""
        return torch.where(self._open(x), self._need("random_start")(x, rows, stream, step, box), x)

    def _by_row(self) -> bool:
        return self.mask.dim() >= 4 and len(self.mask) > 1

    def _open(self, like: Tensor) -> Tensor:
        if self._by_row() and len(self.mask) != len(like):
            raise bad("mask", f"{len(self.mask)} rows", f"one mask, or one for each of the {len(like)} examples")
        return self.mask.to(like.device).expand_as(like)

    def _need(self, method: str) -> Any:
        found = getattr(self.inner, method, None)
        if found is None:
            raise bad("inner", repr(self.inner), f"a threat with `{method}`")
        return found


def _mask(value: Any) -> Tensor:
    if not isinstance(value, Tensor) or not ((value == 0) | (value == 1)).all():
        raise bad("mask", type(value).__name__, "a tensor of zeros and ones")
    return value.bool()


ThreatField = Annotated[Threat, BeforeValidator(coerce("threat"))]
"""The type of a component's field that holds a threat; accepts its text as well."""
