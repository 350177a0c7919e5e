"""`shift`: the public benchmarks of distribution shift, scored as their papers do."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from withstand.audit.run import Report
from withstand.audit.shift.plan import SHARD, ShiftPlan, make_plan
from withstand.audit.shift.scores import scored
from withstand.audit.shift.work import Work, check_of
from withstand.audit.store import Store
from withstand.data.shift.cells import some
from withstand.data.shift.table import Benchmark
from withstand.errors import BadInput
from withstand.files import slug, write_atomic, write_json


def shift(
    models: Any,
    benchmarks: str | Benchmark | Sequence[str | Benchmark],
    *,
    root: str | Path,
    out: str | Path,
    partial: bool = False,
    limit: int | None = None,
    seed: int = 0,
    size: int | None = None,
    crop: float | None = None,
    interpolation: str | None = None,
    device: str | None = None,
    block: int | None = None,
    workers: int | None = None,
    look: bool = True,
    fresh: bool = False,
    report: Report | None = None,
    announce: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Score models on benchmarks that lie below `root` in the field's folder formats; see `withstand list benchmarks`.

    models: as for `audit`: images in [0, 1] to 1,000 logits in the order of the WordNet ids (10 or 100 for CIFAR). out: a
    folder for `shift.json`, `shift.md`, `index.html` and the outcome of every image; the same call continues there after
    a kill at any moment, and other settings are refused. partial: score what is there of an incomplete set. limit: so many
    images of each set (of each cell of a corrupted one, the same in all), every class with its share, drawn by `seed`.
    Both are labelled `subset-n`.

    size, crop, interpolation: of all models, instead of what each was published with: timm's and transformers' models say
    it themselves, others get 224 pixels from the centre of 256, bilinear. Stylized and corrupted files are shown whole,
    ObjectNet's without their border. block: images per pass, halved when memory runs out; no result depends on it but
    through rounding. workers: threads that decode. look: open every file that is scored once before any work, to find the
    damaged ones.

    In the result, "results" has the numbers with 95 % intervals, "cells" the accuracy of every corruption at every severity,
    "published" what others got.

    Raises:
        BadInput: before any work, for benchmarks that are not there, incomplete, or hold what they should not; damaged
            files; models that do not fit; settings that differ from those of the run in `out`.
    """
    plan = make_plan(
        models, benchmarks, root, partial, limit, seed, (size, crop, interpolation), device, block, workers
    )
    with Store(Path(out), plan.to_json(), fresh) as store:
        if look:
            _look(plan, store)
        done, total = _count(plan, store)
        if announce is not None:
            announce(f"{total - done:,} of {total:,} images to go, counted once for each model")
        Work(plan, store, report, announce, done, total).run()
        found = scored(plan.models, plan.stocks, plan.limited, store, plan.views)
    _write(Path(out), found)
    return found


def _look(plan: ShiftPlan, store: Store) -> None:
    """Look at every file that is to be scored and was not looked at yet. Raises: BadInput that names the damaged ones."""
    damaged: list[str] = []
    for name, stock in plan.stocks.items():
        for key, cell in stock.cells.items():
            mark = store.folder / "prepared" / f"{slug(check_of(name, key))}.txt"
            if mark.is_file() and mark.read_text(encoding="utf-8") == stock.digests[key]:
                continue
            listing = cell.listing()
            found = listing.damaged(plan.chosen(listing))
            damaged += found
            if not found:
                write_atomic(mark, stock.digests[key])
    if damaged:
        raise BadInput(f"{len(damaged):,} damaged files: " + "; ".join([some(damaged)]))


def _count(plan: ShiftPlan, store: Store) -> tuple[int, int]:
    """(outcomes that are there, all). Cells whose files are others than when they were scored are forgotten here."""
    done = total = 0
    for name, stock in plan.stocks.items():
        for key in stock.cells:
            digest = stock.digests[key]
            n = plan.size(name, key)
            for model in plan.models:
                folder = store.path(model, check_of(name, key), 0).parent
                seen = folder / "files.txt"
                if not seen.is_file() or seen.read_text(encoding="utf-8") != digest:
                    for path in folder.glob("[0-9]*.parquet"):
                        path.unlink()
                    write_atomic(seen, digest)
                total += n
                done += sum(
                    min(SHARD, n - SHARD * shard)
                    for shard in range(-(-n // SHARD))
                    if store.done(model, check_of(name, key), shard)
                )
    return done, total


def _write(out: Path, found: dict[str, Any]) -> None:
    from withstand.report.shift import markdown, page

    write_json(out / "shift.json", found)
    write_atomic(out / "shift.md", markdown(found))
    write_atomic(out / "index.html", page(found))
