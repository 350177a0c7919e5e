"""Contrastive learning of an encoder, with false negatives kept, removed, attracted, or known."""

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from withstand.errors import bad
from withstand.models.feature_encoder import FeatureEncoder
from withstand.protocols import Batch, Dataset
from withstand.random import Rows
from withstand.registry import component
from withstand.representation.contrastive import attraction, debiased, nt_xent, same_label, supcon, two_views
from withstand.representation.encoders import EncoderRecipe, labels_of, say_spread
from withstand.representation.false_negatives import FalseNegativeSchedule, scores, select_false_negatives
from withstand.training.recipe import Step

Mode = Literal["simclr", "afnc", "fnc", "attraction", "debiased", "oracle", "supcon"]


@component("recipe", "contrastive", systems=("csl_robustness",))
class Contrastive(EncoderRecipe):
    """Contrastive learning of an encoder (SimCLR), with or without the removal of false negatives.

    min mean_i -s_{i i+} + log sum_{a in A(i) minus FN(i)} exp(s_ia), s = cosines of projections over tau.

    mode: "simclr": FN empty. "afnc": FN(i) the q(t) most similar views, with q growing from 0 (the adaptive removal).
    "fnc": the same with q_max from the first step on. "attraction": as "afnc", but these views become further positives.
    "debiased": nothing is chosen; the mean over the negatives is corrected for their share `tau_plus` (see `debiased`).
    Two modes use labels, for analysis: "oracle" removes exactly the views of the anchor's class, "supcon" attracts them.
    tau: temperature. dim, hidden: lengths of the projection and of the hidden layer before it (None: the width of the
    features). q_max: share of the candidates that is taken at most. ramp: shares of the training at which q leaves 0 and
    reaches q_max; None takes (0.2, 0.6), and (0, 0) for fnc. threshold: the least cosine of a false
    negative. support: score a candidate by the nearer of the anchor's two views. analysis: with labels at hand, log how
    many of the removed views per anchor are of its class (`removed_own_class`, of `removed`); no weight depends on it.
    tau_plus: of "debiased", how likely a negative is of the anchor's class.
    views: augmentations, drawn apart for the two views.

    Every candidate that scores highest and lies above the threshold is taken; how the paper chose could not be confirmed
    (see `withstand.representation.false_negatives`), nor could q_max and the ramp.

    References: Chen et al., 2020, arXiv 2002.05709 (SimCLR); Gupta, Akhtar, Mian, Shah, "Contrastive Self-Supervised
    Learning Leads to Higher Adversarial Susceptibility", 2022, arXiv 2207.10862; Huynh et al., 2022, arXiv 2011.11765
    (fnc, attraction); Chuang et al., 2020, arXiv 2007.00224 (debiased); Khosla et al., 2020, arXiv 2004.11362 (supcon).
    """

    mode: Mode = "simclr"
    tau: float = 0.5
    dim: int = 128
    hidden: int | None = None
    q_max: float = 0.1
    ramp: tuple[float, float] | None = None
    threshold: float | None = None
    support: bool = False
    analysis: bool = False
    tau_plus: float = 0.1

    def __post_init__(self) -> None:
        needs(tau=self.tau, dim=self.dim, hidden=self.hidden)
        if not 0 <= self.tau_plus < 1:
            raise bad("tau_plus", self.tau_plus, "a share in [0, 1)")
        self.schedule  # noqa: B018 (checks its own numbers)

    @property
    def schedule(self) -> FalseNegativeSchedule:
        """The share that is taken, by progress."""
        return FalseNegativeSchedule(self.q_max, *(self.ramp or ((0.0, 0.0) if self.mode == "fnc" else (0.2, 0.6))))

    @property
    def reads_labels(self) -> bool:
        """Whether the loss, or what is logged, looks at labels."""
        return self.mode in ("oracle", "supcon") or self.analysis

    def setup(self, model: nn.Module, data: Dataset, rows: Rows) -> nn.Module:
        if self.reads_labels:
            labels_of(data, f"mode={self.mode!r}" if not self.analysis else "analysis")
        return super().setup(model, data, rows)

    def projector(self, encoder: FeatureEncoder) -> nn.Module:
        return mlp(encoder.width, self.hidden or encoder.width, self.dim)

    def craft(self, system: Any, batch: Batch, step: Step) -> Batch:
        made = super().craft(system, batch, step)
        if not self.reads_labels:
            return made
        assert batch.y is not None
        if batch.y.dim() != 1:
            raise bad(
                "augment", "labels that are mixed", "augmentations that keep the class of an example", "No mixup."
            )
        return replace(made, extra={**made.extra, "labels": batch.y.repeat(2)})

    def loss(self, system: Any, batch: Batch, step: Step) -> Tensor:
        z, labels = system(batch.extra["views"]), batch.extra.get("labels")
        say_spread(step, z)
        pairs = two_views(len(batch), z.device)
        if self.mode == "supcon":
            assert labels is not None
            return supcon(z, labels, self.tau).mean()
        if self.mode == "debiased":
            return debiased(z, pairs, self.tau, self.tau_plus).mean()
        found = self.false_negatives(z, pairs, labels, step)
        if self.mode == "attraction":
            return attraction(z, pairs, self.tau, found).mean()
        return nt_xent(z, pairs, self.tau, found).mean()

    def false_negatives(self, z: Tensor, pairs: Tensor, labels: Tensor | None, step: Step) -> Tensor:
        """What is removed (or attracted) for each anchor, bool [M, M], logged. pairs: the other views, as of `nt_xent`."""
        if self.mode == "oracle":
            assert labels is not None
            found = same_label(labels) & ~torch.eye(len(z), dtype=torch.bool, device=z.device)
            found.scatter_(1, pairs.view(len(z), -1), False)
        else:
            q = 0.0 if self.mode == "simclr" else self.schedule(step.progress)
            s = scores(z, pairs if self.support else None)
            found = select_false_negatives(s, q, self.threshold, exclude=pairs)
        step.say("removed", found.sum() / len(z))
        if self.analysis:
            assert labels is not None
            step.say("removed_own_class", (found & same_label(labels)).sum() / len(z))
        return found


def mlp(width: int, hidden: int, dim: int) -> nn.Module:
    """A projector with one hidden layer."""
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, dim))


def needs(**values: float | None) -> None:
    """Refuse what is not above zero; None passes."""
    for name, value in values.items():
        if value is not None and not value > 0:
            raise bad(name, value, "a number > 0")
