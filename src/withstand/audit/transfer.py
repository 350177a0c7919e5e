"""The transfer matrix: how often points made on one model fool another."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from withstand.attacks.engine import Attack
from withstand.audit.check import Check, Table
from withstand.audit.craft import towards
from withstand.audit.engines import ENGINES
from withstand.audit.measure import attack_passes, predict, run_attack
from withstand.audit.plan import Plan, make_plan, refuse_unfit
from withstand.audit.run import Report, follow
from withstand.audit.store import Store
from withstand.errors import BadInput, bad, unknown
from withstand.files import write_atomic, write_json
from withstand.metrics import bootstrap, wilson
from withstand.protocols import Batch, Context, Row, Target
from withstand.registry import coerce, replace, to_call

DEFINITION = (
    "Success is the share of images that a model gets wrong after the attack, of those that every model in the table gets "
    "right before it. Points are the attack's last iterates, rounded to 8 bits where the images are."
)

_ASIDE = "surrogate "
"""Before the names of surrogates that are no targets: their clean predictions count, no points are judged on them."""


def transfer(
    surrogates: Any,
    targets: Any,
    data: Any,
    attacks: Sequence[Any] = ("mi", "ni", "di", "ti", "si", "vmi"),
    *,
    out: str | Path,
    threat: Any = "linf(16/255)",
    seeds: int = 1,
    seed: int = 0,
    device: str | None = None,
    block: int | None = None,
    engine: str = "local",
    fresh: bool = False,
    report: Report | None = None,
    announce: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Attack each surrogate with each attack, judge the points on all targets, and return the matrix.

    surrogates, targets: as the models of `audit`, by name. A target that is the surrogate itself is marked white box; each
    surrogate is judged on its own points in any case. data: as for `audit`; attacks: components or their texts, which
    search the `threat` given here. seeds: how many runs of each attack. out: a folder for `transfer.json`, `transfer.md`,
    `index.html` and the rows; the same call continues where an earlier one stopped.

    In the result, "cells" has a success rate with its 95 % interval for each surrogate, attack and target (Wilson for one
    seed, bootstrap over images for several), "runs" the mean Linf and L2 distance, SSIM and passes for each surrogate and
    attack.

    Raises:
        BadInput: before any work, for models, data, attacks and settings that do not fit; and if no image is left that
            every model gets right.
    """
    if engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    if seeds < 1:
        raise bad("seeds", seeds, "a whole number >= 1")
    plan = _plan(surrogates, targets, data, attacks, coerce("threat")(threat), seeds, seed, device, block)
    with Store(Path(out), plan.to_json(), fresh) as store:
        follow(plan, store, engine, report, announce)
        for surrogate in plan.models:
            for name in plan.checks:
                if reason := store.failed(surrogate, name):
                    raise BadInput(f"{name} on {surrogate}: {reason}")
        found = _collect(plan, store)
    _write(Path(out), found)
    return found


@dataclass(frozen=True, kw_only=True)
class Crossing(Check):
    """One run of one attack on one surrogate, judged on all targets, shard by shard."""

    attack: Any = None
    run: int = 0

    component_name = "transfer_matrix"
    access = frozenset({"gradients"})

    def passes(self, target: Target) -> float:
        return 2 + attack_passes(self.attack, target)

    def rows(
        self, target: Target, shard: Batch, given: Mapping[str, Any], artefact: Any, ctx: Context
    ) -> Iterable[Row]:
        assert shard.ids is not None
        assert shard.y is not None
        right = predict(target, shard.x, ctx).argmax(1) == shard.y
        for other in given.values():
            right &= predict(other, shard.x, ctx).argmax(1) == shard.y
        for id_, kept in zip(shard.ids.tolist(), right.tolist()):
            yield Row("image", id_, {"of": "kept"}, kept)
        if not bool(right.any()):
            return
        batch = shard.index(right)
        x, y, ids = batch.x, batch.y, batch.ids
        assert y is not None
        assert ids is not None
        found = run_attack(self.attack, target, x, y, ids, ctx)
        z = found.x_adv
        if x.dim() == 4 and bool(((x * 255).round() / 255 - x).abs().max() < 1e-6):
            z = towards(z, x)
        delta = (z.double() - x.double()).flatten(1)
        measures = {"linf": delta.abs().amax(1), "l2": delta.norm(dim=1), "passes": found.forwards + found.backwards}
        if x.dim() == 4:
            measures["ssim"] = ssim(x, z)
        for name, values in measures.items():
            for id_, value in zip(ids.tolist(), values.tolist()):
                yield Row("image", id_, {"of": name}, None, float(value))
        judges = {name: other for name, other in given.items() if not name.startswith(_ASIDE)}
        for name, judge in {"": target, **judges}.items():
            guesses = predict(judge, z, ctx).argmax(1)
            for id_, label, guess in zip(ids.tolist(), y.tolist(), guesses.tolist()):
                yield Row("image", id_, {"target": name}, guess == label, None, label, guess)


def ssim(x: Tensor, z: Tensor) -> Tensor:
    """Structural similarity of images [N, C, H, W] in [0, 1], float64 [N]; 1 for equal ones.

    The mean over positions and channels of (2 m_x m_z + c1)(2 s_xz + c2) / ((m_x^2 + m_z^2 + c1)(s_x^2 + s_z^2 + c2)), with
    means and (co)variances under a Gaussian window of 11 pixels and sigma 1.5 (the largest odd window that fits, for smaller
    images), c1 = 0.01^2, c2 = 0.03^2, at positions where the window lies inside.

    Reference: Wang, Bovik, Sheikh, Simoncelli, "Image Quality Assessment: From Error Visibility to Structural Similarity",
    IEEE Transactions on Image Processing 2004.
    """
    side = min(11, *x.shape[2:])
    i = torch.arange(side - 1 + side % 2, dtype=torch.float64, device=x.device)
    line = torch.exp(-(((i - i.mean()) / 1.5) ** 2) / 2)
    window = torch.outer(line, line) / line.sum() ** 2

    def local(v: Tensor) -> Tensor:
        return F.conv2d(v.flatten(0, 1)[:, None], window[None, None]).unflatten(0, v.shape[:2])

    a, b = x.double(), z.double()
    ma, mb = local(a), local(b)
    va, vb, vab = local(a * a) - ma * ma, local(b * b) - mb * mb, local(a * b) - ma * mb
    c1, c2 = 0.01**2, 0.03**2
    alike = (2 * ma * mb + c1) * (2 * vab + c2) / ((ma * ma + mb * mb + c1) * (va + vb + c2))
    return alike.flatten(1).mean(1)


def _plan(
    surrogates: Any,
    targets: Any,
    data: Any,
    attacks: Sequence[Any],
    threat: Any,
    seeds: int,
    seed: int,
    device: str | None,
    block: int | None,
) -> Plan:
    if not attacks:
        raise bad("attacks", "none", "at least one, e.g. mi", "See: withstand list attacks")
    chosen: dict[str, Check] = {}
    for item in attacks:
        attack = coerce("attack")(item)
        if not isinstance(attack, Attack) or not (attack.blind or attack.access == "gradients"):
            raise bad(
                "attacks", repr(attack), "attacks that follow gradients, e.g. mi, or ask no model, e.g. generated"
            )
        name = item if isinstance(item, str) else to_call(attack)
        if name in chosen:
            raise bad("attacks", f"{name} twice", "each attack once")
        moved = replace(attack, threat=threat, keep="last", active=False)
        for run in range(seeds):
            chosen[name if run == 0 else f"{name} #{run}"] = Crossing(attack=moved, run=run)
    plan = make_plan(surrogates, data, seed=seed, device=device, block=block, checks=list(chosen.values())[:1])
    others = make_plan(targets, plan.data, seed=seed, device=device, checks=list(chosen.values())[:1]).models
    for name, target in plan.models.items():
        if "gradients" not in target.access:
            raise bad("surrogates", f"{name}, which gives {', '.join(sorted(target.access))}", "models with gradients")
    counts = [(t.name, t.space.classes) for t in (*plan.models.values(), *others.values()) if t.space.classes]
    if len({classes for _, classes in counts}) > 1:
        raise bad("targets", f"models with different classes: {counts}", "surrogates and targets with the same classes")
    for check in chosen.values():
        refuse_unfit(plan, check)
    return Plan(
        plan.models, plan.data, chosen, {**others, **_unlike(plan.models, others)}, "", seed, 128, plan.device, block
    )


def _unlike(own: Mapping[str, Target], others: Mapping[str, Target]) -> dict[str, Target]:
    """Surrogates that are no targets: judged for the filter, so that all rows of the matrix are over the same images."""
    known = {target.fingerprint() for target in others.values()}
    return {f"{_ASIDE}{name}": t for name, t in own.items() if t.fingerprint() not in known}


def _collect(plan: Plan, store: Store) -> dict[str, Any]:
    prints = {name: target.fingerprint() for name, target in plan.given.items()}
    targets = [name for name in plan.given if not name.startswith(_ASIDE)]
    names = list(dict.fromkeys(name.partition(" #")[0] for name in plan.checks))
    cells, runs, kept = [], [], 0
    for surrogate, model in plan.models.items():
        own = model.fingerprint()
        for name in names:
            tables = [store.read(surrogate, n) for n in plan.checks if n.partition(" #")[0] == name]
            rows = [table for table, _ in tables]
            kept = int(rows[0].where(of="kept").outcome.sum())
            if kept == 0:
                raise bad("data", "no image that every model gets right", "at least one", "Is it the models' data set?")
            measures = {m: _mean(rows, m) for m in ("linf", "l2", "ssim", "passes")}
            seconds = sum(cost.get("seconds", 0.0) for _, cost in tables)
            runs.append({"surrogate": surrogate, "attack": name, **measures, "seconds": seconds})
            white = [t for t in targets if prints[t] == own]
            for judge in ["", *(t for t in targets if t not in white)]:
                fooled = np.stack([~t.where(target=judge).outcome for t in rows]).mean(0)
                rate = float(fooled.mean())
                low, high = wilson(int(fooled.sum()), kept) if len(rows) == 1 else bootstrap(fooled)
                named = {"surrogate": surrogate, "attack": name, "target": judge or (white[0] if white else surrogate)}
                interval = "wilson" if len(rows) == 1 else "bootstrap"
                spread = {"low": low, "high": high, "interval": interval, "n": kept}
                cells.append({**named, "white_box": not judge, "success": rate, **spread})
    first = next(iter(plan.checks.values()))
    assert isinstance(first, Crossing)
    return {
        "definition": DEFINITION,
        "threat": to_call(first.attack.threat),
        "data": plan.data.name,
        "examples": len(plan.data),
        "kept": kept,
        "seeds": len(plan.checks) // len(names),
        "attacks": {n: to_call(c.attack) for n, c in plan.checks.items() if isinstance(c, Crossing) and c.run == 0},
        "targets": targets,
        "cells": cells,
        "runs": runs,
        "plan": plan.to_json(),
    }


def _mean(rows: Sequence[Table], measure: str) -> float | None:
    values = [v for table in rows for v in table.where(of=measure).value]
    return float(np.mean(values)) if values else None


def _write(out: Path, found: dict[str, Any]) -> None:
    from withstand.report.transfer import markdown, page

    write_json(out / "transfer.json", found)
    write_atomic(out / "transfer.md", markdown(found))
    write_atomic(out / "index.html", page(found))
