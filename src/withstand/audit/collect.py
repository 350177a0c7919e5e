"""Making the scorecard from the rows in a run folder."""

import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

import withstand
from withstand.audit.check import Table
from withstand.audit.compare import compare_models
from withstand.audit.plan import Plan, ordered, read_by
from withstand.audit.scorecard import CheckResult, Scorecard
from withstand.audit.store import Store
from withstand.audit.verdict import verdict
from withstand.errors import WithstandError
from withstand.files import write_json
from withstand.protocols import Context, Target


def collect(plan: Plan, store: Store) -> Scorecard:
    """What the rows in the folder say; written there as scorecard.json and report.html."""
    card = Scorecard(
        run=store.name,
        preset=plan.preset,
        command=command(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seed=plan.seed,
        device=_device_name(plan.device),
        complete=all(store.done(u.model, u.check, u.shard) or store.failed(u.model, u.check) for u in plan.units()),
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
    for model in plan.models:
        tables: dict[str, Table] = {}
        found = {name: _result(plan, store, model, name, tables) for name in ordered(plan.checks)}
        card.results += [found[name] for name in plan.checks]
    card.comparisons = compare_models(store.folder)
    card.verdict = {name: verdict(card, name) for name in plan.models}
    write_json(store.folder / "scorecard.json", card.to_json())
    card.to_html()
    return card


def _result(plan: Plan, store: Store, model: str, name: str, tables: dict[str, Table]) -> CheckResult:
    """One check of one model; its rows are added to `tables` for the checks that read them."""
    check = plan.checks[name]
    result = CheckResult(model, name, check.title or name, repr(check))
    if obstacle := plan.obstacle(plan.models[model], check):
        result.status, result.reason = obstacle
        return result
    if failure := store.failed(model, name):
        result.status, result.reason = "failed", failure
        return result
    table, cost = store.read(model, name)
    others = {other: tables[other] for other in read_by(name, plan.checks) if other in tables}
    if not len(table) and (check.own_rows or not others):
        waits = "no rows yet" if check.own_rows else f"needs the rows of {' or '.join(check.after)}"
        result.status, result.reason = "skipped", waits
        return result
    if len(table) and any(name in read_by(other, plan.checks) for other in plan.checks):  # others need not stay
        tables[name] = table
    side = store.side(model, name)
    ctx = Context(plan.seed, plan.device, plan.block, side, store.folder, classes=plan.data.classes)
    try:
        findings = check.reduce(table, others, ctx)
    except Exception as error:
        known = isinstance(error, WithstandError)
        result.status, result.reason = "failed", str(error) if known else f"{type(error).__name__}: {error}"
        return result
    finally:
        pa.default_memory_pool().release_unused()
    result.metrics, result.figures, result.flags = findings.metrics, findings.figures, findings.flags
    result.seconds = cost.pop("seconds", 0.0)
    result.cost = {k: int(v) for k, v in cost.items()}
    return result


def command() -> str:
    """The command line of this process, if it is ours."""
    return shlex.join(["withstand", *sys.argv[1:]]) if Path(sys.argv[0]).stem == "withstand" else ""


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
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{platform.machine()} CPU, {threads} thread{'s' if threads > 1 else ''}"
