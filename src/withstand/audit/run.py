"""Running an audit: plan, work, result.

The work is a list of units (model x check x shard of the data). Units depend on nothing but the plan, each writes one
file of rows, and finished units are never done again; engines differ only in who does which unit.
"""

import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import withstand
from withstand.audit.check import Check, Table
from withstand.audit.compare import compare_models
from withstand.audit.presets import checks_of
from withstand.audit.scorecard import CheckResult, Scorecard
from withstand.audit.store import Store, scratch
from withstand.audit.verdict import verdict
from withstand.data import as_dataset, check_compatible
from withstand.errors import BadInput, WithstandError, bad
from withstand.files import slug, write_json
from withstand.models import as_target, load_model
from withstand.protocols import Context, Dataset, Target
from withstand.random import derive

SHARD = 128
"""Examples in a unit of work: small enough that a lost one costs little."""


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

    def to_json(self) -> dict[str, Any]:
        """What `plan.json` says; two runs with equal plans find equal rows. Device and block are left out: see DESIGN
        of random draws, they change results by rounding at most."""
        return {
            "withstand": withstand.__version__,
            "models": {name: model.fingerprint() for name, model in self.models.items()},
            "data": {"name": self.data.name, "examples": len(self.data), "fingerprint": self.data.fingerprint()},
            "checks": {name: repr(check) for name, check in self.checks.items()},
            "given": {name: thing.fingerprint() for name, thing in sorted(self.given.items())},
            "seed": self.seed,
            "shard": self.shard,
        }

    def shards(self, check: Check) -> list[range]:
        """The positions of the examples of each shard of a check."""
        if not check.own_rows:
            return []
        n = len(self.examples(check))
        n = min(n, check.examples or n)
        return [range(i, min(i + self.shard, n)) for i in range(0, n, self.shard)]

    def examples(self, check: Check) -> Dataset:
        """What the shards of a check are cut from."""
        return check.examples_of(self.data, self.given)

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


@dataclass(frozen=True)
class Unit:
    """One piece of work."""

    model: str
    check: str
    shard: int


Report = Callable[[str, Unit, int, int], None]
"""Told as work goes on: event ("start", "progress", "done"), unit, examples done, examples in all."""


def audit(
    models: Any,
    data: Any,
    preset: str = "standard",
    *,
    checks: Sequence[Any] | None = None,
    given: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    device: str | None = None,
    block: int | None = None,
    engine: str = "local",
    fresh: bool = False,
    report: Report | None = None,
    announce: Callable[[str], None] | None = None,
) -> Scorecard:
    """Find out what classifiers withstand, and whether to believe it.

    models: a module, a target, a text that `load_model` reads, or a dict of them by name (the first is the baseline of
    comparisons). data: a data set, its name, or a pair of tensors (x [N, ...] in [0, 1], y long [N]). preset: "quick",
    "standard" or "full"; checks: components or their texts, instead of the preset's. given: what checks need beside that,
    e.g. {"surrogate": model, "ood": data}. out: the run folder; the same call with the same folder goes on where an
    earlier one stopped; None makes a temporary one. device: default the best at hand. block: examples per pass. engine:
    "local" or "ray". fresh: forget what the folder holds. report, announce: told of the progress and of the estimate.

    Raises:
        BadInput: before any work, for models, data and settings that do not fit together.
        Unavailable: an endpoint or the disk fails; the run can be continued.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    plan = Plan(
        models=_models(models, device),
        data=as_dataset(data),
        checks=checks_of(preset, checks),
        given={name: _given(thing, device) for name, thing in (given or {}).items()},
        preset="" if checks else preset,
        seed=seed,
        device=device,
        block=block,
    )
    for target in plan.models.values():
        check_compatible(target, plan.data)
    folder = Path(out) if out is not None else Path(tempfile.mkdtemp(prefix="withstand-")) / "run"
    with Store(folder, plan.to_json(), fresh) as store:
        units = pending(plan, store)
        if announce is not None:
            announce(estimate(plan, units))
        do = _engine(engine)
        do(plan, store, units, report or (lambda *_: None))
        return collect(plan, store)


def pending(plan: Plan, store: Store) -> list[Unit]:
    """The work that is left, cheapest checks first within a model."""
    return [
        Unit(model, check, shard)
        for model, target in plan.models.items()
        for check, settings in plan.checks.items()
        if plan.obstacle(target, settings) is None
        for shard in range(len(plan.shards(settings)))
        if not store.done(model, check, shard)
    ]


def work(plan: Plan, store: Store, unit: Unit, report: Report) -> None:
    """Do one unit and write its rows. A check that refuses its input leaves a file that says so, and the run goes on."""
    check, target = plan.checks[unit.check], plan.models[unit.model]
    positions = plan.shards(check)[unit.shard]
    started = time.perf_counter()
    with scratch(store.side(unit.model, unit.check, unit.shard)) as folder:
        ctx = Context(
            seed=derive(plan.seed, unit.check),
            device=plan.device,
            block=plan.block,
            folder=folder,
            root=store.folder,
            progress=lambda done: report("progress", unit, done, len(positions)),
        )
        report("start", unit, 0, len(positions))
        artefact = prepared(plan, store, unit, ctx)
        batch = plan.examples(check).batch(positions).to(plan.device)
        rows = list(check.rows(target, batch, plan.given, artefact, ctx))
    cost = {**ctx.cost, "seconds": time.perf_counter() - started, "examples": len(positions)}
    store.write(unit.model, unit.check, unit.shard, rows, plan.seed, cost)
    report("done", unit, len(positions), len(positions))


def prepared(plan: Plan, store: Store, unit: Unit, ctx: Context) -> dict[str, Any] | None:
    """What the check fits once for each model: read from the folder, or fitted now and kept there."""
    from safetensors.torch import load_file, save

    from withstand.files import write_atomic

    path = store.folder / "prepared" / slug(unit.model) / f"{slug(unit.check)}.safetensors"
    if path.is_file():
        return load_file(path, device=plan.device)
    made = plan.checks[unit.check].prepare(plan.models[unit.model], plan.data, plan.given, ctx)
    if made is not None:
        write_atomic(path, save({k: v.detach().cpu().contiguous() for k, v in made.items()}))
    return made


def local(plan: Plan, store: Store, units: Sequence[Unit], report: Report) -> None:
    """One unit after another in this process."""
    failed: set[tuple[str, str]] = set()
    for unit in units:
        if (unit.model, unit.check) in failed:
            continue
        try:
            work(plan, store, unit, report)
        except BadInput as error:
            failed.add((unit.model, unit.check))
            write_json(store.folder / "failed" / slug(unit.model) / f"{slug(unit.check)}.json", {"reason": str(error)})


def _engine(name: str) -> Callable[[Plan, Store, Sequence[Unit], Report], None]:
    if name == "local":
        return local
    raise bad("engine", repr(name), "'local' or 'ray'")


def collect(plan: Plan, store: Store) -> Scorecard:
    """Make the scorecard from the rows in the folder, and write it."""
    import json

    card = Scorecard(
        run=store.name,
        preset=plan.preset,
        command=shlex.join(["withstand", *sys.argv[1:]]) if Path(sys.argv[0]).name.startswith("withstand") else "",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seed=plan.seed,
        device=_device_name(plan.device),
        versions=versions(),
        git=git_state(),
        models={name: _model_card(target) for name, target in plan.models.items()},
        data={
            "name": plan.data.name,
            "fingerprint": plan.data.fingerprint(),
            "examples": len(plan.data),
            "shape": list(plan.data.space.shape or ()),
            "classes": list(plan.data.classes),
        },
        folder=str(store.folder),
    )
    for model, target in plan.models.items():
        tables: dict[str, Table] = {}
        for name in _ordered(plan.checks):
            check = plan.checks[name]
            result = CheckResult(model, name, check.title or name, repr(check))
            card.results.append(result)
            if obstacle := plan.obstacle(target, check):
                result.status, result.reason = obstacle
                continue
            failure = store.folder / "failed" / slug(model) / f"{slug(name)}.json"
            if failure.is_file():
                result.status, result.reason = "failed", json.loads(failure.read_text())["reason"]
                continue
            tables[name], cost = store.read(model, name)
            if not all(store.done(model, name, s) for s in range(len(plan.shards(check)))):
                card.complete = False
            others = {n: t for n, t in tables.items() if kind(plan.checks[n]) in check.after and len(t)}
            if not len(tables[name]) and (check.own_rows or not others):
                waits = "no rows yet" if check.own_rows else f"needs the rows of {' or '.join(check.after)}"
                result.status, result.reason = "skipped", waits
                continue
            side = store.side(model, name)
            ctx = Context(plan.seed, plan.device, plan.block, side, store.folder, classes=plan.data.classes)
            try:
                findings = check.reduce(tables[name], others, ctx)
            except WithstandError as error:
                result.status, result.reason = "failed", str(error)
                continue
            result.metrics, result.figures, result.flags = findings.metrics, findings.figures, findings.flags
            result.seconds = cost.pop("seconds", 0.0)
            result.cost = {k: int(v) for k, v in cost.items()}
    names = _ordered(plan.checks)
    card.results.sort(key=lambda r: (list(plan.models).index(r.model), names.index(r.check)))
    card.comparisons = compare_models(card, {m: {c: store.read(m, c)[0] for c in names} for m in plan.models})
    card.verdict = {name: verdict(card, name) for name in plan.models}
    write_json(store.folder / "scorecard.json", card.to_json())
    card.to_html()
    return card


def estimate(plan: Plan, units: Sequence[Unit]) -> str:
    """How much work is left and roughly how long it takes here, from a probe of each model."""
    seconds = passes = 0.0
    for name, target in plan.models.items():
        mine = [u for u in units if u.model == name]
        if not mine:
            continue
        n = min(32, len(plan.data))
        batch = plan.data.batch(range(n)).to(plan.device)
        each = _probe(target, batch.x) / n
        for unit in mine:
            check = plan.checks[unit.check]
            cost = check.passes(target) * len(plan.shards(check)[unit.shard])
            passes += cost
            seconds += cost * each
    if not units:
        return "nothing left to do"
    return (
        f"{len(units)} pieces of work, at most {passes:,.0f} passes of one example, {_duration(seconds)} on this device"
    )


def _probe(target: Target, x: torch.Tensor) -> float:
    """Seconds for one forward (and gradient, where there is one) pass of the batch; the better of two."""
    best = float("inf")
    for _ in range(2):
        started = time.perf_counter()
        if "gradients" in target.access:
            point = x.clone().requires_grad_(True)
            torch.autograd.grad(target(point).sum(), point)
        else:
            target(x)
        best = min(best, time.perf_counter() - started)
    return best


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"up to {max(1, round(seconds))} s"
    return f"up to {seconds / 60:.0f} min" if seconds < 5400 else f"up to {seconds / 3600:.1f} h"


def _ordered(checks: Mapping[str, Check]) -> list[str]:
    """Checks after those whose rows they read."""
    order: list[str] = []

    def visit(name: str, above: tuple[str, ...] = ()) -> None:
        if name in above:
            raise bad("checks", " -> ".join([*above, name]), "checks that do not wait for each other in a circle")
        for other in checks:
            if kind(checks[other]) in checks[name].after:
                visit(other, (*above, name))
        if name not in order:
            order.append(name)

    for name in checks:
        visit(name)
    return order


def kind(check: Check) -> str:
    """The name a check is registered under; a plan may hold several of one kind under other names."""
    return getattr(type(check), "component_name", type(check).__name__)


def _models(models: Any, device: str) -> dict[str, Target]:
    if isinstance(models, Mapping):
        named = dict(models)
    elif isinstance(models, (list, tuple)):
        named = {}
        for item in models:
            target = load_model(item) if isinstance(item, str) else as_target(item)
            name = target.name
            while name in named:
                name += "'"
            named[name] = target
    else:
        target = load_model(models) if isinstance(models, str) else as_target(models)
        named = {target.name: target}
    if not named:
        raise bad("models", "none", "at least one model")
    return {name: _place(load_model(m) if isinstance(m, str) else as_target(m), device) for name, m in named.items()}


def _place(target: Target, device: str) -> Target:
    if target.module is not None:
        target.module.to(device).eval()
    return target


def _given(thing: Any, device: str) -> Any:
    if isinstance(thing, torch.nn.Module) or hasattr(thing, "access"):
        return _place(as_target(thing), device)
    if isinstance(thing, tuple) or hasattr(thing, "batch"):
        return as_dataset(thing)
    raise bad(
        "given",
        type(thing).__name__,
        "a model (module or target) or a data set",
        "Load it first: load_model('timm:resnet18'), load_data('fashion-mnist').",
    )


def _model_card(target: Target) -> dict[str, Any]:
    module = target.module
    return {
        "spec": target.name,
        "fingerprint": target.fingerprint(),
        "parameters": sum(p.numel() for p in module.parameters()) if module is not None else None,
        "classes": target.space.classes,
        "access": sorted(target.access),
        "notes": list(getattr(target, "notes", ())),
    }


def _device_name(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def versions() -> dict[str, str]:
    """The versions that results depend on."""
    from importlib.metadata import version

    names = ("torch", "torchvision", "timm", "numpy", "opencv-python-headless")
    return {"withstand": withstand.__version__, "python": platform.python_version(), **{n: version(n) for n in names}}


def git_state(folder: Path | None = None) -> dict[str, Any] | None:
    """Commit and cleanliness of the working directory's repository; None outside one."""

    def ask(*args: str) -> str:
        done = subprocess.run(["git", *args], capture_output=True, text=True, timeout=5, cwd=folder, check=True)
        return done.stdout.strip()

    try:
        return {"commit": ask("rev-parse", "HEAD"), "clean": not ask("status", "--porcelain", "--untracked-files=no")}
    except (OSError, subprocess.SubprocessError):
        return None
