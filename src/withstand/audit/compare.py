"""Models on the same examples: paired differences, and which examples changed sides. DuckDB reads the rows from disk."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from withstand.audit.scorecard import Comparison
from withstand.errors import BadInput, bad
from withstand.files import slug
from withstand.metrics import paired_counts


@dataclass(frozen=True)
class Arm:
    """One model of one run. label: what it is called in a comparison."""

    folder: Path
    model: str
    label: str

    @property
    def files(self) -> dict[str, list[str]]:
        """The files of rows, by the folder of their check."""
        found: dict[str, list[str]] = {}
        for path in sorted((self.folder / "rows" / slug(self.model)).glob("*/[0-9]*.parquet")):
            found.setdefault(path.parent.name, []).append(str(path))
        return found


def compare_models(folder: str | Path, plan: dict[str, Any] | None = None) -> list[Comparison]:
    """Every model of a run against its first one, for each check and condition that both have outcomes for."""
    plan = plan or _plan(Path(folder))
    arms = [Arm(Path(folder), model, model) for model in plan["models"]]
    return [found for arm in arms[1:] for found in compare_arms(arms[0], arm, _probes(plan))]


def compare_runs(folders: Sequence[str | Path]) -> tuple[list[Comparison], list[str]]:
    """Compare the models of several runs: each with the model of the same name in the first run, or with its first
    model where the name is new. One run alone: its models with the first one.

    Returns the comparisons and notes on what was left out. Raises: BadInput for folders that hold no run and for runs
    on different data.
    """
    plans = [_plan(Path(folder)) for folder in folders]
    if not plans:
        raise bad("runs", "none", "the folders of one or more audits")
    first, notes = plans[0], []
    if len(plans) == 1:
        return compare_models(folders[0], first), notes
    names = [Path(folder).resolve().name for folder in folders]
    names = [str(f) if names.count(n) > 1 else n for n, f in zip(names, folders)]
    found: list[Comparison] = []
    for folder, plan, name in zip(folders[1:], plans[1:], names[1:]):
        if plan["data"]["name"] != first["data"]["name"]:
            raise bad(
                "runs",
                f"{names[0]} on {first['data']['name']} and {name} on {plan['data']['name']}",
                "runs on the same data",
                "Paired tests need the same examples.",
            )
        both = set(plan["checks"]) & set(first["checks"])
        differing = {check for check in both if _bare(first["checks"][check]) != _bare(plan["checks"][check])}
        notes += [
            f"{check}: left out, {names[0]} ran {first['checks'][check]} and {name} ran {plan['checks'][check]}"
            for check in sorted(differing)
        ]
        for model in plan["models"]:
            other = model if model in first["models"] else next(iter(first["models"]))
            before = Arm(Path(folders[0]), other, f"{names[0]}/{other}")
            found += compare_arms(before, Arm(Path(folder), model, f"{name}/{model}"), differing | _probes(plan))
    return found, notes


def compare_arms(before: Arm, after: Arm, without: set[str] | None = None) -> list[Comparison]:
    """The paired difference of two models, check by check and condition by condition, on the examples that both have.

    Raises: BadInput where the same examples carry different labels, so that they cannot be the same examples.
    """
    import duckdb

    found, ours, theirs = [], before.files, after.files
    for check in ours.keys() & theirs.keys():  # one at a time, and a new base for each: joins take memory, and keep it
        with duckdb.connect(config={"threads": 1}) as base:
            sides = [ours[check], theirs[check]]
            wrong, rows = (base.execute(query, sides).fetchall() for query in (_LABELS, _PAIRS))
        if wrong[0][0]:
            raise bad(
                "runs",
                f"{wrong[0][0]} examples whose labels differ between {before.label} and {after.label}",
                "runs on the same data",
            )
        found += rows
    return [
        Comparison(
            "withstood", check, before.label, after.label, *paired_counts(gained, lost, n), n,
            gained_ids or [], lost_ids or [], json.loads(condition),
        )
        for check, condition, n, gained, lost, gained_ids, lost_ids in sorted(found)
        if check not in (without or ())
    ]  # fmt: skip


_PAIRED = """
    from read_parquet(?, hive_partitioning = false) a
    join read_parquet(?, hive_partitioning = false) b using ("check", condition, unit, id)
"""
_LABELS = f"select count(distinct id) {_PAIRED} where a.label <> b.label"
_PAIRS = f"""
    select
        "check", condition, count(*),
        count(*) filter (b.outcome and not a.outcome),
        count(*) filter (a.outcome and not b.outcome),
        list(id order by id) filter (b.outcome and not a.outcome),
        list(id order by id) filter (a.outcome and not b.outcome)
    {_PAIRED}
    where a.outcome is not null and b.outcome is not null
    group by "check", condition
    order by "check", condition
"""


def _plan(folder: Path) -> dict[str, Any]:
    path = folder / "plan.json"
    if not path.is_file():
        raise bad(
            "runs",
            str(folder),
            "the folder of an audit, with plan.json in it",
            "Make one with: withstand audit MODEL --data DATA --out FOLDER",
        )
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(f"runs: {path} cannot be read: {error}") from None


def _probes(plan: dict[str, Any]) -> set[str]:
    """The checks whose outcomes say nothing about how good a model is."""
    from withstand.registry import find

    def compared(spec: str) -> bool:
        try:
            return find(spec.partition("(")[0], "check").load().compared
        except BadInput:
            return True

    return {check for check, spec in plan["checks"].items() if not compared(spec)}


def _bare(spec: str) -> str:
    """A check without the number of examples, which a paired comparison does not depend on."""
    from withstand.registry import parse, replace, to_call

    try:
        return to_call(replace(parse(spec, "check"), examples=None))
    except BadInput:  # a check of a package that is not installed here
        return spec
