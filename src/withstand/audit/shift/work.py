"""The work of `shift`: files are decoded ahead of the models that look at them, outcomes are kept shard by shard."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor

from withstand.audit.run import Report
from withstand.audit.shift.plan import SHARD, ShiftPlan
from withstand.audit.store import Store
from withstand.data.shift.cells import Cell, Listing
from withstand.data.shift.classes import OBJECTNET
from withstand.data.shift.disk import Stock
from withstand.data.shift.table import Benchmark
from withstand.data.shift.view import Part, View
from withstand.errors import BadInput, bad
from withstand.models import frozen
from withstand.protocols import Row, Target

CHUNK = 16
"""Images that one worker decodes at a time."""


class Work:
    """What is left to score: models that see the same pixels share the decoding."""

    def __init__(
        self,
        plan: ShiftPlan,
        store: Store,
        report: Report | None,
        announce: Callable[[str], None] | None,
        done: int,
        total: int,
    ) -> None:
        self.plan, self.store, self.report, self.announce = plan, store, report, announce
        self.left, self.made, self.began = total - done, 0, time.perf_counter()
        self.told = False

    def run(self) -> None:
        pool = ThreadPoolExecutor(self.plan.workers, "decode")
        try:
            for name, stock in self.plan.stocks.items():
                groups: dict[Any, list[str]] = {}
                for model, view in self.plan.views.items():
                    seen = None if stock.benchmark.layout == "arrays" else (view.size, view.resize, view.interpolation)
                    groups.setdefault((seen, view.squash and seen), []).append(model)
                self.finished = dict.fromkeys(self.plan.models, 0)
                for key, cell in stock.cells.items():
                    for models in groups.values():
                        self._cell(name, stock, key, cell, models, pool)
        finally:
            pool.shutdown(cancel_futures=True)

    def _cell(self, name: str, stock: Stock, key: str, cell: Cell, models: list[str], pool: ThreadPoolExecutor) -> None:
        plan, check = self.plan, check_of(name, key)
        n = plan.size(name, key)
        lacking = {
            shard: [m for m in models if not self.store.done(m, check, shard)] for shard in range(-(-n // SHARD))
        }
        for shard, open_ in lacking.items():
            for model in models:
                if model not in open_:
                    self._tell(model, name, min(SHARD, n - SHARD * shard), False)
        lacking = {shard: open_ for shard, open_ in lacking.items() if open_}
        if not lacking:
            return
        listing, view = cell.listing(), plan.views[models[0]]
        chosen = plan.chosen(listing)
        if listing.digest != stock.digests[key]:
            raise BadInput(f"{cell.key or name}: the files changed while they were scored. Run the same command again.")
        condition: dict[str, Any] = {"benchmark": name}
        if cell.corruption is not None:
            condition |= {"corruption": cell.corruption, "severity": cell.severity}
        shards = [chosen[SHARD * shard : SHARD * (shard + 1)] for shard in lacking]
        pixels = _ahead(pool, listing, [*_chunks(shards)], view, stock.benchmark.part, 2 * plan.workers)
        for (shard, open_), positions in zip(lacking.items(), shards):
            began = time.perf_counter()
            guesses = self._guesses(pixels, len(positions), open_, stock.benchmark)
            labels = listing.labels[positions]
            for model in open_:
                right = _right(stock.benchmark, guesses[model], labels)
                rows = (
                    Row("image", i, condition, hit, None, label, guess)
                    for i, hit, label, guess in zip(
                        positions.tolist(), right.tolist(), labels.tolist(), guesses[model].tolist()
                    )
                )
                seconds = (time.perf_counter() - began) / len(open_)
                cost = {"forwards": len(positions), "seconds": seconds, "examples": len(positions)}
                self.store.write(model, check, shard, rows, plan.seed, cost)
                self._tell(model, name, len(positions))

    def _guesses(
        self, pixels: Iterator[np.ndarray], n: int, models: Sequence[str], of: Benchmark
    ) -> dict[str, np.ndarray]:
        """What each model says about the next n images, as ImageNet labels."""
        found: dict[str, list[np.ndarray]] = {model: [] for model in models}
        with ExitStack() as stack:
            for model in models:
                if (module := self.plan.models[model].module) is not None:
                    stack.enter_context(frozen(module))
            held: list[np.ndarray] = []
            seen = 0
            while seen < n:
                held.append(next(pixels))
                seen += len(held[-1])
                side = held[-1].shape[1]
                if seen < n and sum(map(len, held)) + CHUNK <= (self.plan.block or self._default_block(side)):
                    continue
                x = torch.from_numpy(np.concatenate(held)).to(self.plan.device).permute(0, 3, 1, 2).float().div_(255)
                for model in models:
                    found[model].append(self._answer(self.plan.models[model], x.contiguous(), of))
                held = []
        return {model: np.concatenate(parts) for model, parts in found.items()}

    def _answer(self, target: Target, x: Tensor, of: Benchmark) -> np.ndarray:
        """int64 [n]; among the labels of the benchmark only, where it holds some of the 1,000."""
        size = self.plan.block or len(x)
        parts: list[Tensor] = []
        at = 0
        while at < len(x):
            try:
                with torch.no_grad():
                    parts.append(masked_argmax(target(x[at : at + size]), of.subset))
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
                size = (size + 1) // 2
                continue
            at += size
        return torch.cat(parts).cpu().numpy()

    def _default_block(self, side: int) -> int:
        return 256 if self.plan.device.startswith("cuda") else max(32, min(256, (1 << 22) // (3 * side * side)))

    def _tell(self, model: str, name: str, images: int, new: bool = True) -> None:
        self.finished[model] += images
        if self.report is not None:
            total = sum(self.plan.size(name, key) for key in self.plan.stocks[name].sizes)
            self.report(model, name, self.finished[model], total)
        if not new:
            return
        self.made += images
        seconds = time.perf_counter() - self.began
        if self.announce is not None and not self.told and seconds > 20 and self.made < self.left:
            self.told = True
            self.announce(f"about {_time(seconds / self.made * (self.left - self.made))} left at this speed")


def check_of(name: str, key: str) -> str:
    """What a cell of a benchmark is called in the run folder."""
    return f"{name}/{key}" if key else name


def masked_argmax(logits: Tensor, subset: Sequence[int] | None) -> Tensor:
    """The label with the largest logit, among `subset` (rising labels) only. logits: [N, K] -> int64 [N].

    Logits that only decide (int64 [N], of a target without scores) are taken as they are.
    Raises: BadInput for logits that are no numbers, and for a subset where there are only decisions.
    """
    if logits.dim() == 1:
        if subset is not None:
            raise bad("models", "one that tells its decision alone", "one with scores", "The 200 classes need them.")
        return logits
    if not bool(logits.isfinite().all()):
        raise bad("logits", "NaN or Inf", "finite numbers")
    if subset is None:
        return logits.argmax(1)
    labels = torch.tensor(subset, device=logits.device)
    return labels[logits[:, labels].argmax(1)]


def _right(of: Benchmark, guesses: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """bool [n]. ObjectNet's labels are folders: a guess counts as the folder that it maps to, or as wrong."""
    if of.layout == "objectnet":
        return np.array([OBJECTNET.get(guess, -1) for guess in guesses.tolist()]) == labels
    return guesses == labels


def _chunks(shards: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    for positions in shards:
        for start in range(0, len(positions), CHUNK):
            yield positions[start : start + CHUNK]


def _ahead(
    pool: ThreadPoolExecutor, listing: Listing, chunks: Sequence[np.ndarray], view: View, part: Part, ahead: int
) -> Iterator[np.ndarray]:
    """The pixels of each chunk in turn, uint8 [n, H, W, 3]; some chunks are decoded before they are asked for."""

    def decode(positions: np.ndarray) -> np.ndarray:
        return np.stack([listing.pixels(int(i), view, part) for i in positions])

    waiting: list[Future[np.ndarray]] = []
    left = iter(chunks)
    for positions in left:
        waiting.append(pool.submit(decode, positions))
        if len(waiting) > ahead:
            yield waiting.pop(0).result()
    for future in waiting:
        yield future.result()


def _time(seconds: float) -> str:
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{max(1, round(seconds))} s"
