"""Writing adversarial examples: `.npz` or PNG files, with a manifest that says for each image what was found.

The work is done in blocks in a run folder beside the result (NAME.unfinished), so that a command that is stopped goes
on; the result appears whole, and the folder goes.
"""

import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from withstand.audit.check import Check, Table
from withstand.audit.checks.clean import predict
from withstand.audit.collect import git_state, versions
from withstand.audit.measure import attack_passes
from withstand.audit.plan import Plan, make_plan
from withstand.audit.run import Report, follow
from withstand.audit.store import Store, scratch
from withstand.errors import BadInput, Unavailable, bad
from withstand.files import write_json
from withstand.metrics import wilson
from withstand.protocols import Batch, Context, Row, Target
from withstand.registry import coerce


@dataclass(frozen=True, kw_only=True)
class Craft(Check):
    """The work of writing adversarial examples, shard by shard. rounded: to 8 bits per channel, towards the original."""

    attack: Any = None
    rounded: bool = False

    component_name = "craft"

    @property
    def task(self) -> str:  # type: ignore[override]
        return "retrieval" if self.attack.access == "top_k" else "classification"

    def passes(self, target: Target) -> float:
        return 1 + self.rounded + attack_passes(self.attack, target)

    def rows(
        self, target: Target, shard: Batch, given: Mapping[str, Any], artefact: Any, ctx: Context
    ) -> Iterable[Row]:
        assert shard.ids is not None
        x = shard.x
        found = self.attack.run(
            target, x, shard.y, seed=ctx.seed, ids=shard.ids, block=ctx.block, progress=ctx.progress
        )  # fmt: skip
        x_adv, success = found.x_adv, found.success
        if self.task == "retrieval":
            x_adv = towards(x_adv, x) if self.rounded else x_adv
            success = _apart(target, x, x_adv)
            prediction = torch.full_like(shard.ids, -1)
        else:
            prediction = predict(target, x_adv, ctx).argmax(1)
            if self.attack.keep == "last" and shard.y is not None:
                # the attack itself asks nothing about its last iterates
                aim = getattr(getattr(self.attack, "objective", None), "target", None)
                success = (prediction != shard.y) & (True if aim is None else prediction == aim)
            if self.rounded:
                x_adv = towards(x_adv, x)
                exact, prediction = prediction, predict(target, x_adv, ctx).argmax(1)
                success = success & (prediction == exact)
        distance = self.attack.threat.distance(x.double(), x_adv.double()) if self.attack.threat else found.distance
        np.save(ctx.folder / "x.npy", x_adv.cpu().numpy())
        labels = shard.y if shard.y is not None else prediction
        cost = found.forwards + found.backwards
        columns = (shard.ids, success, found.value, labels, prediction, distance, cost)
        for id_, won, value, label, guess, far, spent in zip(*(c.tolist() for c in columns)):
            yield Row("image", id_, {"attack": repr(self.attack)}, not won, value, label, guess, far, spent)


def _apart(target: Target, x: torch.Tensor, x_adv: torch.Tensor) -> torch.Tensor:
    """Whether an engine's lists of two batches share nothing, bool [N]; asks both anew, two questions an
    image that are not in its cost (a log answers the clean ones)."""
    return torch.tensor([not set(a) & set(b) for a, b in zip(target(x), target(x_adv))], device=x.device)


def craft(
    model: Any,
    data: Any,
    attack: Any,
    out: str | Path,
    *,
    seed: int = 0,
    device: str | None = None,
    block: int | None = None,
    engine: str = "local",
    fresh: bool = False,
    report: Report | None = None,
    announce: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Write the adversarial examples that an attack finds, and return the manifest.

    out: a name that ends in `.npz` (arrays x float32 [N, C, H, W] in [0, 1], y, id; readable as data again; the
    manifest lies beside it as `.json`), or a folder for PNG files with `labels.csv` and `manifest.json`.
    PNG files hold 8 bits per channel: pixels are rounded towards the original, which keeps every norm's bound, and
    `success` says whether the rounded image still does it.

    Raises:
        BadInput: before any work; also where `out` holds something else. Unavailable: the disk or an endpoint fails.
    """
    out, attack = Path(out), coerce("attack")(attack)
    manifest = out.with_suffix(".json") if out.suffix == ".npz" else out / "manifest.json"
    png = out.suffix != ".npz"
    plan = make_plan(model, data, seed=seed, device=device, block=block, checks=[Craft(attack=attack, rounded=png)])
    (name,) = plan.models
    _refuse(plan, name, attack, png)
    described = plan.to_json()
    done = _finished(manifest, out, described, fresh)
    if done is not None:
        return done
    work = out.with_name(out.name + ".unfinished")
    with Store(work, described, fresh) as store:
        store.forgive()
        follow(plan, store, engine, report, announce)
        if reason := store.failed(name, "craft"):
            raise BadInput(reason)
        table, _ = store.read(name, "craft")
        listed = _manifest(plan, described, attack, table)
        blocks = [store.side(name, "craft", shard) / "x.npy" for shard in range(len(plan.shards(plan.checks["craft"])))]
        try:
            if png:
                _write_folder(out, blocks, listed)
            else:
                _write_npz(out, blocks, listed, plan.data.classes)
                write_json(manifest, listed)
        except OSError as error:
            raise Unavailable(f"cannot write {out}: {error}. Free some space; the same command continues.") from error
        shutil.rmtree(work)
    return listed


def towards(z: Tensor, x: Tensor) -> Tensor:
    """z rounded to 255ths, each value towards x (or to x's own 255th where that is nearer): |result - x| <= |z - x|
    wherever x is a multiple of 1/255."""
    steps = (z.double() - x.double()) * 255
    base = (x.double() * 255).round()
    # a hair more than 0.5 ulp of float32, so that k/255 stays k/255
    moved = base + torch.where(steps >= 0, (steps + 1e-4).floor(), (steps - 1e-4).ceil())
    return (moved.clamp(0, 255) / 255).to(x.dtype)


def _refuse(plan: Plan, name: str, attack: Any, png: bool) -> None:
    target = plan.models[name]
    if attack.access not in target.access:
        raise bad(
            "attack",
            f"{attack!r}, which needs {attack.access}",
            f"an attack that makes do with {', '.join(sorted(target.access))}",
            "See: withstand list attacks",
        )
    wanted = plan.checks["craft"].task
    if target.task != wanted:
        raise bad("attack", f"{attack!r} on {name}, which does {target.task}", f"a model that does {wanted}")
    shape = plan.data.space.shape or ()
    if png and (len(shape) != 3 or shape[0] not in (1, 3)):
        raise bad("out", f"PNG files for inputs of shape {shape}", "images with 1 or 3 channels", "Write an .npz.")


def _finished(manifest: Path, out: Path, described: dict[str, Any], fresh: bool) -> dict[str, Any] | None:
    """The manifest of the same work done before. Raises: BadInput where something else is in the way."""
    if not out.exists():
        return None
    found = json.loads(manifest.read_text(encoding="utf-8")) if manifest.is_file() else {}
    if found.get("plan") == json.loads(json.dumps(described)):
        return None if fresh else found
    if fresh and found.get("plan"):
        return None
    raise bad("out", f"{out}, which exists", "a new name", "Choose another --out, or remove it.")


def _manifest(plan: Plan, described: dict[str, Any], attack: Any, table: Table) -> dict[str, Any]:
    columns = table.table.select(["id", "label", "prediction", "outcome", "value", "distance", "cost"]).to_pydict()
    images = [
        {"id": i, "label": y, "prediction": p, "success": not o, "objective": v, "distance": d, "passes": c}
        for i, y, p, o, v, d, c in zip(*columns.values())
    ]
    hits = sum(image["success"] for image in images)
    low, high = wilson(hits, len(images))
    return {
        "attack": repr(attack),
        "seed": plan.seed,
        "success": {"value": hits / len(images), "low": low, "high": high, "interval": "wilson", "n": len(images)},
        "plan": described,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "git": git_state(),
        "images": images,
    }


def _write_npz(out: Path, blocks: list[Path], listed: dict[str, Any], classes: tuple[str, ...]) -> None:
    """One block in memory at a time."""
    shape = (len(listed["images"]), *np.load(blocks[0], mmap_mode="r").shape[1:])
    arrays = {
        "y": np.array([image["label"] for image in listed["images"]], np.int64),
        "id": np.array([image["id"] for image in listed["images"]], np.int64),
        "classes": np.array(classes),
    }
    with _whole(out) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        with archive.open("x.npy", "w", force_zip64=True) as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)  # type: ignore[arg-type]
            for block in blocks:
                file.write(np.load(block).astype("<f4").tobytes())
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.save(buffer, array)
            archive.writestr(f"{name}.npy", buffer.getvalue())


def _write_folder(out: Path, blocks: list[Path], listed: dict[str, Any]) -> None:
    with scratch(out) as folder:
        (folder / "images").mkdir()
        images = iter(listed["images"])
        for block in blocks:
            for pixels in (np.load(block) * 255).round().astype(np.uint8):
                image = next(images)
                image["file"] = f"images/{image['id']:06d}.png"
                Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(
                    folder / image["file"]
                )
        lines = [f"{image['file']},{image['label']}" for image in listed["images"]]
        (folder / "labels.csv").write_text("\n".join(["file,label", *lines, ""]), encoding="utf-8")
        write_json(folder / "manifest.json", listed)


class _whole:
    """A file that appears under its name only when the block ends well."""

    def __init__(self, path: Path) -> None:
        self.path, self.temporary = path, path.with_name(f".{path.name}.{os.getpid()}")

    def __enter__(self) -> Path:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return self.temporary

    def __exit__(self, kind: Any, *_: object) -> None:
        if kind is None:
            os.replace(self.temporary, self.path)
        self.temporary.unlink(missing_ok=True)
