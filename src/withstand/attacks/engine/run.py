"""Running an attack: blocks, the model's state, what counts as a result, and the checks that always hold."""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from pydantic import PlainValidator
from torch import Tensor, nn

from withstand.attacks.engine.decisions import Decisions
from withstand.attacks.engine.prepare import prepared
from withstand.attacks.engine.problem import Problem
from withstand.errors import bad
from withstand.models.state import frozen
from withstand.random import Rows, derive
from withstand.registry import coerce, replace
from withstand.threats import Threat, per_row

HALF = (torch.float16, torch.bfloat16)


@dataclass
class AttackResult:
    """What an attack found, in the order of the input.

    x_adv [N, ...]: the points. success bool [N]: whether the goal is reached there (False for attacks without a goal).
    value [N]: the objective at the point. distance [N]: from the clean point, in the unit of the threat.
    forwards, backwards int64 [N]: passes spent on each example. cost_at_success int64 [N]: passes spent when the goal
    was reached first, -1 where it was not. notes: what the attack has to say about its run.

    With keep="last" no point is judged, to save the passes: success is False everywhere and value means nothing.
    """

    x_adv: Tensor
    success: Tensor
    value: Tensor
    distance: Tensor
    forwards: Tensor
    backwards: Tensor
    cost_at_success: Tensor
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Attack:
    """What all attacks share; a method is a component that adds its settings and `search`.

    keep: "best" returns, for each example, the first point that reached the goal, else the one with the largest objective
    (never worse than the clean point); "last" returns the last iterate. active: examples that reached their goal leave the
    batch. mode: the model's mode during the attack; "train" restores buffers afterwards.
    """

    keep: Literal["best", "last"] = "best"
    active: bool = True
    mode: Literal["eval", "train"] = "eval"

    access = "gradients"
    nearest = False
    """Whether the attack looks for the nearest point instead of filling a given set."""
    blind = False
    """Whether the points do not depend on the model, which is not asked unless it judges them."""
    prepares = False
    """Whether a run is long enough to search on a faster copy of the model; the model itself then judges what is found,
    and is searched for the examples whose points it does not confirm."""

    fine = False
    """Whether the search needs more than half precision: then it moves in single, and a model and examples of half precision
    are asked at rounded points."""

    threat: Any = None

    def search(self, p: Problem) -> Any:
        """Look for points; everything that `p` is asked is remembered. Returns the last iterate, if there is one."""
        raise TypeError(f"{type(self).__name__} defines no search")

    def refuse(self, model: Any, x: Tensor) -> None:
        """Refuse, before work starts, what this attack was given and does not fit a model or examples like x [1, ...]:
        a fitted thing of another kind, one for other inputs or classes."""

    def problem(self, **settings: Any) -> Problem:
        """The problem that this attack searches; where a method brings its own objective or views, it says so here."""
        own = {
            name: getattr(self, name)
            for name in ("objective", "criterion", "parameterisation", "views", "shapings")
            if hasattr(self, name)
        }
        return Problem(**{"objective": "cross_entropy", **own, **settings})

    def __call__(self, model: Any, x: Tensor, y: Tensor | None = None, **context: Any) -> Tensor:
        """x_adv of the shape, dtype and device of x, inside the threat and the input range. See `run` for `context`."""
        return self.run(model, x, y, **context).x_adv

    def run(
        self,
        model: Any,
        x: Tensor,
        y: Tensor | None = None,
        *,
        seed: int = 0,
        ids: Tensor | None = None,
        block: int | None = None,
        box: tuple[float, float] | Literal["model"] | None = "model",
        precision: torch.dtype | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> AttackResult:
        """Attack a batch.

        model: a torch module or `Target` that returns logits [N, K]; black-box attacks take any callable.
        x: float [N, ...] inside the box. y: long [N]; None attacks the model's own prediction.
        seed, ids: random draws depend on these alone, not on the order or the size of blocks. block: examples per pass,
        halved when memory runs out. box: the input's range; by default the model's own, [0, 1] for plain modules.
        precision: run the model under autocast in this dtype. progress: called with the number of examples done.

        Raises:
            BadInput: images out of range or not finite, labels of the wrong type or range, too little of the model.
        """
        box = box_of(model) if box == "model" else box
        check_inputs(x, y, box)
        if self.threat is not None:
            self.threat.radius(x)  # refuses radii or masks for another number of examples
        if self.keep == "last" and self.active:
            raise bad(
                "keep",
                "'last' with active=True",
                "keep='last' together with active=False",
                "The last iterate of an example that left the batch is the one that reached its goal.",
            )
        call, module = callable_of(model, self.access)
        if self.access == "decision":
            call = Decisions(call, y, getattr(getattr(self, "objective", None), "target", None))
        coarse = x if self.fine and x.dtype in HALF else None
        if coarse is not None:
            given = call
            x, call = x.float(), lambda z: given(z.to(coarse.dtype))
        ids = torch.arange(len(x)) if ids is None else ids
        rows = Rows(derive(seed, getattr(self, "component_name", type(self).__name__)), ids.to(x.device))
        parts = []
        with ExitStack() as stack:
            stack.enter_context(frozen(module, self.mode) if module is not None else nullcontext())
            stack.enter_context(torch.random.fork_rng(cuda_of(x)))
            _seed(derive(seed, "model") & 0x7FFFFFFF, x.device)
            reads = set(getattr(getattr(self, "objective", None), "reads", ())) - {"logits", "input"}
            eager = self.prepares and self.mode == "eval" and precision is None and not reads
            twin = prepared(call, module, x) if eager else None
            coupled = getattr(getattr(self, "objective", None), "coupled", False)
            size = len(x) if coupled else min(block or _default_block(x), len(x))
            done = 0
            while done < len(x):
                piece = torch.arange(done, min(done + size, len(x)), device=x.device)
                try:
                    labels = None if y is None else y[piece]
                    parts.append(self._block(call, twin, x[piece], labels, rows, piece, box, precision))
                except torch.OutOfMemoryError:
                    if size == 1 or coupled:
                        raise
                    size = (size + 1) // 2
                    continue
                done += size
                if progress is not None:
                    progress(min(done, len(x)))
        found = _join(parts)
        if coarse is not None:
            _round(found, coarse, self.threat)
        return found

    def _block(
        self,
        call: Any,
        twin: Any,
        x: Tensor,
        y: Tensor | None,
        rows: Rows,
        index: Tensor,
        box: Any,
        precision: torch.dtype | None,
    ) -> AttackResult:
        threat = self.threat.take(index)
        nearest = self.nearest or threat.eps is None
        objective: Any = getattr(self, "objective", None)
        aimed = isinstance(getattr(objective, "target", None), Tensor)
        own = (
            {"objective": replace(objective, target=objective.target[index.to(objective.target.device)])}
            if aimed
            else {}
        )
        p = self.problem(
            model=call if twin is None else twin,
            x=x,
            y=y,
            rows=rows.take(index),
            threat=threat,
            box=box,
            keep=self.keep,
            active=self.active,
            nearest=nearest,
            precision=precision,
            **own,
        )
        last = self.search(p)
        lost = p.confirm(call) if twin is not None else None
        if self.keep == "last":
            if last is None or len(p.decode(last)) != len(x):
                raise bad("keep", "'last'", f"keep='best': {type(self).__name__} has no last iterate for every example")
            return finish(p, p.decode(last).detach(), threat)
        found = finish(p, p.best, threat)
        if lost is not None and bool(lost.any()) and not getattr(objective, "coupled", False):
            labels = None if y is None else y[lost]
            again = self._block(call, None, x[lost], labels, rows, index[lost], box, precision)
            _mend(found, lost, again)
        return found


def _mend(found: AttackResult, lost: Tensor, again: AttackResult) -> None:
    """Put in the result of a second search for the rows `lost` bool [N], whose points held on a copy of the model only."""
    spent = (found.forwards + found.backwards)[lost]
    found.cost_at_success[lost] = torch.where(again.success, again.cost_at_success + spent, -1)
    found.forwards[lost] += again.forwards
    found.backwards[lost] += again.backwards
    for name in ("x_adv", "success", "value", "distance"):
        getattr(found, name)[lost] = getattr(again, name)


def finish(p: Problem, found: Tensor, threat: Threat) -> AttackResult:
    """Put the found points into the set and the box, in the input's dtype, and say how far they are."""
    x = p.x
    if p.nearest and threat.eps is not None:  # a nearest point beyond eps is no success under that eps, however little
        beyond = threat.distance(x.double(), found.double()) > threat.radius(x).double() * (1 + 1e-6)
        found = torch.where(per_row(beyond, x), x, found)
        p.won = p.won & ~beyond
    z, distance = seal(found, x, threat, p.box) if p.parameterisation is None else (found, _distance(threat, x, found))
    success = p.won
    if p.parameterisation is None and threat.eps is not None:
        outside = distance > threat.radius(x).double() + 1e-6
        if bool(outside.any()):  # a nearest point beyond eps is no success under that eps
            z = torch.where(per_row(outside, x), x, z)
            distance = torch.where(outside, 0.0, distance)
            success = success & ~outside
    return AttackResult(
        z,
        success,
        p.best_value.clone(),
        distance.to(x.dtype),
        p.forwards,
        p.backwards,
        torch.where(success, p.cost_at_win, -1),
        p.notes,
    )


def _round(found: AttackResult, x: Tensor, threat: Any) -> None:
    """Round the points to the precision of x; their distances follow, and what is carried out of the set is given up."""
    z = found.x_adv.to(x.dtype)
    distance = _distance(threat, x, z)
    if threat.eps is not None:
        outside = distance > threat.radius(x).double() + 1e-6
        z, distance = torch.where(per_row(outside, x), x, z), torch.where(outside, 0.0, distance)
        found.success = found.success & ~outside
        found.cost_at_success = torch.where(found.success, found.cost_at_success, -1)
    found.x_adv, found.distance = z, distance.to(found.distance.dtype)


def seal(z: Tensor, x: Tensor, threat: Threat, box: Any) -> tuple[Tensor, Tensor]:
    """The points and their distance, float64 [N]. Rounding may carry a point a hair outside; such points are pulled towards
    x until they are inside."""
    z = z.to(x.dtype)
    if box is not None and any(not box[0] <= float(end) <= box[1] for end in z.aminmax()):
        z = z.clamp(*box)
    if threat.eps is None:
        return z, _distance(threat, x, z)
    radius, distances, mended = threat.radius(x).double(), [], None
    for part, near, a, b in _pieces(threat, x, z):
        distance, eps = near.distance(a, b), radius[part]
        over = (distance > eps) & (distance <= eps * (1 + 1e-3) + 1e-6)
        if bool(over.any()):
            shrink = per_row(torch.where(over, eps / distance.clamp_min(1e-12) * (1 - 1e-7), 1.0), x)
            mended = z.clone() if mended is None else mended
            mended[part] = torch.where(per_row(over, x), a + (b - a) * shrink, b).to(x.dtype)
            distance = near.distance(a, mended[part].double())
        distances.append(distance)
    return z if mended is None else mended, torch.cat(distances)


def _distance(threat: Threat, x: Tensor, z: Tensor) -> Tensor:
    return torch.cat([near.distance(a, b) for _, near, a, b in _pieces(threat, x, z)])


def _pieces(threat: Threat, x: Tensor, z: Tensor) -> Iterator[tuple[slice, Threat, Tensor, Tensor]]:
    """x and z in double precision with their threat, on a CPU a few rows at a time: memory of that size is used again, while
    larger pieces are new to the process each time, which costs several times the arithmetic."""
    few = len(x) if x.is_cuda else max(1, (1 << 14) // x[0].numel())
    for i in range(0, len(x), few):
        part = slice(i, min(i + few, len(x)))
        near = threat if few >= len(x) else threat.take(torch.arange(part.start, part.stop))
        yield part, near, x[part].double(), z[part].double()


def check_inputs(x: Any, y: Any, box: tuple[float, float] | None) -> None:
    """Refuse what no attack can work with."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise bad("x", got, "a float tensor [N, ...]", "Divide uint8 images by 255.")
    if x.dim() < 2 or len(x) == 0:
        raise bad("x", f"shape {tuple(x.shape)}", "a batch [N, ...] with N >= 1", "A single example needs x[None].")
    low, high = (float(end) for end in x.aminmax())  # NaN if there is one
    if not math.isfinite(low + high):
        raise bad("x", "NaN or infinite values", "finite values")
    if box is not None and (low < box[0] or high > box[1]):
        raise bad(
            "x",
            f"values in [{low:.4g}, {high:.4g}]",
            f"values in [{box[0]:g}, {box[1]:g}]",
            "Put the normalisation inside the model (load_model(mean=, std=)) and give images in [0, 1].",
        )
    if y is None:
        return
    if not isinstance(y, Tensor) or len(y) != len(x):
        raise bad("y", f"{len(y) if hasattr(y, '__len__') else y!r} labels", f"a tensor with {len(x)} labels")
    if y.dim() == 1 and (y.is_floating_point() or y.is_complex() or y.dtype == torch.bool):
        raise bad("y", y.dtype, "int64 class indices [N], or float [N, K] for soft labels", "Use y.long().")
    if y.dim() == 1 and int(y.min()) < 0:
        raise bad("y", f"a label of {int(y.min())}", "labels from 0 to classes - 1")


def callable_of(model: Any, access: str) -> tuple[Callable[[Tensor], Any], nn.Module | None]:
    """The call and, where there is one, the module behind a model."""
    if isinstance(model, nn.Module):
        return model, model
    allowed = getattr(model, "access", None)
    if allowed is not None and access not in allowed:
        raise bad(
            "model",
            f"access to {', '.join(sorted(allowed))} only",
            f"a model with access to {access}",
            "Take a black-box attack, e.g. square or boundary.",
        )
    if not callable(model):
        raise bad("model", type(model).__name__, "a torch module, a Target, or a callable x -> logits")
    module = getattr(model, "module", None)
    return model, module if isinstance(module, nn.Module) else None


def box_of(model: Any) -> tuple[float, float] | None:
    space = getattr(model, "space", None)
    return space.box if space is not None and hasattr(space, "box") else (0.0, 1.0)


def _seed(seed: int, device: torch.device) -> None:
    """Seed what models on this device draw from (`torch.manual_seed` does so for every kind of device, at a price)."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
    elif device.type != "cpu":
        torch.manual_seed(seed)


def _default_block(x: Tensor) -> int:
    """About 2^24 input values on an accelerator, 2^20 on a CPU, whose caches are small."""
    return max(16, (1 << (24 if x.is_cuda else 20)) // x[0].numel())


def cuda_of(x: Tensor) -> list[int]:
    return [x.device.index or 0] if x.is_cuda else []


def _join(parts: list[AttackResult]) -> AttackResult:
    if len(parts) == 1:
        return parts[0]
    notes: dict[str, Any] = {}
    for part in parts:
        for key, value in part.notes.items():
            if isinstance(value, Tensor) and key in notes:
                notes[key] = torch.cat([notes[key], value])
            else:
                notes.setdefault(key, value)
    names = ("x_adv", "success", "value", "distance", "forwards", "backwards", "cost_at_success")
    return AttackResult(**{n: torch.cat([getattr(p, n) for p in parts]) for n in names}, notes=notes)


def _attack(value: Any) -> Any:
    value = coerce("attack")(value)
    if not isinstance(value, Attack):
        raise bad("attack", repr(value), "an attack or its text, e.g. 'pgd:steps=10,eps=8/255'")
    return value


AttackField = Annotated[Any, PlainValidator(_attack)]
"""The type of a component's field that holds an attack; accepts its text as well."""
