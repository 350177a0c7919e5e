"""Running an audit: plan, work, result.

The work is a list of units (model x check x shard of the data). Units depend on nothing but the plan, each writes one
file of rows, and finished units are never done again; engines differ only in who does which unit.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from withstand.audit.collect import collect
from withstand.audit.engines import ENGINES, Tell
from withstand.audit.plan import Plan, Unit, estimate, make_plan
from withstand.audit.scorecard import Scorecard
from withstand.audit.store import Store
from withstand.errors import unknown

Report = Callable[[str, str, int, int], None]
"""Told as work goes on: model, check, examples done, examples in all."""


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
    "local" or "ray". fresh: forget what the folder holds. report, announce: told of the progress (model, check,
    examples done, examples in all) and of the estimate.

    Raises:
        BadInput: before any work, for models, data and settings that do not fit together.
        Unavailable: an endpoint or the disk fails; the run can be continued.
    """
    if engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    plan = make_plan(models, data, preset, checks, given, seed, device, block)
    folder = Path(out) if out is not None else Path(tempfile.mkdtemp(prefix="withstand-")) / "run"
    with Store(folder, plan.to_json(), fresh) as store:
        follow(plan, store, engine, report, announce)
        return collect(plan, store)


def follow(
    plan: Plan,
    store: Store,
    engine: str = "local",
    report: Report | None = None,
    announce: Callable[[str], None] | None = None,
) -> None:
    """Do what is left of a plan; checks that failed before are tried again."""
    store.forgive()
    left = [unit for unit in plan.units() if not store.done(unit.model, unit.check, unit.shard)]
    if announce is not None:
        announce(estimate(plan, left))
    ENGINES[engine](plan, store, left, _tell(plan, left, report) if report else lambda unit, done: None)


def _tell(plan: Plan, left: Sequence[Unit], report: Report) -> Tell:
    """What the engines call: adds up the pieces of work of each check of each model."""
    totals: dict[tuple[str, str], int] = {}
    done: dict[tuple[str, str], dict[int, int]] = {}
    for unit in plan.units():
        key, n = (unit.model, unit.check), len(plan.positions(unit))
        totals[key] = totals.get(key, 0) + n
        done.setdefault(key, {})[unit.shard] = n
    for unit in left:
        done[unit.model, unit.check][unit.shard] = 0

    def tell(unit: Unit, finished: int) -> None:
        key = unit.model, unit.check
        done[key][unit.shard] = finished
        report(*key, sum(done[key].values()), totals[key])

    return tell
