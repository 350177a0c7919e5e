"""What a run of `shift` scores, and how each model sees it."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import withstand
from withstand.audit.plan import placed, usable_device
from withstand.corruptions.tables import COMMON, EXTRA
from withstand.data.arrays import from_arrays
from withstand.data.images import stratified
from withstand.data.shift.cells import Listing
from withstand.data.shift.disk import Stock, survey
from withstand.data.shift.table import Benchmark, benchmark
from withstand.data.shift.view import View
from withstand.editing.imagenet_e import EDITS, ORI
from withstand.errors import BadInput, bad
from withstand.files import slug
from withstand.models import check_compatible
from withstand.models.target import core
from withstand.protocols import Target

SHARD = 512
"""Images whose outcomes are kept together: what a killed run loses at most, for each model."""


@dataclass
class ShiftPlan:
    """What a run scores, and how. limited: whether `limit` cut a benchmark down."""

    models: dict[str, Target]
    views: dict[str, View]
    stocks: dict[str, Stock]
    limit: int | None
    seed: int
    device: str
    block: int | None
    workers: int

    def to_json(self) -> dict[str, Any]:
        """What a folder is refused by where it holds another run. The files themselves are compared cell by cell."""
        return {
            "withstand": withstand.__version__,
            "benchmarks": {name: asdict(stock.benchmark) for name, stock in self.stocks.items()},
            "models": {name: model.fingerprint() for name, model in self.models.items()},
            "views": {name: view.to_json() for name, view in self.views.items()},
            "limit": self.limit,
            "seed": self.seed,
            "shard": SHARD,
        }

    def size(self, name: str, key: str) -> int:
        """How many images of a cell are scored."""
        n = self.stocks[name].sizes[key]
        return n if self.limit is None else min(n, self.limit)

    def limited(self, name: str) -> bool:
        """Whether fewer images are scored than are there."""
        return any(self.size(name, key) < n for key, n in self.stocks[name].sizes.items())

    def chosen(self, listing: Listing) -> np.ndarray:
        """The positions that are scored, rising."""
        if self.limit is None or self.limit >= len(listing):
            return np.arange(len(listing))
        return np.sort(stratified(listing.labels, len(listing), self.seed)[: self.limit])


def view_of(target: Target, size: int | None, crop: float | None, interpolation: str | None) -> View:
    """How photographs are shown to a model: as it was published, or as it is said here."""
    known: Mapping[str, Any] = getattr(core(getattr(target, "model", None)), "pretrained_cfg", None) or {}  # type: ignore[arg-type]
    shape = target.space.shape or ()
    own = (shape[-1] if len(shape) == 3 else None) or known.get("input_size", (224,))[-1]
    side = size or own
    source = "the model's published configuration" if known else "the convention of torchvision's models"
    if (size, crop, interpolation) != (None, None, None):
        source = "given; the rest from " + source
    mode = known.get("crop_mode") or "center"
    if mode not in ("center", "squash") and crop is None:
        raise bad(f"{target.name}: crop_mode", repr(mode), "center or squash", "Say how: --crop 0.9.")
    filtered = interpolation or known.get("interpolation") or "bilinear"
    if crop is None and "resize" in known and size in (None, own):
        return View(side, known["resize"], filtered, mode == "squash", source)
    return View.cropped(
        side, (known.get("crop_pct") or 0.875) if crop is None else crop, filtered, mode == "squash", source
    )


def make_plan(
    models: Any,
    benchmarks: Any,
    root: str | Path,
    partial: bool,
    limit: int | None,
    seed: int,
    shown: tuple[int | None, float | None, str | None],
    device: str | None,
    block: int | None,
    workers: int | None,
) -> ShiftPlan:
    """See `shift` for the arguments; shown: size, crop and interpolation. Raises: BadInput before any work."""
    for name, value in (("limit", limit), ("block", block), ("workers", workers), ("size", shown[0])):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise bad(name, repr(value), "a whole number >= 1")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise bad("seed", repr(seed), "a whole number")
    asked = list(benchmarks) if isinstance(benchmarks, (list, tuple)) else [benchmarks]
    if strange := [item for item in asked if not isinstance(item, (str, Benchmark))]:
        raise bad("benchmarks", repr(strange[0]), "names of benchmarks, e.g. imagenet-a")
    chosen = [item if isinstance(item, Benchmark) else benchmark(item) for item in asked]
    names = [item.name for item in chosen]
    if not names or len(set(names)) < len(names):
        raise bad("benchmarks", ", ".join(names) or "none", "at least one, each once")
    stocks = {}
    for b in chosen:
        kinds, extra = ((ORI, *EDITS), ()) if b.layout == "edits" else (COMMON, EXTRA)
        stocks[b.name] = survey(b, root, kinds, extra, partial, alone=len(chosen) == 1)
    device = usable_device(device)
    targets = placed(models, device)
    if len({slug(name) for name in targets}) < len(targets):
        raise bad("models", ", ".join(targets), "names that differ in more than punctuation", "Write NAME=MODEL.")
    views = {name: view_of(target, *shown) for name, target in targets.items()}
    for name, target in targets.items():
        for stock in stocks.values():
            _fits(target, views[name], stock)
    return ShiftPlan(targets, views, stocks, limit, seed, device, block, workers or min(16, os.cpu_count() or 1))


def _fits(target: Target, view: View, stock: Stock) -> None:
    """Refuse a model that does not take the benchmark's images or has other logits. Raises: BadInput."""
    if target.task != "classification":
        raise bad("models", f"{target.name}, which does {target.task}", "classifiers")
    listing = next(iter(stock.cells.values())).listing()
    try:
        first = np.stack([listing.pixels(i, view, stock.benchmark.part) for i in range(min(2, len(listing)))])
    except BadInput:  # a damaged file, which is told together with the others
        first = np.zeros((1, view.size, view.size, 3), np.uint8)
    data = from_arrays(first, np.zeros(len(first), int), stock.benchmark.name, stock.benchmark.logits, "nhwc")
    check_compatible(target, data)
