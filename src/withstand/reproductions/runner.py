"""Running a reproduction: seed after seed, resumable, with a verdict on every claim."""

import hashlib
import importlib
import json
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np

from withstand import __version__
from withstand.errors import bad, unknown
from withstand.files import write_json
from withstand.protocols import Claim
from withstand.reproductions import available

RESULTS = Path(__file__).parent / "results"
SCALES = ("smoke", "cpu", "gpu")

Verdict = Literal["shown", "not shown", "inconclusive"]
Progress = Callable[[str], None]


def reproduce(
    system: str,
    scale: str = "smoke",
    seeds: Iterable[int] | None = None,
    out: str | Path | None = None,
    progress: Progress = lambda text: None,
    keep: Sequence[str] = (),
) -> dict[str, Any]:
    """Measure a system's claims again, write `<out>/<system>.<scale>.json` and return what is in it.

    A killed run goes on where it stopped: finished parts of seeds are kept in a hidden file beside the result until all are
    done. They are measured anew when the module, the scale's settings or the version of withstand or torch has changed.

    system: an id of `withstand list systems`. scale: "smoke" (minutes on two cores), "cpu" (the recorded one) or "gpu".
    seeds: None takes those of the claims (the first one only at scale "smoke"). out: a folder, by default this
    package's own. progress: called with a line of text at every stage. keep: parts of the module whose rows are taken from
    the result that is there instead of being measured again, by one who knows that their code does what it did.

    Raises:
        BadInput: an unknown system, scale or part, no seeds, a module whose rows do not fit its claims, or nothing to keep:
            no such result, or one of other seeds, settings or versions.
    """
    module = _module(system)
    claims: list[Claim] = module.CLAIMS
    _check_scale(claims, scale)
    seeds = list(dict.fromkeys(_default_seeds(claims, scale) if seeds is None else seeds))
    if not seeds:
        raise bad("seeds", "none", "at least one whole number")
    folder = RESULTS if out is None else Path(out)
    partial = folder / f".{system}.{scale}.partial.json"
    key = _fingerprint(module, claims, scale)
    parts: dict[str, Any] = getattr(module, "PARTS", None) or {"": module.measure}
    kept = _kept(folder / f"{system}.{scale}.json", claims, scale, seeds, parts, list(keep))
    done = _resume(partial, key) | kept
    for i, seed in enumerate(seeds):
        for part, measure in parts.items():
            place = f"{seed} {part}".strip()
            if place in done:
                progress(f"seed {place}: measured before")
                continue
            progress(f"seed {place} ({i + 1} of {len(seeds)})")
            begin = time.perf_counter()
            named = {"part": part} if part else {}
            rows = _checked([{**named, **row} for row in measure(scale, seed, progress)["rows"]], system)
            done[place] = {"seconds": round(time.perf_counter() - begin, 1), "rows": rows}
            fresh = {name: found for name, found in done.items() if name not in kept}
            write_json(partial, {"key": key, "seeds": fresh})
    measured = {seed: _whole([done[f"{seed} {part}".strip()] for part in parts], system) for seed in seeds}
    result = {
        "system": system,
        "scale": scale,
        "settings": dict(claims[0].scales[scale]),
        "seeds": seeds,
        "seconds": {seed: m["seconds"] for seed, m in measured.items()},
        "claims": [judge(claim, [m["rows"] for m in measured.values()]) for claim in claims],
        "table": _table([m["rows"] for m in measured.values()]),
        "versions": _versions(),
        "rows": {seed: m["rows"] for seed, m in measured.items()},
    }
    if kept:
        result["kept"] = list(keep)
    if len(parts) > 1:
        result["parts"] = {p: {seed: done[f"{seed} {p}"]["seconds"] for seed in seeds} for p in parts}
    if hasattr(module, "figures"):
        result["figures"] = [asdict(figure) for figure in module.figures([m["rows"] for m in measured.values()])]
    write_json(folder / f"{system}.{scale}.json", result)
    partial.unlink(missing_ok=True)
    return result


def judge(claim: Claim, seeds: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """The claim with the difference of its metric, last arm minus first, its interval, and the verdict.

    The interval is a percentile bootstrap over examples and, where there are several, over seeds; both arms see the same
    draws. "shown": it lies on the claimed side of zero; "not shown": at zero or on the other side; else "inconclusive".
    """
    first, last = claim.arms[0], claim.arms[-1]
    baseline, method = _examples(claim, seeds, first), _examples(claim, seeds, last)
    if baseline.shape != method.shape:
        raise bad("rows", f"{method.shape[1]} examples for {last!r}", f"{baseline.shape[1]}, as for {first!r}")
    low, high = paired_interval(method - baseline)
    return {
        "statement": claim.statement,
        "source": claim.source,
        "metric": claim.metric,
        "direction": claim.direction,
        "arms": list(claim.arms),
        "values": [float(baseline.mean()), float(method.mean())],
        "difference": float((method - baseline).mean()),
        "low": low,
        "high": high,
        "n": int(baseline.shape[1]),
        "seeds": len(seeds),
        "verdict": verdict(low, high, claim.direction),
    }


def verdict(low: float, high: float, direction: Literal["higher", "lower"]) -> Verdict:
    """What an interval of the difference says about a claim that it is higher (lower) than zero."""
    if direction == "lower":
        low, high = -high, -low
    rounding = 1e-12
    return "shown" if low > rounding else "not shown" if high <= rounding else "inconclusive"


def paired_interval(differences: np.ndarray, draws: int = 4000, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap of the mean of paired differences [seeds, examples]; seeds and examples are drawn whole."""
    seeds, n = differences.shape
    generator = np.random.default_rng(0)
    of_seeds = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=draws) / seeds
    of_examples = generator.multinomial(n, np.full(n, 1 / n), size=draws) / n
    low, high = np.quantile(((of_seeds @ differences) * of_examples).sum(1), [0.5 - level / 2, 0.5 + level / 2])
    return float(low), float(high)


def values(row: dict[str, Any]) -> np.ndarray:
    """The numbers of a row's examples, float [N]."""
    examples = row["examples"]
    return np.array([float(v) for v in examples])


def _module(system: str) -> Any:
    if system not in available():
        raise unknown("system with a reproduction", system, available())
    return importlib.import_module(available()[system])


def _check_scale(claims: list[Claim], scale: str) -> None:
    offered = [s for s in SCALES if all(s in claim.scales for claim in claims)]
    if scale not in offered:
        raise bad("scale", repr(scale), " or ".join(map(repr, offered)))


def _default_seeds(claims: list[Claim], scale: str) -> tuple[int, ...]:
    return claims[0].seeds[:1] if scale == "smoke" else claims[0].seeds


def _fingerprint(module: Any, claims: list[Claim], scale: str) -> str:
    text = Path(module.__file__).read_text(encoding="utf-8")
    parts = [text, json.dumps([dict(c.scales[scale]) for c in claims], sort_keys=True), *_versions().values()]
    return hashlib.sha256("\x1f".join(map(str, parts)).encode()).hexdigest()[:32]


def _resume(partial: Path, key: str) -> dict[str, Any]:
    if not partial.is_file():
        return {}
    kept = json.loads(partial.read_text(encoding="utf-8"))
    return kept["seeds"] if kept["key"] == key else {}


def _kept(
    path: Path, claims: list[Claim], scale: str, seeds: list[int], parts: dict[str, Any], keep: list[str]
) -> dict[str, Any]:
    """What a recorded result says of these parts, as seeds are kept; rows that name no part are of the first."""
    if not keep:
        return {}
    for part in keep:
        if part not in parts:
            raise unknown("part to keep", part, parts)
    recorded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"seeds": []}
    if missing := [seed for seed in seeds if seed not in recorded["seeds"]]:
        raise bad("keep", f"no record of seed {missing[0]} in {path}", "parts that were recorded with these seeds")
    now = json.loads(json.dumps(dict(claims[0].scales[scale])))
    for part in keep:
        settings = [s.get(part, {k: v for k, v in s.items() if k not in parts}) for s in (recorded["settings"], now)]
        if settings[0] != settings[1] or recorded["versions"] != _versions():
            what = "settings" if settings[0] != settings[1] else "versions"
            raise bad(
                "keep", f"{part!r}, recorded with other {what}", "what was measured as it would be now", "Measure it."
            )
    first = next(iter(parts))
    return {
        f"{seed} {part}": {
            "seconds": recorded.get("parts", {}).get(part, recorded["seconds"])[str(seed)],
            "rows": [{"part": part, **r} for r in recorded["rows"][str(seed)] if r.get("part", first) == part],
        }
        for seed in seeds
        for part in keep
    }


def _whole(measured: list[dict[str, Any]], system: str) -> dict[str, Any]:
    """The parts of a seed as one."""
    rows = _checked([row for part in measured for row in part["rows"]], system)
    return {"seconds": round(sum(part["seconds"] for part in measured), 1), "rows": rows}


def _checked(rows: list[dict[str, Any]], system: str) -> list[dict[str, Any]]:
    seen = [(r["arm"], r["metric"]) for r in rows]
    if len(set(seen)) != len(seen) or any(not len(r["examples"]) for r in rows):
        raise bad("rows", f"{system} measured an arm twice, or none of its examples", "one row per arm and metric")
    return [{**r, "n": len(r["examples"]), "value": float(values(r).mean())} for r in rows]


def _examples(claim: Claim, seeds: list[list[dict[str, Any]]], arm: str) -> np.ndarray:
    found = [[r for r in rows if (r["arm"], r["metric"]) == (arm, claim.metric)] for rows in seeds]
    if any(len(rows) != 1 for rows in found):
        known = [f"{r['arm']}: {r['metric']}" for r in seeds[0]]
        raise unknown("measured arm and metric", f"{arm}: {claim.metric}", known)
    return np.stack([values(rows[0]) for rows in found])


def _table(seeds: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Arm, metric, mean over seeds, its interval, n; in the order of measuring."""
    table = []
    for row in seeds[0]:
        same = [r for rows in seeds for r in rows if (r["arm"], r["metric"]) == (row["arm"], row["metric"])]
        stacked = np.stack([values(r) for r in same])
        low, high = paired_interval(stacked)
        line = {"arm": row["arm"], "metric": row["metric"], "value": float(stacked.mean()), "low": low, "high": high}
        table.append({**line, "n": row["n"], "seeds": len(same)})
    return table


def _versions() -> dict[str, str]:
    packages = {name: metadata.version(name) for name in ("torch", "numpy", "scikit-learn")}
    return {"withstand": __version__, "python": platform.python_version(), **packages}
