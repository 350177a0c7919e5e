"""What an audit will do: the models, the data, the checks, and the pieces of work that they make."""

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

import withstand
from withstand.attacks.engine import Attack
from withstand.attacks.fit import FittedAttack
from withstand.audit.check import Check
from withstand.audit.presets import checks_of
from withstand.data import as_dataset, load_data
from withstand.data.images import stratified
from withstand.errors import BadInput, bad, unknown
from withstand.files import slug
from withstand.models import as_target, check_compatible, frozen, load_model
from withstand.models.threads import suited_threads
from withstand.protocols import Dataset, Space, Target
from withstand.registry import entries
from withstand.threats import Linf

SHARD = 128
"""Examples in a unit of work: small enough that a lost one costs little."""


@dataclass(frozen=True)
class Unit:
    """One piece of work."""

    model: str
    check: str
    shard: int


@dataclass
class Plan:
    """Everything that decides what an audit finds."""

    models: dict[str, Target]
    data: Dataset
    checks: dict[str, Check]
    given: dict[str, Any] = field(default_factory=dict)
    preset: str = ""
    seed: int = 0
    shard: int = SHARD
    device: str = "cpu"
    block: int | None = None
    _cut: dict[str, list[list[int]]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for what, names in (("models", self.models), ("checks", self.checks)):
            folders = {slug(name) for name in names}
            if len(folders) < len(names):
                raise bad(what, ", ".join(names), "names that differ in more than punctuation", "Write NAME=MODEL.")
        ordered(self.checks)

    def to_json(self) -> dict[str, Any]:
        """What `plan.json` says; two runs with equal plans find equal rows. Device and block are left out: results
        depend on them through rounding at most."""
        return {
            "withstand": withstand.__version__,
            "models": {name: model.fingerprint() for name, model in self.models.items()},
            "data": {"name": self.data.name, "examples": len(self.data), "fingerprint": self.data.fingerprint()},
            "checks": {name: repr(check) for name, check in self.checks.items()},
            "given": {name: thing.fingerprint() for name, thing in sorted(self.given.items())},
            "seed": self.seed,
            "shard": self.shard,
        }

    def shards(self, check: Check) -> list[list[int]]:
        """The positions of the examples of each shard of a check; none for a check that only reads others' rows."""
        if not check.own_rows:
            return []
        examples = self.examples(check)
        chosen = list(range(len(examples)))
        if check.examples is not None and check.examples < len(chosen):
            # folders are in the order of their classes: the first so many would be of one class
            order = stratified(getattr(examples, "labels", None), len(chosen), 0)
            chosen = sorted(order[: check.examples].tolist())
        return [chosen[i : i + self.shard] for i in range(0, len(chosen), self.shard)]

    def examples(self, check: Check) -> Dataset:
        """What the shards of a check are cut from."""
        return check.examples_of(self.data, self.given)

    def positions(self, unit: Unit) -> list[int]:
        """The positions of the examples of a piece of work."""
        if unit.check not in self._cut:
            self._cut[unit.check] = self.shards(self.checks[unit.check])
        return self._cut[unit.check][unit.shard]

    def obstacle(self, model: Target, check: Check) -> tuple[str, str] | None:
        """Why a check cannot run on a model: (status, reason), or None."""
        if check.task != model.task:
            return "not applicable", f"the check is for {check.task}, the model does {model.task}"
        if lacking := check.access - model.access:
            return "not applicable", f"needs access to {', '.join(sorted(lacking))}"
        missing = [n.name for n in check.needs if not n.optional and n.name not in self.given]
        if missing:
            return "skipped", f"needs {' and '.join(missing)} (give it with --given {missing[0]}=...)"
        return None

    def units(self) -> list[Unit]:
        """All pieces of work, in the order in which one process does them."""
        return [
            Unit(model, check, shard)
            for model, target in self.models.items()
            for check, settings in self.checks.items()
            if self.obstacle(target, settings) is None
            for shard in range(len(self.shards(settings)))
        ]


def make_plan(
    models: Any,
    data: Any,
    preset: str = "standard",
    checks: Sequence[Any] | None = None,
    given: Mapping[str, Any] | None = None,
    seed: int = 0,
    device: str | None = None,
    block: int | None = None,
) -> Plan:
    """Load what an audit works on and refuse what does not fit together; see `audit` for the arguments."""
    device = usable_device(device)
    targets = placed(models, device)
    examples = as_dataset(data, targets.values())
    for name, target in targets.items():
        answered = check_compatible(target, examples)  # an endpoint learns here what it returns, and so what it allows
        targets[name] = _told(target, examples, answered)
    access = frozenset().union(*(t.access for t in targets.values()))
    tasks = {t.task for t in targets.values()}
    chosen = checks_of(preset, checks, examples.space, given or {}, access, tasks)
    needs = {need.name: need.what for check in chosen.values() for need in check.needs}
    for name in given or {}:
        if name not in needs:
            every = {need.name for entry in entries("check") for need in entry.load().needs}
            if name not in every:
                raise unknown("given", name, every)
            raise bad("given", name, f"what the checks of this audit ask for: {', '.join(needs) or 'nothing'}")
    plan = Plan(
        models=targets,
        data=examples,
        checks=chosen,
        given={name: _given(name, thing, needs[name], examples, device) for name, thing in (given or {}).items()},
        preset="" if checks else preset,
        seed=seed,
        device=device,
        block=block,
    )
    labelled = {need.name for check in chosen.values() if check.task == "classification" for need in check.needs}
    for name, thing in plan.given.items():
        if needs[name] == "model":
            check_compatible(thing, plan.data, labels=name in labelled)
    for check in chosen.values():
        refuse_unfit(plan, check)
    return plan


def refuse_unfit(plan: Plan, check: Check) -> None:
    """Refuse a radius beyond the range of the input, and let a check's attack refuse what does not fit models or data."""
    if check.examples is not None and check.examples < 1:
        raise bad("examples", check.examples, "a whole number >= 1, or None for all")
    attack = getattr(check, "attack", None)
    threat, box = getattr(check, "threat", getattr(attack, "threat", None)), plan.data.space.box
    if isinstance(threat, Linf) and isinstance(threat.eps, float) and box and threat.eps > box[1] - box[0]:
        allowed = f"a radius of at most {box[1] - box[0]:g}, the width of the range of the inputs"
        raise bad("threat", repr(threat), allowed, "Radii are in input units: write 8/255, not 8.")
    if isinstance(attack, Attack) and type(attack).refuse is not Attack.refuse:
        for target in plan.models.values():
            if plan.obstacle(target, check) is None and attack.access in target.access:
                attack.refuse(target, plan.data.batch([0]).to(plan.device).x)


def estimate(plan: Plan, units: Sequence[Unit]) -> str:
    """How much work is left and roughly how long it takes here, from a probe of each model."""
    if not units:
        return (
            "nothing left to do" if plan.units() else "nothing to do: no check of this audit can run on what is given"
        )
    seconds = passes = 0.0
    for name, target in plan.models.items():
        mine = [unit for unit in units if unit.model == name]
        each = _probe(target, plan) if mine else 0.0
        for unit in mine:
            check = plan.checks[unit.check]
            cost = check.passes(target) * len(plan.positions(unit))
            passes, seconds = passes + cost, seconds + cost * each
    pieces = f"{len(units)} piece{'s' if len(units) > 1 else ''} of work"
    return (
        f"{pieces}, at most {passes:,.0f} passes of one example, {_duration(seconds)} on this device; "
        "examples that break early make it shorter"
    )


def ordered(checks: Mapping[str, Check]) -> list[str]:
    """Names of the checks, each after those whose rows it reads. Raises: BadInput for a circle."""
    order: list[str] = []

    def visit(name: str, above: tuple[str, ...] = ()) -> None:
        if name in above:
            raise bad("checks", " -> ".join([*above, name]), "checks that do not wait for each other in a circle")
        for other in read_by(name, checks):
            visit(other, (*above, name))
        if name not in order:
            order.append(name)

    for name in checks:
        visit(name)
    return order


def read_by(name: str, checks: Mapping[str, Check]) -> list[str]:
    """Names of the checks whose rows this one reads."""
    return [other for other, check in checks.items() if check.component_name in checks[name].after]  # type: ignore[attr-defined]


def _probe(target: Target, plan: Plan) -> float:
    """Seconds for one example's forward (and gradient, where there is one) pass; the better of two."""
    gradients = "gradients" in target.access
    x = plan.data.batch(range(min(32 if target.module is not None else 1, len(plan.data)))).to(plan.device).x
    best = float("inf")
    with suited_threads(target.module, x[:1]):
        for _ in range(2 if target.module is not None else 1):
            started = time.perf_counter()
            if gradients and target.module is not None:
                with frozen(target.module), torch.random.fork_rng([]):
                    point = x.clone().requires_grad_(True)
                    torch.autograd.grad(target(point).sum(), point)
            else:
                target(x)
            best = min(best, time.perf_counter() - started)
    return best / len(x)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"up to {max(1, round(seconds))} s"
    return f"up to {seconds / 60:.0f} min" if seconds < 5400 else f"up to {seconds / 3600:.1f} h"


def usable_device(device: str | None) -> str:
    """The device of this name, or the best at hand. Raises: BadInput for one that is not there."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        known = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise bad("device", repr(device), ", ".join(known), str(error).split("\n")[0]) from None
    return device


def placed(models: Any, device: str) -> dict[str, Target]:
    """The models of an audit by name, on the device and in eval mode; see `audit` for what they may be."""
    named: dict[str, Any] = {}
    if isinstance(models, Mapping):
        named = dict(models)
    else:
        for item in models if isinstance(models, (list, tuple)) else [models]:
            target = load_model(item) if isinstance(item, str) else as_target(item)
            name = target.name
            while name in named:
                name += "'"
            named[name] = target
    if not named:
        raise bad("models", "none", "at least one model")
    return {name: _place(load_model(m) if isinstance(m, str) else as_target(m), device) for name, m in named.items()}


def _given(name: str, thing: Any, what: str, data: Dataset, device: str) -> Any:
    if what == "model":
        thing = thing.target if isinstance(thing, FittedAttack) else thing
        return _place(load_model(thing) if isinstance(thing, str) else as_target(thing), device)
    if what == "data":
        if not isinstance(thing, str):
            return as_dataset(thing)
        try:
            return _like(thing, data, "train" if name in ("train", "gallery") else "test")
        except BadInput as error:
            if name != "gallery" or not str(error).startswith("split"):
                raise
            return _like(thing, data, "test")  # a set of one part
    raise bad(f"given {name}", what, "a model or a data set")


def _like(name: str, data: Dataset, split: str) -> Dataset:
    """A data set by name, brought to the size and channels of the audited one where they differ."""
    shape = data.space.shape
    if shape is None or len(shape) != 3 or None in shape or shape[1] != shape[2]:
        return load_data(name, split=split)
    return load_data(name, split=split, size=shape[1], channels=shape[0])


def _told(target: Target, data: Dataset, answered: Space) -> Target:
    """A model that does not say what it takes and returns: without a range for data without one, and with the classes that
    it answered with."""
    changes: dict[str, Any] = {}
    if target.space.shape is None and data.space.box is None and target.space.box is not None:
        changes["box"] = None
    if target.space.classes is None and target.module is not None and target.task == "classification":
        changes["classes"] = answered.classes
    if not changes:
        return target
    found: Any = copy.copy(target)
    found.space = replace(target.space, **changes)
    return found


def _place(target: Target, device: str) -> Target:
    if target.module is not None:
        target.module.to(device).eval()
    return target
