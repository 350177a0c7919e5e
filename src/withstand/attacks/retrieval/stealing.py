"""Stealing an embedding from a search engine that shows nothing but ranked lists.

Reconstructed from the abstract of QAIR, which says that the lists are collected recursively: the order of the questions,
the margin that grows with the gap in rank and the far negatives are choices of this library.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import PlainValidator
from torch import Tensor, nn

from withstand.attacks.engine.needs import needs_positive, needs_whole
from withstand.errors import bad
from withstand.models.load import load_model
from withstand.models.query_log import key_of
from withstand.models.retrieval import Item, RetrievalTarget
from withstand.models.state import frozen
from withstand.protocols import Batch, Dataset, Update
from withstand.random import Rows, derive
from withstand.registry import component
from withstand.training.recipe import Recipe, Step, System

_ASKED = 32  # images in one question
_EMBEDDED = 256  # images in one pass, where nothing is learned


@dataclass(frozen=True)
class Lists:
    """What was asked of an engine and what it returned.

    x: [Q, C, H, W], the images asked with. found: int64 [Q, n], the positions of the returned items in `items`, best first.
    items: [M, C, H, W], what they look like. ids: of the items.
    """

    x: Tensor
    found: Tensor
    items: Tensor
    ids: list[Item]

    @cached_property
    def own(self) -> Tensor:
        """The position of the item that each question shows, int64 [Q]; -1 where it is none."""
        at = {key_of(image): i for i, image in enumerate(self.items.cpu().numpy())}
        return torch.tensor([at.get(key_of(image), -1) for image in self.x.cpu().numpy()])

    def __deepcopy__(self, memo: Any) -> "Lists":
        return self  # nothing changes it, and it may be large


def collect(engine: Any, seeds: Tensor, queries: int, images: Any = None) -> Lists:
    """Walk through a gallery list by list: ask with the seeds, then with the items that were returned, in their order, each
    once (images of the same pixels are one), until the questions are spent or nothing new is returned.

    engine: a retrieval target. seeds: [N, C, H, W] in [0, 1]. queries: how many images are asked. images: as for `view` of
    the engine. The questions depend on the answers alone, so that an engine with a log is asked nothing twice.

    Raises: BadInput for items that cannot be seen; Unavailable where the engine fails.
    """
    engine.view([], seeds, images)
    known: set[str] = set()

    def new_images(images: Tensor) -> list[Tensor]:
        fresh = []
        for image in images:
            if (key := key_of(image.cpu().numpy())) not in known:
                known.add(key)
                fresh.append(image)
        return fresh

    waiting, asked, found = new_images(seeds)[:queries], [], []
    at: dict[Item, int] = {}
    items: list[Tensor] = []
    while waiting and len(asked) < queries:
        now, waiting = waiting[: queries - len(asked)][:_ASKED], waiting[min(queries - len(asked), _ASKED) :]
        lists = engine(torch.stack(now))
        new = list(dict.fromkeys(item for line in lists for item in line if item not in at))
        at |= {item: len(at) + i for i, item in enumerate(new)}
        seen = list(engine.view(new, seeds, images))
        items, waiting = items + seen, waiting + (new_images(torch.stack(seen)) if seen else [])
        asked, found = asked + now, found + [[at[item] for item in line] for line in lists]
    return Lists(torch.stack(asked), torch.tensor(found), torch.stack(items), list(at))


def overlap_at(substitute: nn.Module, lists: Lists, rows: Tensor | None = None) -> float:
    """The share of the engine's lists that a substitute returns as well, when it ranks all known items; `rows` int64
    selects the questions. A question that shows an item does not count that item, which any embedding finds."""
    rows = torch.arange(len(lists.x)) if rows is None else rows
    place = next(substitute.parameters(), lists.x)
    with torch.no_grad(), frozen(substitute):
        items = torch.cat([_unit(substitute, part.to(place.device)) for part in lists.items.split(_EMBEDDED)])
        asked = torch.cat([_unit(substitute, part.to(place.device)) for part in lists.x[rows].split(_EMBEDDED)])
        similar = (asked @ items.T).cpu()
    found, own = lists.found[rows], lists.own[rows, None]
    similar[torch.arange(len(items)) == own] = -torch.inf
    ranked = similar.topk(found.shape[1], dim=1).indices
    ranked[(found == own).any(1), -1] = -1  # as many as the engine returned beside the item itself
    counted = found != own
    shared = (found[:, :, None] == ranked[:, None, :]).any(2) & counted
    return float(shared.sum() / counted.sum().clamp_min(1))


def rank_loss(
    query: Tensor, ranked: Tensor, far: Tensor | None = None, strange: Tensor | None = None, margin: float = 0.05
) -> Tensor:
    """The mean of [d_i - d_j + margin (j - i)]_+ over ranks i < j, d_i = |query - ranked_i|; and with far negatives, whose
    rank is n + 1.

    query: unit [B, D]. ranked: unit [B, n, D], best first. far: unit [B, F, D], each row's negatives. strange: bool [B, F],
    which of them count (default: all).
    """
    n = ranked.shape[1]
    near = _distance(query, ranked)
    rank = torch.arange(n, device=query.device)
    gap = (rank[None] - rank[:, None]).to(near)
    terms = (near[:, :, None] - near[:, None, :] + margin * gap).clamp_min(0) * (gap > 0)
    total, count = terms.sum(), len(query) * n * (n - 1) / 2
    if far is not None:
        beyond = (near[:, :, None] - _distance(query, far)[:, None, :] + margin * (n - rank)[None, :, None]).clamp_min(
            0
        )
        weight = torch.ones_like(far[:, :, 0]) if strange is None else strange.to(far)
        total, count = total + (beyond * weight[:, None]).sum(), count + float(weight.sum()) * n
    return total / max(count, 1)


def _victim(value: Any) -> Any:
    if isinstance(value, (str, RetrievalTarget)) or value is None:
        return value
    if callable(value) and not isinstance(value, nn.Module):
        return RetrievalTarget(value)
    raise bad("victim", type(value).__name__, "a retrieval engine: an address, file.py:factory, or a RetrievalTarget")


@component("recipe", "steal", systems=("qair",))
class Steal(Recipe):
    """An embedding that ranks as a search engine does, learned from nothing but its lists.

    The examples are the first questions (labels play no part); what they return is asked next, and so on, until `queries`
    are spent. The model, of any architecture, becomes the embedding f = model(x) / |model(x)|, learned with
    `rank_loss`: for ranks i < j [d(x, R_i) - d(x, R_j) + margin (j - i)]_+, and items returned for other questions
    only, as rank n + 1.

    victim: the engine: an address or file.py:factory for `load_model`, or a live one. images: what its items look like,
    where it does not show them itself: a text with {id} in it, or a function or mapping of ids. queries: the budget.
    log: a file of questions and answers for an address, so that a training that is stopped spends nothing twice; a live
    engine has its own. steps: updates, spread over the training's batches, at least one for each. batch: lists of an
    update. far: far negatives of each list. held: share of the lists that is not learned from, and tells "overlap" in
    the history: the share of their items that the embedding finds among all items known. "queries" there is what was
    spent.

    >>> ws.fit_attack(Steal(victim=engine), network, seeds, epochs=30, optimizer="adam(1e-3)")

    Reference: reconstructed from the abstract of Li et al., "QAIR: Practical Query-efficient Black-Box Attacks for Image
    Retrieval", CVPR 2021, arXiv 2103.02927.
    """

    victim: Annotated[Any, PlainValidator(_victim)] = None
    queries: int = 300
    images: Annotated[Any, PlainValidator(lambda value: value)] = None
    log: str | None = None
    margin: float = 0.05
    steps: int = 1200
    batch: int = 64
    far: int = 5
    held: float = 0.1

    verb: ClassVar[str] = "fit-attack"
    labelled: ClassVar[bool] = False
    defaults: ClassVar[dict[str, Any]] = {"optimizer": "adam(1e-3)", "schedule": "constant", "batch": 64}

    def __post_init__(self) -> None:
        needs_whole(self, "steps", "batch")
        needs_positive(self, "margin")
        if self.queries < 2:
            raise bad("queries", self.queries, "a whole number >= 2")
        if self.far < 0:
            raise bad("far", self.far, "a whole number >= 0")
        if not 0 <= self.held < 1:
            raise bad("held", self.held, "a share in [0, 1)")
        if self.log is not None and not isinstance(self.victim, str):
            raise bad(
                "log", self.log, "None for a live engine", "Give the log to the engine: RetrievalTarget(log=...)."
            )

    def setup(self, model: nn.Module, data: Dataset, rows: Rows) -> "Stealing":
        if self.victim is None:
            raise bad("victim", "none", "a retrieval engine", "E.g. steal(victim='http://.../retrieve').")
        engine: Any = self.victim
        if isinstance(engine, str):
            options: dict[str, Any] = {} if self.log is None else {"log": self.log}
            engine = load_model(engine, task="retrieval", **options)
        seeds = data.batch(range(min(self.queries, len(data)))).x
        lists = collect(engine, seeds, self.queries, self.images)
        order = torch.randperm(len(lists.x), generator=torch.Generator().manual_seed(derive(rows.seed, "held")))
        kept = round(self.held * len(order))
        return Stealing(copy.deepcopy(model), lists, order[kept:], order[:kept])

    def updates(self, system: "Stealing", batch: Batch, step: Step) -> Iterator[Update]:
        done, then = (self.steps * s // step.steps for s in (step.step, step.step + 1))
        for turn in range(max(1, then - done)):
            drawn = step.generator(f"lists/{turn}")
            yield Update(lambda drawn=drawn: self._loss(system, drawn))
        step.say("queries", len(system.lists.x))
        if len(system.held):
            step.say("overlap", overlap_at(system.model, system.lists, system.held))

    def _loss(self, system: "Stealing", drawn: torch.Generator) -> Tensor:
        lists, learned = system.lists, system.learned
        place = next(system.model.parameters()).device
        rows = learned[torch.randint(len(learned), (min(self.batch, len(learned)),), generator=drawn)]
        found = lists.found[rows]
        far = torch.randint(len(lists.items), (len(rows), self.far), generator=drawn)
        strange = ~(far[:, :, None] == found[:, None, :]).any(2) & (far != lists.own[rows, None])
        items, at = torch.cat([found, far], 1).unique(return_inverse=True)
        f = _unit(system.model, torch.cat([lists.x[rows], lists.items[items]]).to(place))
        query, ranked = f[: len(rows)], f[len(rows) :][at.to(place)]
        n = found.shape[1]
        return rank_loss(query, ranked[:, :n], ranked[:, n:], strange.to(place), self.margin)


class Stealing(System):
    """The embedding that is learned, and what it is learned from: `learned` and `held` int64, rows of the lists."""

    def __init__(self, model: nn.Module, lists: Lists, learned: Tensor, held: Tensor) -> None:
        super().__init__(model)
        self.lists, self.learned, self.held = lists, learned, held


def _unit(model: nn.Module, x: Tensor) -> Tensor:
    return F.normalize(model(x).flatten(1), dim=1)


def _distance(query: Tensor, others: Tensor) -> Tensor:
    """|query - other|, [B, n], with a gradient of zero where they meet."""
    return (query[:, None] - others).square().sum(2).clamp_min(1e-12).sqrt()
