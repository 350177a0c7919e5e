"""AutoAttack: an ensemble of parameter-free attacks, each on the examples that the ones before it left standing."""

import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from withstand.attacks.apgd import APGD, APGDT
from withstand.attacks.engine import Attack, AttackResult, Problem
from withstand.attacks.engine.prepare import prepared
from withstand.attacks.engine.run import box_of, callable_of, check_inputs, cuda_of
from withstand.attacks.fab import FAB, FABT
from withstand.attacks.gpga import GPGA, Guide
from withstand.attacks.square import Square
from withstand.attacks.views import EOT
from withstand.errors import bad
from withstand.models.state import frozen
from withstand.objectives import DLR, CrossEntropy, Margin, TargetedDLR, TargetedMargin, at, best_other
from withstand.protocols import Flag
from withstand.random import derive
from withstand.registry import component, replace
from withstand.threats import L1, L2, Linf, Threat, ThreatField


@component("attack", "autoattack", systems=("classic_attacks",))
class AutoAttack(Attack):
    """AutoAttack: APGD, targeted APGD, FAB and Square, one after the other on what still stands.

    version: "standard" = apgd-ce, apgd-t, fab-t, square; "plus" = apgd-ce, apgd-dlr and fab with five restarts each,
    square, apgd-t, fab-t; "rand" = apgd-ce and apgd-dlr with gradients averaged over 20 passes, for randomised models.
    Under L1, "standard" runs apgd-ce five times and apgd-t against five targets, both through larger balls.
    steps of the gradient attacks, queries of square: the official numbers. guide: a second classifier; then ten steps of
    `gpga` come first, and what it breaks is spared the rest.

    An example counts as broken if the model itself misclassifies the point that was found, in one more pass. Points that
    withstood come back unchanged. `notes` of a run: "robust_accuracy" and "seconds" after each attack (shares of all
    points; "clean" first), "broken_by" int64 [N] (a position in "attacks", -1: withstood), "targets", and "flags", the
    findings of the official checks. With fewer than 11 classes there are fewer than 9 targets; with fewer than four
    (three), the targeted (untargeted) DLR gives way to the margin.

    Reference: Croce, Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
    attacks", 2020, arXiv 2003.01690.
    """

    threat: ThreatField = Linf(8 / 255)
    version: Literal["standard", "plus", "rand"] = "standard"
    steps: int = 100
    queries: int = 5000
    guide: Guide = None

    def __post_init__(self) -> None:
        if type(self.threat) not in (Linf, L2, L1) or self.threat.eps is None:
            raise bad("threat", repr(self.threat), "linf, l2 or l1 with a radius, e.g. linf(8/255)")
        if self.keep == "last" or not self.active:
            raise bad("keep", f"{self.keep!r} with active={self.active}", "keep='best' and active=True for autoattack")
        self.attacks(10)

    def attacks(self, classes: int) -> dict[str, Attack]:
        """The attacks for a model with so many classes, in their order."""
        first = {} if self.guide is None else {"gpga": GPGA(self.threat, self.guide, mode=self.mode)}
        return first | self._official(classes)

    def _official(self, classes: int) -> dict[str, Attack]:
        t, sparse = self.threat, isinstance(self.threat, L1)
        dlr = DLR() if classes >= 3 else Margin()
        targeted = TargetedDLR() if classes >= 4 else TargetedMargin()
        count = max(min(9, classes - 1), 1)
        common: dict[str, Any] = {"steps": self.steps, "mode": self.mode}
        square = Square(t, self.queries, rescale=False, mode=self.mode)
        fab_t = FABT(t, count, **common)
        if self.version == "rand":
            common["views"] = (EOT(20),)
            return {"apgd-ce": APGD(t, CrossEntropy(), **common), "apgd-dlr": APGD(t, dlr, **common)}
        if self.version == "plus":
            return {
                "apgd-ce": APGD(t, CrossEntropy(), restarts=5, **common),
                "apgd-dlr": APGD(t, dlr, restarts=5, **common),
                "fab": FAB(t, restarts=5, **common),
                "square": square,
                "apgd-t": APGDT(t, targeted, count, **common),
                "fab-t": fab_t,
            }
        return {
            "apgd-ce": APGD(t, CrossEntropy(), restarts=5 if sparse else 1, larger_eps=sparse, **common),
            "apgd-t": APGDT(t, targeted, min(count, 5) if sparse else count, larger_eps=sparse, **common),
            "fab-t": fab_t,
            "square": square,
        }

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
        box = box_of(model) if box == "model" else box
        check_inputs(x, y, box)
        call, module = callable_of(model, self.access)
        ids = (torch.arange(len(x)) if ids is None else ids).to(x.device)
        context: dict[str, Any] = {"block": block, "box": box, "precision": precision}
        look, seconds = _Look(threat=Linf(0.0), mode=self.mode), {}
        with ExitStack() as stack:
            stack.enter_context(frozen(module, self.mode) if module is not None else nullcontext())
            stack.enter_context(torch.random.fork_rng(cuda_of(x)))
            started = time.perf_counter()
            clean = look.run(call, x, y, seed=seed, ids=ids, **context)
            logits: Tensor = clean.notes["logits"]
            y = logits.argmax(1) if y is None else y
            tally = _Tally(x, y, clean)
            accuracy = {"clean": tally.accuracy}
            flags = self._flags_before(call, look, x, logits, seed, context)
            twin = prepared(call, module, x) if self.mode == "eval" and precision is None else None
            attacks = self.attacks(logits.shape[1])
            for position, (name, attack) in enumerate(attacks.items(), 1):
                now = {"seed": derive(seed, name), **context}
                seconds[[*accuracy][-1]], started = round(time.perf_counter() - started, 3), time.perf_counter()
                rows = tally.stands.nonzero().flatten()
                if len(rows):
                    own = replace(attack, threat=self.threat.take(rows))
                    found = own.run(call if twin is None else twin, x[rows], y[rows], ids=ids[rows], **now)
                    lost = self._judge(call, look, tally, rows, found, position, ids, now)
                    if twin is not None and len(lost):  # points of the copy only: search the model itself
                        own = replace(attack, threat=self.threat.take(lost))
                        found = own.run(call, x[lost], y[lost], ids=ids[lost], **now)
                        self._judge(call, look, tally, lost, found, position, ids, now)
                accuracy[name] = tally.accuracy
                if progress is not None:
                    progress(len(x) * position // len(attacks))
            seconds[[*accuracy][-1]] = round(time.perf_counter() - started, 3)
        notes = {
            "attacks": [*accuracy],
            "robust_accuracy": accuracy,
            "seconds": seconds,
            "broken_by": tally.broken_by,
            "targets": getattr(attacks.get("apgd-t"), "targets", 0),
            "flags": flags + self._flags_after(accuracy, int(tally.vanishing.sum())),
        }
        return tally.result(self.threat, notes)

    def _judge(
        self, call: Any, look: "_Look", tally: "_Tally", rows: Tensor, found: AttackResult, position: int, ids: Tensor,
        now: dict[str, Any],
    ) -> Tensor:  # fmt: skip
        """The model itself has the last word on what was found for some rows; returns those whose point it refuses."""
        hit = found.success.nonzero().flatten()
        if len(hit):
            judged = look.run(call, found.x_adv[hit], tally.y[rows[hit]], ids=ids[rows[hit]], **now)
            tally.broke(rows[hit], found.x_adv[hit], judged, found.cost_at_success[hit], position)
        tally.spent(rows, found)
        return rows[hit][tally.stands[rows[hit]]]

    def _flags_before(
        self, call: Any, look: "_Look", x: Tensor, logits: Tensor, seed: int, context: dict[str, Any]
    ) -> list[Flag]:
        """The official checks of the model; they cost five passes of up to 250 examples."""
        few, flags = x[:250], []
        with _Calls() as inside:
            looks = [look.run(call, few, seed=derive(seed, "look", i), **context).notes["logits"] for i in range(4)]
        if inside.differentiates:
            flags.append(
                _flag("dynamic", "the model computes gradients inside its forward pass", "Use an adaptive attack.")
            )
        if self.version != "rand":
            units = torch.stack([z / (z.norm(dim=1, keepdim=True) + 1e-10) for z in [logits[:250], *looks]])
            spread = float((units[:, None] - units[None]).norm(dim=3).max())
            if spread > 1e-4:
                said = f"its outputs differ by up to {spread:.2g} (unit-normalised) over five passes of the same input"
                flags.append(_flag("randomised", said, 'Use version="rand".'))
        sums = (logits.sum(1) - 1).abs().max()
        if float(logits.max()) < 1 + 1e-5 and float(logits.min()) > -1e-5 and float(sums) < 1e-5:
            flags.append(_flag("probabilities", "the outputs look like probabilities", "Give the logits."))
        if self.version != "rand" and logits.shape[1] < 10:
            said = f"{logits.shape[1]} classes allow {logits.shape[1] - 1} targets instead of 9"
            flags.append(_flag("few_classes", said, "Nothing to do: all other classes are tried."))
        return flags

    def _flags_after(self, accuracy: dict[str, float], vanishing: int) -> list[Flag]:
        flags = []
        if vanishing:
            said = f"{vanishing} examples have a zero gradient where a DLR attack starts"
            flags.append(_flag("zero_gradient", said, "Gradients are masked: try BPDA or a black-box attack."))
        others = [v for k, v in accuracy.items() if k != "square"]
        if "square" in accuracy and len(others) > 1:
            before = min(others[: list(accuracy).index("square")])
            if accuracy["square"] < before - 0.002:
                said = f"square, which sees scores only, lowered the accuracy by {before - accuracy['square']:.2%}"
                flags.append(_flag("square_wins", said, "Gradient attacks fail here: run square for longer, or adapt."))
        return flags


class _Tally:
    """What is known of every example so far."""

    def __init__(self, x: Tensor, y: Tensor, clean: AttackResult) -> None:
        logits = clean.notes["logits"]
        self.x, self.y, self.x_adv = x, y, x.clone()
        self.stands = logits.argmax(1) == y
        self.value = best_other(logits, y) - at(logits, y)
        self.broken_by = torch.where(self.stands, -1, 0)
        self.forwards, self.backwards = clean.forwards.clone(), clean.backwards.clone()
        self.cost = torch.where(self.stands, -1, self.forwards)
        self.vanishing = torch.zeros_like(self.stands)

    @property
    def accuracy(self) -> float:
        """The share of all examples that stand."""
        return float(self.stands.double().mean())

    def broke(self, rows: Tensor, x_adv: Tensor, judged: AttackResult, cost: Tensor, position: int) -> None:
        """Enter points [B, ...] for the rows [B] that the model gets wrong there."""
        self.forwards[rows] += judged.forwards
        logits = judged.notes["logits"]
        wrong = logits.argmax(1) != self.y[rows]
        rows, logits = rows[wrong], logits[wrong]
        self.x_adv[rows] = x_adv[wrong]
        self.value[rows] = best_other(logits, self.y[rows]) - at(logits, self.y[rows])
        self.cost[rows] = (self.forwards + self.backwards)[rows] + cost[wrong]
        self.broken_by[rows] = position
        self.stands[rows] = False

    def spent(self, rows: Tensor, found: AttackResult) -> None:
        """Count the passes of an attack on some rows, and the rows on which its DLR had no gradient to start with."""
        self.forwards[rows] += found.forwards
        self.backwards[rows] += found.backwards
        if "dlr_without_gradient" in found.notes:
            self.vanishing[rows] |= found.notes["dlr_without_gradient"]

    def result(self, threat: Threat, notes: dict[str, Any]) -> AttackResult:
        distance = threat.distance(self.x.double(), self.x_adv.double()).to(self.x.dtype)
        return AttackResult(
            self.x_adv, ~self.stands, self.value, distance, self.forwards, self.backwards, self.cost, notes
        )


class _Look(Attack):
    """No attack: the logits of the clean points, through the engine's blocks."""

    access = "scores"
    objective = Margin()

    def search(self, p: Problem) -> None:
        p.notes["logits"] = p.clean.logits


class _Calls(TorchFunctionMode):
    """Watches for derivatives that a model takes while it runs forward."""

    differentiates = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.autograd.grad, torch.autograd.backward, Tensor.backward):
            self.differentiates = True
        return func(*args, **(kwargs or {}))


def _flag(name: str, said: str, advice: str) -> Flag:
    return Flag(f"autoattack/{name}", "warn", said, advice)
