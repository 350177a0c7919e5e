"""The shapes that every part of withstand fits.

Everything here is small on purpose: a paper's file implements one of these and says only what is new in it. Beside each
shape stands what it must carry beyond image classifiers, so that nobody narrows it by accident.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from withstand.errors import bad
from withstand.random import Rows

# Data ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Space:
    """What inputs look like: shape of one example (None = any length), range of a value (None = unbounded), classes.

    Carries series ([C, T], no range) and videos ([C, T, H, W]) as well as images ([C, H, W] in [0, 1]).
    """

    shape: tuple[int | None, ...] | None = None
    box: tuple[float, float] | None = (0.0, 1.0)
    classes: int | None = None


@dataclass
class Batch:
    """Examples that travel together.

    x: [N, ...]; y: long [N], float [N, K] or None (no labels); ids: int64 [N], the identity of each example;
    mask: bool [N, ...] of valid positions or None; extra: more tensors or lists of length N.
    Families subclass it where they carry more (graphs, token streams); `index`, `to` and `cat` go with them.
    """

    x: Any
    y: Tensor | None = None
    ids: Tensor | None = None
    mask: Tensor | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.x)

    def _map(self, change: Callable[[Any], Any]) -> "Batch":
        made = {
            f.name: change(v) for f in fields(self) if f.name != "extra" and (v := getattr(self, f.name)) is not None
        }
        return replace(self, **made, extra={k: change(v) for k, v in self.extra.items()})

    def index(self, rows: Tensor) -> "Batch":
        """The selected rows (int64 indices or a boolean mask [N])."""
        positions = rows.nonzero().flatten() if rows.dtype == torch.bool else rows
        return self._map(lambda v: v[positions] if isinstance(v, Tensor) else [v[int(i)] for i in positions])

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch with its tensors on a device."""
        waits = torch.device(device).type == "cpu"  # else the host would read what has not come back yet
        return self._map(lambda v: v.to(device, non_blocking=not waits) if isinstance(v, Tensor) else v)

    @staticmethod
    def cat(batches: Sequence["Batch"]) -> "Batch":
        """One batch after another; all must carry the same fields."""
        first = batches[0]

        def join(values: list[Any]) -> Any:
            if any(v is None for v in values):
                return None
            return torch.cat(values) if isinstance(values[0], Tensor) else [item for v in values for item in v]

        made = {f.name: join([getattr(b, f.name) for b in batches]) for f in fields(first) if f.name != "extra"}
        return replace(first, **made, extra={k: join([b.extra[k] for b in batches]) for k in first.extra})


@runtime_checkable
class Dataset(Protocol):
    """A labelled set of examples that is read in batches and never needs to lie in memory as a whole.

    name: how the user called it. classes: class names in label order. fingerprint: changes when the content does.
    """

    @property
    def name(self) -> str: ...

    @property
    def space(self) -> Space: ...

    @property
    def classes(self) -> tuple[str, ...]: ...

    def __len__(self) -> int: ...

    def batch(self, positions: Sequence[int]) -> Batch:
        """The examples at these positions: x float32 in the space's box, y long, ids = stable identities."""
        ...

    def fingerprint(self) -> str: ...


# Models --------------------------------------------------------------------------------------------------------------

Access = Literal["gradients", "features", "scores", "decision", "top_k", "neighbours", "training history"]


@dataclass
class Seen:
    """What an objective or a criterion may look at after one pass of a batch.

    logits: [N, K] (or whatever the task's model returns, e.g. embeddings or returned ids); input: [N, ...] as the model
    got it; features: named intermediate tensors, those that the objective's `reads` asked for.
    Must carry: kNN and retrieval attacks (features), statistics of series (input), hashing codes (logits = codes).
    """

    input: Tensor
    logits: Any
    features: dict[str, Tensor] = field(default_factory=dict)

    def take(self, rows: Tensor) -> "Seen":
        """The selected rows."""
        return Seen(self.input[rows], self.logits[rows], {k: v[rows] for k, v in self.features.items()})


class Target(Protocol):
    """The thing under test, whatever it is: a torch module, an exported graph, an endpoint, a retrieval engine.

    `__call__(x)` returns logits [N, K] (task "classification"), embeddings, ids or a stream. `access` says what an
    attack may use, from gradients down to the decision alone; `module` is the torch module where there is one.
    Must carry: top-k image search (QAIR: access {"top_k"}), time-series classifiers, LLM streams (task "stream").
    """

    @property
    def name(self) -> str: ...

    @property
    def task(self) -> str: ...

    @property
    def space(self) -> Space: ...

    @property
    def access(self) -> frozenset[str]: ...

    @property
    def module(self) -> nn.Module | None: ...

    def __call__(self, x: Any) -> Any: ...

    def fingerprint(self) -> str: ...


# Attacks -------------------------------------------------------------------------------------------------------------


@runtime_checkable
class Objective(Protocol):
    """A per-example value that the attacker increases.

    reads: what it needs of a pass ("logits", "input", or names of submodules whose output it reads; ">name" reads what
    goes into one).
    coupled: True where the value of one row depends on others (MDProp's permuted targets): no row may leave the batch.
    criterion: a `Criterion`, what counts as success by default; None where there is no such goal (embeddings).
    classifies: False where the model's outputs are no logits, so that labels may be of any range; without labels y is -1
    then (embeddings).
    begin: runs once on the clean pass, detached; returns named tensors of length N (targets, references, clean logits).
    Must carry: soft-kNN references (ASK), relevance of a returned list (QAIR), targets in feature space (MDProp),
    class-conditional domain losses (FAAT), uniformly drawn target classes (PyramidAT, from `rows`).
    """

    def __call__(self, seen: Seen, y: Tensor, state: Mapping[str, Tensor]) -> Tensor: ...


class Criterion(Protocol):
    """Whether the attack has reached its goal on each example: bool [N]."""

    def __call__(self, seen: Seen, y: Tensor, state: Mapping[str, Tensor]) -> Tensor: ...


@dataclass(frozen=True)
class Leaf:
    """One tensor that a search moves, with the set that binds it.

    threat: the set, around `origin` ([N, ...]); box: the range of the leaf's values, None = unbounded.
    """

    threat: Any
    origin: Tensor
    box: tuple[float, float] | None = None


class Parameterisation(Protocol):
    """What a search moves instead of pixels, and how that becomes an input.

    leaves(x, threat, box): named leaves with their sets; decode(z, x): the point that z stands for, differentiable.
    Must carry: pyramids of scales (PyramidAT), mixing weights and their softmax (AugMax: leaves m and q), codebook
    latents (DAT), polynomial coefficients per channel and step (TSA-STAT), spectral messages (IAP).
    """

    def leaves(self, x: Tensor, threat: Any, box: tuple[float, float] | None) -> dict[str, Leaf]: ...

    def decode(self, z: Mapping[str, Tensor], x: Tensor) -> Tensor: ...


class Oracle(Protocol):
    """One look along the objective: the gradient [N, ...] at points x [N, ...] and the value [N]; `rows` are their rows
    of the block (for per-example state and randomness), `step` counts the looks."""

    def __call__(self, x: Tensor, rows: Rows, step: int) -> tuple[Tensor, Tensor]: ...


class View(Protocol):
    """A wrapper around an oracle: other views of the input, averaged or estimated gradients, neighbourhoods (TPA),
    look-ahead (Nesterov), several models. Views chain; the first one named is applied outermost.

    A view that must know more than the point defines `wrap(oracle, search)` instead, which is called once for a block;
    `search` (the engine's Problem) has the threat, the labels and the shapings' memory of the rows that are searched, and
    `search.memory` takes what the view keeps between steps. A view that asks several times within one look passes a
    `step` of its own to each, so that views inside it draw anew; `looks` says how often, where it does."""

    def __call__(self, oracle: Oracle) -> Oracle: ...


class Shaping(Protocol):
    """A transformation of the gradient that may remember: momentum, translation kernels, clipping.

    memory is None at the first step, and what was returned then may be written over; the gradient may not. Rows that leave
    the batch take their memory with them.
    """

    def __call__(self, gradient: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor | None]: ...


# Detectors, recipes
# ----------------------------------------------------------------------------------------------------


class Detector(Protocol):
    """Scores per example, higher = more suspicious, always.

    taps: names of what it reads ("logits", "features", names of submodules): several detectors of one model share one
    pass for the union of their taps. fit sees the features of trusted data and returns tensors, which are kept; score is a
    pure function of features and those tensors.
    needs_input: `look(target, x, rows)` gets the model and the input as well, and returns further features from passes of
    its own (noise, dropout), drawn from rows.
    Must carry: forged media (SPSL), frames of a video (S-MIL), risky hosts (tabular), tokens of a stream (Kelp).
    """

    taps: tuple[str, ...]

    def fit(self, features: Mapping[str, Tensor], y: Tensor | None = None) -> dict[str, Tensor]: ...

    def score(self, features: Mapping[str, Tensor], fitted: Mapping[str, Tensor]) -> Tensor: ...


@dataclass
class Update:
    """One optimiser step that a recipe asks of the trainer: minimise `loss()` with the optimiser named `opt`.

    loss is called once, after the gradients of `opt` were cleared and the parameters of `freeze` were switched off, so that
    its graph holds nothing that is not wanted (FAAT's discriminator while the classifier learns to fool it). before_step
    runs between the backward pass and the optimiser's step (SAM puts the weights back there).
    """

    loss: Callable[[], Tensor]
    opt: str = "main"
    freeze: Sequence[nn.Module] = ()
    before_step: Callable[[], None] | None = None


class Recipe(Protocol):
    """A training method; the trainer owns the loop, the recipe owns nothing that changes.

    examples makes what is learned from of what is given (pseudo-labels). setup returns the system: a module with
    everything mutable (model, heads, discriminators, banks, buffers). optimizers names the optimisers; `main` makes the
    one that the user chose. craft makes the batch that is learned from (attacks, mixes, pseudo-labels), once a step, on
    the bare module. updates yields one or more Updates. finish takes the model out. `withstand.training.Recipe` has the
    defaults. Must carry: GANs and discriminators (several updates), AugMax's own inner search, MDProp's joint batch
    over norm branches, unlabelled batches (MaxMatch), cached hidden states (Kelp).
    """

    def examples(self, model: nn.Module, data: Dataset, seed: int) -> Dataset: ...

    def setup(self, model: nn.Module, data: Dataset, rows: Rows) -> nn.Module: ...

    def optimizers(self, system: Any, main: Callable[[Any], torch.optim.Optimizer]) -> dict[str, Any]: ...

    def craft(self, system: Any, batch: Batch, step: Any) -> Batch: ...

    def updates(self, system: Any, batch: Batch, step: Any) -> Iterator[Update]: ...

    def finish(self, system: Any) -> nn.Module: ...


# Audits
# ----------------------------------------------------------------------------------------------------------------

Level = Literal["pass", "warn", "fail"]


@dataclass(frozen=True)
class Need:
    """Something a check must be given beside the model and the data: `given={"surrogate": model}`."""

    name: str
    what: Literal["model", "data", "artefact"]
    optional: bool = False


@dataclass
class Row:
    """The outcome of one unit under one condition; one line of the Parquet table.

    unit, id: what was tested, e.g. ("image", 17). condition: what was done to it, JSON-plain, e.g. {"attack": "apgd",
    "eps": 0.031}. outcome: True = the model withstood (None where the question has no yes or no). value: a number whose
    meaning the check states. distance: of the point found. cost: passes or queries spent on this unit.
    """

    unit: str
    id: int
    condition: dict[str, Any]
    outcome: bool | None = None
    value: float | None = None
    label: int | None = None
    prediction: int | None = None
    distance: float | None = None
    cost: int | None = None


@dataclass
class Metric:
    """A number with its interval. interval names the method: "wilson", "bootstrap", "cluster bootstrap", "exact"."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    interval: str = ""
    n: int = 0
    unit: str = "share"
    better: Literal["higher", "lower", ""] = "higher"
    condition: dict[str, Any] = field(default_factory=dict)


@dataclass
class Figure:
    """A figure as data; the page draws it. kind: "curve", "heatmap", "bars", "gallery", "maps", "neighbours" or "table"."""

    kind: str
    title: str
    data: dict[str, Any]
    caption: str = ""


@dataclass
class Flag:
    """One trust indicator's finding: a name, a level, what was seen, and what to do about it."""

    name: str
    level: Level
    explanation: str
    advice: str = ""
    evidence: dict[str, Any] = field(default_factory=dict)


@dataclass
class Findings:
    """What a check makes of its rows."""

    metrics: list[Metric] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    flags: list[Flag] = field(default_factory=list)


@dataclass
class Context:
    """What a check may use while it runs.

    seed: of the run. device: where models run. block: examples per pass, None = choose. folder: in `rows`, a directory
    of this shard's own for side products (a few adversarial images); in `reduce`, the one that holds those of all shards.
    root: the run folder; paths in figures are relative to it. classes: names in label order, if known.
    progress: call with the number of examples done.
    cost: passes spent so far; add to it with `spend`.
    """

    seed: int = 0
    device: str = "cpu"
    block: int | None = None
    folder: Any = None
    root: Any = None
    classes: tuple[str, ...] = ()
    progress: Callable[[int], None] = lambda done: None
    cost: dict[str, float] = field(default_factory=dict)

    def spend(self, forwards: int = 0, backwards: int = 0) -> None:
        """Count passes of single examples through the model."""
        self.cost["forwards"] = self.cost.get("forwards", 0) + forwards
        self.cost["backwards"] = self.cost.get("backwards", 0) + backwards


class Check(Protocol):
    """One line of an audit.

    task, access: what the target must be and allow; otherwise the check prints "not applicable". needs: what must be
    given. after: names of checks whose rows it reads (trust indicators). prepare: fit once per model, cached. rows: the
    outcomes of one shard of the data, independent of other shards, so that shards run anywhere and resume. reduce: the
    metrics, figures and flags from all rows (and those of `after`), as columns of a pyarrow table.
    """

    task: str
    access: frozenset[str]
    needs: tuple[Need, ...]
    after: tuple[str, ...]

    def prepare(self, target: Target, data: Dataset, given: Mapping[str, Any], ctx: Context) -> Any: ...

    def rows(
        self, target: Target, shard: Batch, given: Mapping[str, Any], artefact: Any, ctx: Context
    ) -> Iterable[Row]: ...

    def reduce(self, rows: Any, others: Mapping[str, Any], ctx: Context) -> Findings: ...


@dataclass(frozen=True)
class Claim:
    """One statement of a paper that `withstand reproduce` re-measures.

    source: paper, table, number. arms: what is compared, baseline first. direction: "higher" or "lower" is the claim.
    scales: settings by name ("smoke", "cpu", "gpu"). The verdict comes from the paired interval of the difference:
    "shown", "not shown" or "inconclusive".
    """

    statement: str
    source: str
    arms: tuple[str, ...]
    metric: str
    direction: Literal["higher", "lower"]
    scales: Mapping[str, Mapping[str, Any]]
    seeds: tuple[int, ...] = (0, 1, 2)
    select_on: str = "val"

    def __post_init__(self) -> None:
        if len(self.arms) < 2:
            raise bad("arms", self.arms, "a baseline and at least one method")
