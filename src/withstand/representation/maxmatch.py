"""Learning from few labels: MaxMatch, FixMatch, and the labels alone."""

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import PlainValidator
from torch import Tensor, nn

from withstand.data import as_dataset, load_data
from withstand.data.few_labels import few_labels
from withstand.errors import bad
from withstand.models.state import frozen
from withstand.protocols import Batch, Dataset
from withstand.random import Rows, derive
from withstand.registry import component
from withstand.representation.hashing.bank import gathered
from withstand.training.augment import AugmentationsField, CropFlip, CTAugment, Cutout, RandAugment
from withstand.training.augment.ctaugment import BINS, Rates
from withstand.training.recipe import MakeOptimizer, Optimizers, Recipe, Step

Reduce = Literal["max", "mean"]
HALF = (torch.float16, torch.bfloat16)
PATIENCE = 5
"""Epochs without a single pseudo-label after which there is a warning."""


@dataclass(frozen=True)
class Consistency:
    """What `maxmatch_loss` found. loss: a number. pseudo: the labels it took [N]; mask: which of them it was sure of [N];
    argmax: the variant whose cross-entropy is largest, [N] in 0..K-1."""

    loss: Tensor
    pseudo: Tensor
    mask: Tensor
    argmax: Tensor


def maxmatch_loss(logits_weak: Tensor, logits_strong: Tensor, tau: float, reduce: Reduce = "max") -> Consistency:
    """How much the worst (or the mean) of K strong variants of each example contradicts its own pseudo-label.

    L_u = 1/N sum_i m_i max_k CE(y_i, z_ki), y_i = argmax_c p_ic, m_i = [max_c p_ic >= tau], p_i = softmax of the weak
    logits. The mean is over all N examples, sure or not. No gradient reaches the weak logits, those of unsure examples, or
    (with "max") any variant but the worst of each.

    logits_weak: [N, C]; logits_strong: [K, N, C]; of half precision in single. tau: in [0, 1.0001]; 0 takes every
    pseudo-label, above 1 none.
    reduce: "max" is MaxMatch, "mean" the same augmentations without the choice; for K = 1 both are FixMatch.

    Raises: BadInput for shapes that do not fit, K or N of 0, and tau outside.

    References: Jiang, Li, Chen, He, Xu, Yang, Cao, Huang, "MaxMatch: Semi-Supervised Learning with Worst-Case Consistency",
    2022, arXiv 2209.12611; Sohn et al., "FixMatch: Simplifying Semi-Supervised Learning with Consistency and Confidence",
    2020, arXiv 2001.07685.
    """
    if logits_weak.dim() != 2 or logits_strong.shape[1:] != logits_weak.shape or 0 in logits_strong.shape:
        got = f"weak {list(logits_weak.shape)} and strong {list(logits_strong.shape)}"
        raise bad("logits", got, "[N, C] and [K, N, C] with N, K >= 1")
    _check_tau(tau)
    weak, strong = (z.float() if z.dtype in HALF else z for z in (logits_weak.detach(), logits_strong))
    sure, pseudo = weak.softmax(1).max(1)
    mask = (sure >= tau) & (tau <= 1)  # in the precision of `sure`, a tau just above 1 may be 1
    k, n, c = strong.shape
    each = F.cross_entropy(strong.reshape(k * n, c), pseudo.repeat(k), reduction="none").view(k, n)
    worst, argmax = each.max(0)
    taken = {"max": worst, "mean": each.mean(0)}[reduce]
    return Consistency(torch.where(mask, taken, 0).mean(), pseudo, mask, argmax)


def _unlabelled(value: Any) -> Any:
    return value if value is None or isinstance(value, str) else as_dataset(value)


@dataclass(frozen=True, kw_only=True)
class FewLabels(Recipe):
    """What recipes for few labels share: the labels that are left, the examples without, how they are varied, and the
    settings of the published trainings.

    Draws of an augmentation are new for every example of every step, also where an example stands in a batch twice.
    """

    labels: int | None = None
    unlabelled: Annotated[Any, PlainValidator(_unlabelled)] = None
    weak: AugmentationsField = (CropFlip(4),)

    defaults: ClassVar[Mapping[str, Any]] = {
        "sampler": "labelled_and_not(7)",
        "batch": 512,
        "optimizer": "sgd(0.03, weight_decay=5e-4, nesterov=True)",
        "schedule": "cosine_arc",
        "averaging": "ema(0.999)",
    }

    def examples(self, model: nn.Module, data: Dataset, seed: int) -> Dataset:
        return few_labels(data, self.labels, seed, _pool(self.unlabelled, data))

    def setup(self, model: nn.Module, data: Dataset, rows: Rows) -> nn.Module:
        system: Any = super().setup(model, data, rows)
        system.classes = len(data.classes)
        return system

    def optimizers(self, system: Any, main: MakeOptimizer) -> Optimizers:
        """Weight decay moves kernels only, neither biases nor the scales of normalisation."""
        learned = list(system.parameters())
        groups = [
            {"params": [p for p in learned if p.dim() > 1]},
            {"params": [p for p in learned if p.dim() <= 1], "weight_decay": 0.0},
        ]
        return {"main": main([group for group in groups if group["params"]])}

    def craft(self, system: Any, batch: Batch, step: Step) -> Batch:
        """All views of the step in one batch: labelled, then what `views` makes; extra["view"] counts them from 0."""
        known = torch.zeros(len(batch), dtype=torch.bool) if batch.y is None or batch.y.dim() != 1 else batch.y >= 0
        if not 0 < int(known.sum()) < len(batch):
            mend = "Give the trainer sampler='labelled_and_not(7)', and a batch with a labelled example per process."
            raise bad("batch", f"{int(known.sum())} labelled of {len(batch)} examples", "both kinds", mend)
        labelled = vary(batch.index(known), self.weak, step, "labelled", system.classes)
        parts = [*labelled, *self.views(system, batch.index(~known), step)]
        view = torch.cat([torch.full((len(part),), i, device=batch.x.device) for i, part in enumerate(parts)])
        whole = Batch.cat(parts)
        return replace(whole, extra={**whole.extra, "view": view})

    def views(self, system: Any, unlabelled: Batch, step: Step) -> list[Batch]:
        """The versions of the unlabelled examples that are learned from."""
        return []


@component("recipe", "supervised", systems=("maxmatch",))
class Supervised(FewLabels):
    """The labelled examples alone, weakly augmented: what semi-supervised learning has to beat.

    labels, unlabelled, weak: as of `maxmatch`; the batches are the same, and what is unlabelled in them is passed over.
    """

    def loss(self, system: Any, batch: Batch, step: Step) -> Tensor:
        return step.cross_entropy(system(batch.x), batch.y)  # type: ignore[arg-type]


@component("recipe", "fixmatch", systems=("maxmatch",))
class FixMatch(FewLabels):
    """Few labels and many unlabelled examples: pseudo-labels of weak versions, learned from strong ones (FixMatch).

    L = CE(y, f(weak(x))) + lambda_u / N sum_i m_i CE(y_i, f(strong(u_i))), see `maxmatch_loss` for y_i and m_i.

    The same as `maxmatch` with one variant, which see for the arguments.

    Reference: Sohn, Berthelot, Li, Zhang, Carlini, Cubuk, Kurakin, Zhang, Raffel, "FixMatch: Simplifying Semi-Supervised
    Learning with Consistency and Confidence", 2020, arXiv 2001.07685.
    """

    strong: AugmentationsField = (CropFlip(4), RandAugment(), Cutout(0.5))
    tau: float = 0.95
    lambda_u: float = 1.0
    teacher: Literal["self", "eman"] = "self"

    def __post_init__(self) -> None:
        _check_tau(self.tau)
        if not 0 <= self.lambda_u < math.inf:
            raise bad("lambda_u", self.lambda_u, "a finite weight >= 0")

    def plan(self, step: Step) -> tuple[int, Reduce]:
        """How many strong variants this step makes, and what is learned of them."""
        return 1, "max"

    @property
    def most(self) -> int:
        """The largest number of strong variants that a step may make."""
        return 1

    def setup(self, model: nn.Module, data: Dataset, rows: Rows) -> nn.Module:
        system: Any = super().setup(model, data, rows)
        system.rates = nn.ModuleDict({str(i): Rates() for i, _ in self._learning()})
        return system

    def craft(self, system: Any, batch: Batch, step: Step) -> Batch:
        """... and beside the views what the teacher makes of the weak ones, as extra["taught"]; CTAugment learns."""
        made = super().craft(system, batch, step)
        labelled, weak = (made.extra["view"] == i for i in (0, 1))
        for i, augmentation in self._learning():
            self._probe(i, augmentation, system, made.index(labelled), step)
        if self.teacher == "self":
            return made
        if step.averaged is None:
            mend = "Give the trainer averaging='ema(0.999)', and not strategy='fsdp'."
            raise bad("teacher", "eman", "'self' where the trainer keeps no average of the weights in one piece", mend)
        logits = step.averaged(made.x[weak])
        taught = logits.new_zeros(len(made), logits.shape[1])
        taught[weak] = logits
        return replace(made, extra={**made.extra, "taught": taught})

    def views(self, system: Any, unlabelled: Batch, step: Step) -> list[Batch]:
        strong = list(self.strong)
        for i, augmentation in self._learning():
            strong[i] = augmentation.bound(system.rates[str(i)])
        views = vary(unlabelled, strong, step, "strong", system.classes, self.plan(step)[0])
        return [*vary(unlabelled, self.weak, step, "weak", system.classes), *views]

    def _learning(self) -> list[tuple[int, CTAugment]]:
        return [(i, augmentation) for i, augmentation in enumerate(self.strong) if isinstance(augmentation, CTAugment)]

    def _probe(self, i: int, augmentation: CTAugment, system: Any, labelled: Batch, step: Step) -> None:
        """Let it learn from the labelled examples of all processes, in the order in which one would have them."""
        with _exact(labelled.x):
            probe = augmentation.probe(labelled, _placed(step, "probe", i, len(labelled)))
        with frozen(system) if step.averaged is None else nullcontext():
            logits = (step.averaged or system)(probe.x)
        p = logits.float().softmax(1).gather(1, labelled.y[:, None])[:, 0]  # type: ignore[index]
        found = (
            gathered(t).unflatten(0, (step.world, -1)).transpose(0, 1).flatten(0, 1)
            for t in (probe.operation, probe.bin, p)
        )
        augmentation.learn(system.rates[str(i)], *found)
        step.say("probe", p.mean())
        step.say("open_bins", (augmentation.chances(system.rates[str(i)]) > 0).sum() / sum(BINS))

    def remark(self, history: Sequence[Mapping[str, Any]]) -> str:
        if len(history) != PATIENCE or self.tau > 1 or any(row["mask_rate"] for row in history):
            return ""
        return (
            f"No pseudo-label reached tau={self.tau:g} in {PATIENCE} epochs; only labels were learned from. Lower tau."
        )

    def loss(self, system: Any, batch: Batch, step: Step) -> Tensor:
        labelled, *views = batch.extra["view"].bincount().tolist()
        taught, (n, k) = batch.extra.get("taught"), (views[0], len(views) - 1)
        # one pass, so that batch norm sees the mixture; in which order does not matter to it
        logits = system(batch.x if taught is None else batch.x[batch.extra["view"] != 1])
        known, rest = logits[:labelled], logits[labelled:].view(-1, n, logits.shape[1])
        weak, strong = (rest[0], rest[1:]) if taught is None else (taught[labelled : labelled + n], rest)
        supervised = step.cross_entropy(known, batch.y[:labelled])  # type: ignore[index]
        found = maxmatch_loss(weak, strong, self.tau, self.plan(step)[1])
        step.say("loss_labelled", supervised)
        step.say("loss_unlabelled", found.loss)
        step.say("mask_rate", found.mask.float().mean())
        if (truth := batch.extra.get("truth")) is not None:
            right = found.pseudo == truth[labelled : labelled + n]
            step.say("pseudo_label_accuracy", right.float().mean())
            step.say("wrong_and_sure", (found.mask & ~right).float().mean())
        for which in range(k if self.most > 1 else 0):
            step.say(f"worst_is_{which + 1}", (found.mask & (found.argmax == which)).float().mean())
        return supervised + self.lambda_u * found.loss


@component("recipe", "maxmatch", systems=("maxmatch",))
class MaxMatch(FixMatch):
    """Few labels and many unlabelled examples: the worst of several strong versions is learned from (MaxMatch).

    L = CE(y, f(weak(x))) + lambda_u / N sum_i m_i max_k CE(y_i, f(strong_k(u_i))), see `maxmatch_loss` for y_i and m_i.

    All versions go through the network in one pass in train mode, the weak ones without gradient: (1 + K) mu B + B examples
    for B labelled and mu B unlabelled ones, which the sampler `labelled_and_not(mu)` puts into every batch. No attacker is
    about: the worst is that of K random draws.

    labels: how many examples of each class keep their label, chosen by the seed; None: all. unlabelled: a data set, or what
    `load_data` reads (its training part), of the same shape; None: all of the training examples. weak, strong:
    augmentations (images by default; series and others need their own). variants: K. tau: the probability from which on
    a pseudo-label counts. lambda_u: weight. reduce: "mean" learns from all K alike, the control that costs the same.
    teacher: who gives the pseudo-labels: "self", the network in the same pass, in train mode, or "eman", the averaged
    weights and batch statistics in eval mode, which the trainer keeps (Cai et al., 2021, arXiv 2101.08482); the network then
    sees the labelled and the strong versions alone.
    k_schedule: chances of 1, 2, ..., K variants in a step, as (.5, .3, .2) in the official code for ImageNet, which the
    paper's abstract does not speak of; None: always K.

    The history tells, of the unlabelled examples: mask_rate (pseudo-labels that count), worst_is_k (learned from variant
    k; with "mean": whose variant k would be) and, where their labels are known, pseudo_label_accuracy (of all) and
    wrong_and_sure (that count and are wrong). With `ctaugment` among the strong ones (in full `[crop_flip(4), ctaugment,
    cutout(0.5)]`), probe is the mean probability of the true label in its probes of labelled examples, and open_bins
    the share of its strengths that are in use. Validation uses labels that the recipe does not count: give none for the
    few-label protocol, which judges the average of the last weights.

    The defaults are the official ones for CIFAR with RandAugment, for batches of 64 + 7 * 64; weight decay is on kernels
    only, as there. What differs: crops are padded with zeros instead of mirrored pixels; the average of the weights forgets
    its start and takes in the batch statistics (see `ema`); strengths are those of `randaugment`; and the length is the
    trainer's, where the official one is 2^20 steps. SVHN's images are not mirrored there: `crop_flip(4, flip=False)`.
    ImageNet has tau 0.7, lambda_u 10, mu 5 and a schedule of its own (docs/semi_supervised.md); weight decay is on all
    weights there. Of the paper, the abstract and the official code were at hand; its tables were
    not.

    Reference: Jiang, Li, Chen, He, Xu, Yang, Cao, Huang, "MaxMatch: Semi-Supervised Learning with Worst-Case Consistency",
    2022, arXiv 2209.12611.
    """

    variants: int = 3
    reduce: Reduce = "max"
    k_schedule: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variants < 1:
            raise bad("variants", self.variants, "a whole number K >= 1")
        chances = self.k_schedule
        if chances is not None and (
            len(chances) != self.variants or not all(p >= 0 for p in chances) or abs(sum(chances) - 1) > 1e-6
        ):
            raise bad("k_schedule", chances, f"{self.variants} chances (of 1, 2, ..., K variants) that sum to 1")

    @property
    def most(self) -> int:
        return self.variants

    def plan(self, step: Step) -> tuple[int, Reduce]:
        if self.k_schedule is None:
            return self.variants, self.reduce
        draw = torch.Generator().manual_seed(derive(step.seed, "variants", step.step))  # the same in all processes
        chances = torch.tensor(self.k_schedule, dtype=torch.float64)
        return int(chances.multinomial(1, generator=draw)) + 1, self.reduce


def vary(batch: Batch, augmentations: Any, step: Step, name: str, classes: int, copies: int = 1) -> list[Batch]:
    """Copies of the batch, each augmented by draws of its own: by place in the batch instead of by example, since few
    labelled examples come many times in an epoch and perhaps in a batch. Augmentations see no labels."""
    made = Batch(torch.cat([batch.x] * copies))
    with _exact(batch.x):
        for i, augmentation in enumerate(augmentations):
            placed = _placed(step, name, i, len(batch), copies)
            made = augmentation(replace(made, ids=placed.rows.ids), placed, classes)
    return [replace(batch, x=x) for x in made.x.chunk(copies)]


def _placed(step: Step, name: str, i: int, n: int, copies: int = 1) -> Step:
    """The step with draws by place in the batch, for the i-th augmentation of a name."""
    place = torch.arange(n, device=step.rows.ids.device) * step.world + step.rank
    seed = derive(step.seed, name, i, step.step)
    return replace(step, seed=seed, rows=Rows(seed, torch.cat([place + (k << 32) for k in range(copies)])))


def _exact(x: Tensor) -> Any:
    """Half precision is for networks, not for places of pixels."""
    return torch.autocast(x.device.type, enabled=False)


def _check_tau(tau: float) -> None:
    if not 0 <= tau <= 1.0001:
        raise bad("tau", tau, "a probability; up to 1.0001, which no pseudo-label reaches")


def _pool(unlabelled: Any, data: Dataset) -> Dataset | None:
    """The unlabelled examples; images of a file or folder in the shape of the labelled ones."""
    if not isinstance(unlabelled, str):
        return unlabelled
    shape = data.space.shape
    if shape is None or len(shape) != 3 or shape[1] != shape[2]:
        return load_data(unlabelled, split="train")
    return load_data(unlabelled, split="train", size=shape[2], channels=shape[0])
