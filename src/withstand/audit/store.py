"""A run folder: what was asked, the rows found so far, and what was made of them.

    plan.json                      what the run does; a folder never holds two different plans
    rows/MODEL/CHECK/SHARD.parquet the outcomes, one file for each finished piece of work
    prepared/MODEL/CHECK.safetensors
    side/MODEL/CHECK/SHARD/        what a check keeps for its figures (a few adversarial images)
    failed/MODEL/CHECK.json        why a check could not be done
    scorecard.json, report.html    made from the above (or transfer.json, shift.json with their pages)

Every file is written whole or not at all and none is changed afterwards, so that a run that is killed at any moment goes
on from what is there and ends with the rows of an uninterrupted one.
"""

import contextlib
import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from withstand.audit.check import Table
from withstand.errors import BadInput
from withstand.files import lock, slug, write_atomic, write_json
from withstand.protocols import Row

SCHEMA = pa.schema(
    [
        ("run", pa.string()),
        ("model", pa.string()),
        ("check", pa.string()),
        ("unit", pa.string()),
        ("id", pa.int64()),
        ("condition", pa.string()),
        ("seed", pa.int64()),
        ("label", pa.int32()),
        ("prediction", pa.int32()),
        ("outcome", pa.bool_()),
        ("value", pa.float64()),
        ("distance", pa.float64()),
        ("cost", pa.int64()),
    ]
)


PARTS = ("rows", "prepared", "side", "failed")
FILES = (
    "scorecard.json",
    "report.html",
    "transfer.json",
    "transfer.md",
    "shift.json",
    "shift.md",
    "index.html",
    "plan.json",
)
KEPT = ("models",)
"""A folder with nothing but these is as good as new: the demo trains its models before it can say what it will do."""


class Store:
    """The folder of one run. Use it as a context manager: it holds the folder's lock meanwhile.

    Raises:
        BadInput: the folder holds another run. Unavailable: another process works in it, or it cannot be written.
    """

    def __init__(self, folder: str | Path, plan: dict[str, Any], fresh: bool = False) -> None:
        self.folder, self.plan, self.fresh = Path(folder), plan, fresh
        self.name = self.folder.name

    def __enter__(self) -> "Store":
        self._lock = lock(self.folder)
        try:
            found = self._plan()
            if found is not None and self.fresh:
                self.clear()
                found = None
            if found is not None:
                _same_plan(found, self.plan, self.folder)
                self._sweep()
            elif others := sorted(p.name for p in self.folder.iterdir() if not _ours(p.name)):
                raise BadInput(
                    f"out: {self.folder} is not empty ({', '.join(others[:3])} ...) and holds no run; "
                    "allowed: a new folder, or that of an unfinished run. Choose another --out."
                )
            else:
                self._sweep()
                write_json(self.folder / "plan.json", self.plan)
        except BaseException:
            self._lock.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def _plan(self) -> dict[str, Any] | None:
        """What the folder's run was about to do; None where it holds none. Raises: BadInput for a foreign plan.json."""
        path = self.folder / "plan.json"
        if not path.is_file():
            return None
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            found = None
        if not isinstance(found, dict) or "withstand" not in found:
            raise BadInput(f"out: {path} was not written by withstand. Choose another --out.")
        return found

    def clear(self) -> None:
        """Forget everything that a run left in the folder."""
        for name in PARTS:
            shutil.rmtree(self.folder / name, ignore_errors=True)
        for name in FILES:
            (self.folder / name).unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Remove what a killed process left half-written; the names begin with a dot."""
        litter = [path for name in FILES for path in self.folder.glob(f".{name}.*")]
        for path in litter + [path for name in PARTS for path in (self.folder / name).rglob(".*")]:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def path(self, model: str, check: str, shard: int) -> Path:
        """Where the rows of one piece of work are."""
        return self.folder / "rows" / slug(model) / slug(check) / f"{shard:06d}.parquet"

    def side(self, model: str, check: str, shard: int | None = None) -> Path:
        """The folder for a check's side products."""
        folder = self.folder / "side" / slug(model) / slug(check)
        return folder if shard is None else folder / f"{shard:06d}"

    def done(self, model: str, check: str, shard: int) -> bool:
        """Whether the rows of this piece of work are there."""
        return self.path(model, check, shard).is_file()

    def keep(self, model: str, check: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep what a check fitted for a model."""
        from safetensors.torch import save

        path = self.folder / "prepared" / slug(model) / f"{slug(check)}.safetensors"
        write_atomic(path, save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}))

    def kept(self, model: str, check: str, device: str = "cpu") -> dict[str, Tensor] | None:
        """What `keep` kept, or None."""
        from safetensors.torch import load_file

        path = self.folder / "prepared" / slug(model) / f"{slug(check)}.safetensors"
        return load_file(path, device=device) if path.is_file() else None

    def fail(self, model: str, check: str, reason: str, trace: str = "") -> None:
        """Write down that a check could not be done on a model."""
        write_json(self._failure(model, check), {"reason": reason, **({"traceback": trace} if trace else {})})

    def failed(self, model: str, check: str) -> str:
        """Why a check could not be done; "" where nothing is known against it."""
        path = self._failure(model, check)
        return json.loads(path.read_text(encoding="utf-8"))["reason"] if path.is_file() else ""

    def forgive(self) -> None:
        """Forget the failures, because they are tried again."""
        shutil.rmtree(self.folder / "failed", ignore_errors=True)

    def _failure(self, model: str, check: str) -> Path:
        return self.folder / "failed" / slug(model) / f"{slug(check)}.json"

    def write(self, model: str, check: str, shard: int, rows: Iterable[Row], seed: int, cost: dict[str, float]) -> None:
        """Keep the rows of one piece of work, and what it cost (in the file's metadata)."""
        table = as_table(rows, run=self.name, model=model, check=check, seed=seed)
        table = table.replace_schema_metadata({"cost": json.dumps(cost)})
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        write_atomic(self.path(model, check, shard), buffer.getvalue())

    def read(self, model: str, check: str) -> tuple[Table, dict[str, float]]:
        """All rows of a check of a model in the order of the shards, and their summed cost."""
        return read_rows(self.path(model, check, 0).parent)


def as_table(rows: Iterable[Row], *, run: str = "", model: str = "", check: str = "", seed: int = 0) -> pa.Table:
    """Rows as the columns that are kept."""
    listed = list(rows)
    columns: dict[str, Any] = {
        "run": [run] * len(listed),
        "model": [model] * len(listed),
        "check": [check] * len(listed),
        "seed": [seed] * len(listed),
        "condition": [json.dumps(r.condition, sort_keys=True) for r in listed],
    }
    for name in SCHEMA.names:
        columns.setdefault(name, [getattr(r, name, None) for r in listed])
    return pa.table(columns, schema=SCHEMA)


def read_rows(folder: Path) -> tuple[Table, dict[str, float]]:
    """The rows in a folder of shards, and their summed cost. Texts come as dictionaries: one copy of each."""
    tables, total = [], {}
    names = [n for n in SCHEMA.names if n not in ("run", "model", "check")]  # the folder says those
    for path in sorted(folder.glob("[0-9]*.parquet")):
        table = pq.ParquetFile(path, read_dictionary=["unit", "condition"]).read(columns=names)
        for key, value in json.loads((table.schema.metadata or {}).get(b"cost", b"{}")).items():
            total[key] = total.get(key, 0) + value
        tables.append(table.replace_schema_metadata(None))
    return Table(pa.concat_tables(tables) if tables else SCHEMA.empty_table().select(names)), total


@contextlib.contextmanager
def scratch(final: Path) -> Iterator[Path]:
    """A folder that appears under its final name only when the block ends well."""
    temporary = final.with_name(f".{final.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if any(temporary.iterdir()):
            shutil.rmtree(final, ignore_errors=True)
            os.replace(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _ours(name: str) -> bool:
    """Whether a new run may find this in its folder: the lock, what was kept, a plan that was never finished."""
    return name in (".lock", *KEPT) or name.startswith(".plan.json.")


def _same_plan(old: dict[str, Any], new: dict[str, Any], folder: Path) -> None:
    plain = json.loads(json.dumps(new))
    differing = [k for k in sorted(old.keys() | plain.keys()) if old.get(k) != plain.get(k)]
    if differing:
        details = "; ".join(f"{k}: there {_short(old.get(k))}, now {_short(plain.get(k))}" for k in differing[:3])
        raise BadInput(
            f"out: {folder} holds another run ({details}); allowed: the same run, which would continue, or a new folder. "
            "Choose another --out, or start over with --fresh."
        )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
