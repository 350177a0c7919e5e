"""The probes: short measurements whose rows the indicators read.

All rows but the first are about examples that the model gets right. Conditions, with what `outcome` (True = withstood or
in order) and `value` say:

    {"probe": "clean"}                                  right; z_y - log sum exp of the others
    {"probe": "output", "measure": lowest | sum}        of the output vector
    {"probe": "repeat"}                                 same class in all runs; largest change of the output
    {"probe": "inside", "measure": backward | calls}    one row for the model: see `inside.watch`
    {"probe": "gradient", "objective": ...}             largest absolute entry at the clean point
    {"probe": "slope"}                                  disagreement of gradient and finite differences, 0 to 1
    {"probe": "blind"}                                  the gradient sees the values that lie on the bounds
    {"probe": "inward"}                                 a broken example is still broken a hair inside the bounds
    {"probe": "overshoot"}                              share of starts whose whole step misses what a part of it finds
    {"probe": "steps", "step": t}                       stands after t steps; the loss at step t
    {"probe": "attack", "attack": ..., "times": m}      stands under the attack at m times the radius
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from withstand.attacks.fgsm import FGSM
from withstand.attacks.noise import Noise
from withstand.attacks.pgd import PGD
from withstand.attacks.square import Square
from withstand.audit.trust.inside import watch
from withstand.models.state import frozen
from withstand.objectives import DLR, CrossEntropy, Margin, at
from withstand.protocols import Batch, Context, Row, Seen, Target
from withstand.random import Rows, derive
from withstand.registry import replace
from withstand.threats import L2, Linf, Masked, Threat, per_row

RUNS = 5
"""Repeated passes of the same batch (as many as AutoAttack makes)."""
LADDER = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Radii of the success curve, as multiples of the threat's."""
UNBOUNDED = math.inf
NOISES = 20
STARTS, PARTS = 8, 4
"""Single steps from so many random points, looked at in so many parts."""
DIRECTIONS = 8
HAIR = 1 / 1024
"""A quarter of a grey level, as a share of the range: the step of finite differences."""
NOTED = (0, 1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 75, 100)
"""The steps whose loss is kept."""


class Probes:
    """Measurements of one target on one shard, as rows.

    steps: gradient steps of the iterative attacks. queries: of the black-box search, in all.
    """

    def __init__(self, target: Target, batch: Batch, threat: Threat, steps: int, queries: int, ctx: Context) -> None:
        assert batch.y is not None
        assert batch.ids is not None
        self.target, self.threat, self.steps, self.queries, self.ctx = target, threat, steps, queries, ctx
        self.box = target.space.box
        self.model = Grounded(target)
        self.batch = batch
        self.x, self.y, self.ids = batch.x, batch.y, batch.ids

    def __iter__(self) -> Iterator[Row]:
        devices = [self.x.device.index or 0] if self.x.is_cuda else []
        module = self.target.module
        with torch.random.fork_rng(devices=devices):
            self.seed()
            if module is None:
                yield from self.black_box()
            else:
                with frozen(module):
                    yield from self.black_box()
                    if "gradients" in self.target.access:
                        yield from self.white_box()

    def black_box(self) -> Iterator[Row]:
        """What every model that returns scores can be asked; keeps the examples that the model gets right."""
        with torch.no_grad():
            self.seed()
            outputs = [self.see(self.x) for _ in range(RUNS)]
        z = outputs[0].double()
        prediction = z.argmax(1)
        right = prediction == self.y
        others = z.scatter(1, self.y[:, None], -torch.inf).logsumexp(1)
        for row, guess in zip(self.tell({"probe": "clean"}, at(z, self.y) - others, right), prediction.tolist()):
            row.prediction = guess
            yield row
        unit = [F.normalize(o.double(), dim=1) for o in outputs]
        spread = torch.stack([(u - unit[0]).norm(dim=1) for u in unit]).amax(0)
        same = torch.stack([o.argmax(1) == prediction for o in outputs]).all(0)
        yield from self.tell({"probe": "repeat"}, spread, same)
        yield from self.tell({"probe": "output", "measure": "lowest"}, outputs[0].amin(1))
        yield from self.tell({"probe": "output", "measure": "sum"}, outputs[0].sum(1))
        self.keep(right)
        if not len(self.x):
            return
        yield from self.run("noise", 1.0, Noise(self.threat, samples=NOISES))
        if isinstance(self.threat, (Linf, L2)) and self.x.dim() == 4:
            radii = (1.0,) if "gradients" in self.target.access else LADDER
            for times in radii:
                square = Square(scaled(self.threat, times), queries=max(1, self.queries // len(radii)))
                yield from self.run("square", times, square)

    def white_box(self) -> Iterator[Row]:
        """What needs gradients."""
        if len(self.x) and self.target.module is not None:
            self.seed()
            backward, calls = watch(self.target.module, self.target, self.x[:2])
            self.ctx.spend(forwards=len(self.x[:2]))
            for measure, value in (("backward", backward), ("calls", calls)):
                yield Row("model", int(self.ids[0]), {"probe": "inside", "measure": measure}, None, float(value))
            yield from self.gradients()
            yield from self.slopes()
            yield from self.blind()
            yield from self.overshoots()
            yield from self.climb()
            yield from self.attacks()

    # The gradient ----------------------------------------------------------------------------------------------------

    def gradients(self) -> Iterator[Row]:
        """The largest entry of each objective's gradient at the clean point; not a number where any entry is not."""
        objectives = {"cross_entropy": CrossEntropy(), "dlr" if self.classes >= 3 else "margin": self.ratio}
        for name, objective in objectives.items():
            g = self.gradient(self.x, lambda z, o=objective: o(Seen(self.x, z), self.y, {}))
            size = g.abs().flatten(1).amax(1)
            yield from self.tell(
                {"probe": "gradient", "objective": name}, torch.where(size.isfinite(), size, torch.nan)
            )

    def slopes(self) -> Iterator[Row]:
        """How far the gradient's promise is from what happens, along the gradient's signs and along random signs.

        With f the label's logit under the runner-up's, d a direction of entries +-1 and h a hair: the disagreement is
        |s - <g, d>| / (|s| + |<g, d>|), s = (f(x + h d) - f(x - h d)) / 2h; over random directions numerator and
        denominator are summed. The larger of the two is kept; where nothing rises above rounding it is not a number.
        Randomised models draw the same numbers in every pass.
        """
        low, high = self.box or (float(self.x.min()), float(self.x.max()))
        hair = HAIR * (high - low)
        base = self.x.clamp(low + hair, high - hair)
        f = self.rival(base)
        g = self.gradient(base, f)
        rows = Rows(derive(self.ctx.seed, "slopes"), self.ids)
        signs = [g.sign()] + [rows.signs(tuple(g.shape[1:]), "slope", i, g.dtype) for i in range(DIRECTIONS)]
        with torch.no_grad():
            scale = self.see(base, seeded=True).abs().amax(1)
            floor = 64 * torch.finfo(base.dtype).eps * scale / (2 * hair)
            promised = torch.stack([(g * d).flatten(1).sum(1) for d in signs])
            found = torch.stack(
                [
                    (f(self.see(base + hair * d, seeded=True)) - f(self.see(base - hair * d, seeded=True))) / (2 * hair)
                    for d in signs
                ]
            )
        gap, size = (found - promised).abs(), found.abs() + promised.abs()
        along = torch.where(size[0] > floor, gap[0] / size[0], torch.nan)
        across = torch.where(size[1:].mean(0) > floor, gap[1:].sum(0) / size[1:].sum(0), torch.nan)
        yield from self.tell({"probe": "slope"}, torch.fmax(along, across))

    def blind(self) -> Iterator[Row]:
        """Whether the gradient is exactly zero at all values on the bounds although moving them inward by 1/32 of the
        range changes the output; only for examples with values on the bounds and a gradient elsewhere."""
        if self.box is None:
            return
        low, high = self.box
        f = self.rival(self.x)
        g = self.gradient(self.x, f)
        on = (self.x <= low) | (self.x >= high)
        inward = torch.where(self.x <= low, 1.0, -1.0) * on * ((high - low) / 32)
        with torch.no_grad():
            here, there = self.see(self.x, seeded=True), self.see(self.x + inward, seeded=True)
        moved = (there - here).abs().amax(1) > 1e-4 * here.abs().amax(1)
        unseen = (g * on == 0).flatten(1).all(1) & (g != 0).flatten(1).any(1)
        relevant = on.flatten(1).any(1)
        for row, use in zip(self.tell({"probe": "blind"}, None, ~(unseen & moved)), relevant.tolist()):
            if use:
                yield row

    def overshoots(self) -> Iterator[Row]:
        """The share of random points of the set at which the model is right and from which a quarter, half or three
        quarters of one long gradient step (across the whole set) turn the answer wrong and the whole step does not."""
        rows, count = Rows(derive(self.ctx.seed, "overshoot"), self.ids), torch.zeros_like(self.y)
        length = per_row(2 * self.threat.scale(self.x), self.x)
        for start in range(STARTS):
            base = self.threat.random_start(self.x, rows, step=start, box=self.box)  # type: ignore[attr-defined]
            g = self.gradient(base, lambda z: F.cross_entropy(z, self.y, reduction="none"))
            along = length * self.threat.steepest(g.nan_to_num())  # type: ignore[attr-defined]
            with torch.no_grad():
                points = (self.threat.project(base + k / PARTS * along, self.x, self.box) for k in range(PARTS + 1))  # type: ignore[attr-defined]
                wrong = torch.stack([self.see(z, seeded=True).argmax(1) != self.y for z in points])
            count += ~wrong[0] & wrong[1:-1].any(0) & ~wrong[-1]
        yield from self.tell({"probe": "overshoot"}, count / STARTS)

    # The attacks -----------------------------------------------------------------------------------------------------

    def climb(self) -> Iterator[Row]:
        """PGD on the cross-entropy from the clean point, all examples, step by step; then the last point a hair inside
        the bounds."""
        z, standing = self.x, torch.ones_like(self.y, dtype=torch.bool)
        for step in range(self.steps + 1):
            point = z.detach().requires_grad_(True)
            with torch.enable_grad():
                logits = self.see(point)
                loss = F.cross_entropy(logits, self.y, reduction="none")
                (g,) = torch.autograd.grad(loss.sum(), point)
            self.ctx.spend(backwards=len(z))
            standing = standing & (logits.argmax(1) == self.y)
            if step in NOTED or step == self.steps:
                exact = F.cross_entropy(logits.detach().double(), self.y, reduction="none")
                yield from self.tell({"probe": "steps", "step": step}, exact, standing)
            if step < self.steps:
                size = per_row(self.threat.scale(self.x) * (2.5 / self.steps), z)
                z = self.threat.project(z + size * self.threat.steepest(g.nan_to_num()), self.x, self.box)  # type: ignore[attr-defined]
        if self.box is not None:
            low, high = self.box
            hair = HAIR * (high - low)
            with torch.no_grad():
                fooled = self.see(z).argmax(1) != self.y
                still = self.see(z.clamp(low + hair, high - hair)).argmax(1) != self.y
            for row, use in zip(self.tell({"probe": "inward"}, None, still), fooled.tolist()):
                if use:
                    yield row

    def attacks(self) -> Iterator[Row]:
        """One step, many steps, another objective, the ladder of radii and no bound at all."""
        many = PGD(self.threat, steps=self.steps, random_start=False)
        yield from self.run("fgsm", 1.0, FGSM(self.threat))
        yield from self.run("pgd_margin", 1.0, replace(many, objective=Margin()))
        for times in LADDER:
            yield from self.run("pgd", times, replace(many, threat=scaled(self.threat, times)))
        if self.box is not None and not isinstance(self.threat, Masked):
            longer = replace(many, threat=Linf(self.box[1] - self.box[0]), steps=2 * self.steps)
            yield from self.run("pgd", UNBOUNDED, longer)
            yield from self.run("pgd_margin", UNBOUNDED, replace(longer, objective=Margin()))

    def run(self, name: str, times: float, attack: Any) -> Iterator[Row]:
        found = attack.run(
            self.model, self.x, self.y, seed=self.ctx.seed, ids=self.ids, block=self.ctx.block, box=self.box
        )
        self.ctx.spend(int(found.forwards.sum()), int(found.backwards.sum()))
        yield from self.stands(name, times, ~found.success)

    # Helpers ---------------------------------------------------------------------------------------------------------

    @property
    def classes(self) -> int:
        return self.see(self.x[:1]).shape[1] if self.target.space.classes is None else self.target.space.classes

    @property
    def ratio(self) -> Any:
        return DLR() if self.classes >= 3 else Margin()

    def seed(self) -> None:
        """The numbers that a randomised model draws from torch's generators depend on the run's seed only."""
        torch.manual_seed(derive(self.ctx.seed, "trust") & 0x7FFFFFFF)

    def see(self, x: Tensor, seeded: bool = False) -> Tensor:
        """Logits, in blocks; `seeded`: with the same internal draws every time."""
        if seeded:
            self.seed()
        self.ctx.spend(forwards=len(x))
        block = self.ctx.block or 256
        return torch.cat([self.model(x[i : i + block]) for i in range(0, len(x), block)])

    def rival(self, x: Tensor) -> Any:
        """The runner-up's logit over the label's, as a function of the logits; the runner-up is that at x."""
        with torch.no_grad():
            other = self.see(x, seeded=True).scatter(1, self.y[:, None], -torch.inf).argmax(1)
        return lambda z: at(z, other) - at(z, self.y)

    def gradient(self, x: Tensor, value: Any) -> Tensor:
        """Of a function of the logits, at x."""
        point = x.detach().requires_grad_(True)
        with torch.enable_grad():
            (g,) = torch.autograd.grad(value(self.see(point, seeded=True)).sum(), point)
        self.ctx.spend(backwards=len(x))
        return g

    def keep(self, rows: Tensor) -> None:
        self.x, self.y, self.ids = self.x[rows], self.y[rows], self.ids[rows]

    def stands(self, attack: str, times: float, standing: Tensor) -> Iterator[Row]:
        name = "unbounded" if times == UNBOUNDED else times
        return self.tell({"probe": "attack", "attack": attack, "times": name}, None, standing)

    def tell(self, condition: dict[str, Any], value: Tensor | None, outcome: Tensor | None = None) -> Iterator[Row]:
        values = value.detach().double().tolist() if value is not None else [None] * len(self.ids)
        outcomes = outcome.tolist() if outcome is not None else [None] * len(self.ids)
        for id_, label, v, o in zip(self.ids.tolist(), self.y.tolist(), values, outcomes):
            yield Row("image", id_, dict(condition), o, v, label)


class Grounded(nn.Module):
    """A target whose output always has a gradient: zero, where the model cuts it off (rounding, codecs, one-hot)."""

    def __init__(self, target: Target) -> None:
        super().__init__()
        self.target = target
        self.training = False

    def forward(self, x: Tensor) -> Tensor:
        z = self.target(x)
        return z if z.requires_grad or not x.requires_grad else z + 0.0 * x.flatten(1).sum(1, keepdim=True)


def scaled(threat: Threat, times: float) -> Threat:
    """The same set with its radius multiplied."""
    if isinstance(threat, Masked):
        return replace(threat, inner=scaled(threat.inner, times))
    return threat if times == 1 else replace(threat, eps=threat.eps * times)
