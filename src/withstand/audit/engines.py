"""Who does the work of an audit: this process, or the workers of a Ray cluster. Same store, same rows."""

import importlib.util
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from withstand.audit.check import Check
from withstand.audit.plan import Plan, Unit
from withstand.audit.store import Store, scratch
from withstand.errors import Unavailable, WithstandError, missing_extra
from withstand.models.threads import suited_threads
from withstand.protocols import Context
from withstand.random import derive

Tell = Callable[[Unit, int], None]
"""Told as work goes on: a unit, and how many of its examples are done."""

Engine = Callable[[Plan, Store, Sequence[Unit], Tell], None]


def local(plan: Plan, store: Store, units: Sequence[Unit], tell: Tell) -> None:
    """One unit after another in this process. What a check cannot do does not stop the others."""
    failed: set[tuple[str, str]] = set()
    for unit in units:
        key = unit.model, unit.check
        if key not in failed and attempt(store, unit, partial(work, plan, store, unit, tell)):
            failed.add(key)


def ray(plan: Plan, store: Store, units: Sequence[Unit], tell: Tell) -> None:
    """Every unit is a task of a Ray cluster ($RAY_ADDRESS, or one started on this machine).

    The plan lies in the object store once and is read once by each worker process. The run folder must be one that all
    workers see. A unit whose worker died is done again, three times at most.
    """
    try:
        import ray as cluster
        from ray import cloudpickle
        from ray.exceptions import RayError, RayTaskError
    except ImportError:
        raise missing_extra("ray", "cluster", "the engine 'ray'") from None

    started = not cluster.is_initialized()
    if started:
        cluster.init(os.environ.get("RAY_ADDRESS"), include_dashboard=False, log_to_driver=False)
    task = cluster.remote(_unit).options(max_retries=3, num_gpus=1 if plan.device.startswith("cuda") else 0)
    try:
        _carry(plan, cloudpickle)
        held = cluster.put(plan)
        folder = str(store.folder.resolve())
        failed: set[tuple[str, str]] = set()
        fitted = {(u.model, u.check): u for u in units if type(plan.checks[u.check]).prepare is not Check.prepare}
        for stage, left in ((True, list(fitted.values())), (False, list(units))):
            waiting = {task.remote([held], folder, u, stage): u for u in left if (u.model, u.check) not in failed}
            while waiting:
                (first, *_), _ = cluster.wait(list(waiting))
                unit = waiting.pop(first)
                if cluster.get(first):
                    failed.add((unit.model, unit.check))
                elif not stage:
                    tell(unit, len(plan.positions(unit)))
    except RayTaskError as error:
        cause = error.as_instanceof_cause()
        raise (cause if isinstance(cause, WithstandError) else error) from None
    except RayError as error:
        raise Unavailable(
            f"the cluster lost a worker ({type(error).__name__}). The same command continues where this one stopped."
        ) from error
    finally:
        if started:
            cluster.shutdown()


ENGINES: dict[str, Engine] = {"local": local, "ray": ray}


def attempt(store: Store, unit: Unit, do: Callable[[], object]) -> bool:
    """Do a piece of work; where its check cannot, leave a file that says so and return True.

    Raises: Unavailable where the world failed and not the check: the run stops and can be continued.
    """
    try:
        do()
    except (Unavailable, OSError, MemoryError, torch.OutOfMemoryError) as error:
        if isinstance(error, Unavailable):
            raise
        raise Unavailable(
            f"{unit.check} of {unit.model} stopped: {error}. The same command continues where this one stopped."
        ) from error
    except WithstandError as error:
        store.fail(unit.model, unit.check, str(error))
        return True
    except Exception as error:
        store.fail(unit.model, unit.check, f"{type(error).__name__}: {error}", traceback.format_exc())
        return True
    return False


def work(plan: Plan, store: Store, unit: Unit, tell: Tell) -> None:
    """Do one unit and write its rows."""
    check, target = plan.checks[unit.check], plan.models[unit.model]
    positions = plan.positions(unit)
    started = time.perf_counter()
    with scratch(store.side(unit.model, unit.check, unit.shard)) as folder:
        ctx = _context(plan, store, unit)
        ctx.folder, ctx.progress = folder, partial(tell, unit)
        tell(unit, 0)
        batch = plan.examples(check).batch(positions).to(plan.device)
        with suited_threads(target.module, plan.data.batch([0]).to(plan.device).x):
            artefact = prepared(plan, store, unit)
            rows = list(check.rows(target, batch, plan.given, artefact, ctx))
    cost = {**ctx.cost, "seconds": time.perf_counter() - started, "examples": len(positions)}
    store.write(unit.model, unit.check, unit.shard, rows, plan.seed, cost)
    tell(unit, len(positions))


def prepared(plan: Plan, store: Store, unit: Unit) -> dict[str, Any] | None:
    """What the check fits once for each model: read from the folder, or fitted now and kept there."""
    kept = store.kept(unit.model, unit.check, plan.device)
    if kept is not None:
        return kept
    ctx = _context(plan, store, unit)
    made = plan.checks[unit.check].prepare(plan.models[unit.model], plan.data, plan.given, ctx)
    if made is not None:
        store.keep(unit.model, unit.check, made)
    return made


def _context(plan: Plan, store: Store, unit: Unit) -> Context:
    return Context(derive(plan.seed, unit.check), plan.device, plan.block, root=store.folder)


_plans: dict[str, Plan] = {}


def _unit(held: list[Any], folder: str, unit: Unit, fit: bool) -> bool:
    """In a worker: one unit, or the fitting that its check does once. Opens the folder without taking its lock."""
    import ray as cluster

    key = held[0].hex()
    if key not in _plans:
        _plans.clear()
        _plans[key] = cluster.get(held[0])
    plan, store = _plans[key], Store(folder, {})
    do = (lambda: prepared(plan, store, unit)) if fit else (lambda: work(plan, store, unit, lambda *_: None))
    return attempt(store, unit, do)


def _carry(plan: Plan, pickle: Any) -> None:
    """Send classes by value that workers could not import: those of a script or of a file that was loaded by path."""
    things = [*plan.models.values(), *plan.given.values(), *plan.checks.values(), plan.data]
    modules = [m for t in things if getattr(t, "module", None) is not None for m in t.module.modules()]
    for name in {type(thing).__module__ for thing in [*things, *modules]} - {"__main__"}:
        try:
            found = importlib.util.find_spec(name) is not None
        except (ImportError, ValueError):
            found = False
        if not found and name in sys.modules:
            pickle.register_pickle_by_value(sys.modules[name])
