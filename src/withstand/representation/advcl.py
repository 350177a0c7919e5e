"""Adversarial contrastive learning with more views, and with labels that clustering makes up."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from withstand.errors import bad
from withstand.models.layers import frozen_statistics
from withstand.protocols import Batch, Dataset, Seen
from withstand.random import Rows
from withstand.registry import component
from withstand.registry import replace as changed
from withstand.representation.acl import ACL, ADVERSARIAL, CLEAN, Instances
from withstand.representation.clusters import with_clusters
from withstand.representation.contrastive import nt_xent, other_views
from withstand.representation.encoders import say_spread, view
from withstand.representation.high_pass import high_pass
from withstand.representation.simclr import Contrastive, needs
from withstand.training.augment import AugmentationsField, CropFlip
from withstand.training.recipe import Step

PSEUDO = "pseudo"
_ATTACKED = 2  # its place among the views


@component("recipe", "advcl", systems=("csl_robustness",))
class AdvCL(ACL):
    """Contrast of two clean views, an attacked and a high-frequency one, and pseudo-labels learned under attack.

    min NTXent(z_1, z_2, z_adv, z_high) + ce_weight mean_k CE(W_k f(x_pseudo), c_k); each view is a positive of the three
    others of its example, c_k the example's cluster in clustering k, W_k a linear head that stays behind.

    x_adv increases the first term, in which the three other views stand still; x_pseudo the second. Both lie in the ball
    around the same lightly augmented image, whose high frequencies are the fourth view. In the published code one loop
    ascends the sum of both terms, which is the same: neither point enters the other's term, and the steps are signs.

    mode: false negatives, chosen once on the four views before the attack, leave out the same terms of attack and loss.
    attack: in eval mode on the branch of its kind; published code has it in train mode: `attack=pgd(..., mode='train')`.
    branches: the batch norm of clean and high-frequency views (each kind in a pass of its own), of x_adv, and of x_pseudo;
    "shared" sends all through the same. ship: the branch that is kept; published is the adversarial one. light: augments
    the image that is attacked. radius: of the frequencies that the fourth view lacks, in cycles per image (published: 8,
    of 32 pixels); None leaves this view out. clusters: how many, of each clustering. ce_weight: published code multiplies
    the contrast by tau / 0.07 besides, so that there 0.2 weighs what 0.028 does here. Other fields as of `contrastive`.

    The clusters are those of the features of the model given, k-means of unit vectors, which should be trained, on
    something; published are those of an encoder trained by SimCLR on ImageNet, which is another than the one that learns.
    For that, give data that carry them already: `withstand.representation.clusters.with_clusters`.

    The projector is that of `contrastive`; the published one has batch norm after its first layer, the same for all kinds.

    The published training takes sgd(0.5, weight_decay=1e-4), batches of 512 and 1000 epochs, a cosine after ten of warmup.

    References: Fan, Liu, Chen, Zhang, Gan, "When Does Contrastive Learning Preserve Adversarial Robustness from Pretraining
    to Finetuning?", 2021, arXiv 2111.01124; removal: Gupta et al., 2022, arXiv 2207.10862.
    """

    defaults: ClassVar[Mapping[str, Any]] = ACL.defaults
    streams: ClassVar[tuple[str, ...]] = (CLEAN, ADVERSARIAL, PSEUDO)

    light: AugmentationsField = (CropFlip(),)
    radius: float | None = 8.0
    clusters: tuple[int, ...] = (2, 10, 50, 100, 500)
    ce_weight: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        needs(radius=self.radius)
        if not self.clusters or min(self.clusters) < 2:
            raise bad("clusters", self.clusters, "one or more numbers >= 2, e.g. (2, 10, 50)")
        if not self.ce_weight >= 0:
            raise bad("ce_weight", self.ce_weight, "a number >= 0")

    def examples(self, model: nn.Module, data: Dataset, seed: int) -> Dataset:
        carried = data.batch([0]).extra.get("clusters")
        if carried is None:
            return with_clusters(model, data, self.clusters, seed)
        if carried.shape[1] != len(self.clusters):
            raise bad("clusters", self.clusters, f"{carried.shape[1]} numbers, for the clusterings that the data carry")
        return data

    def setup(self, model: nn.Module, data: Dataset, rows: Rows) -> nn.Module:
        system: Any = super().setup(model, data, rows)
        system.heads = nn.Linear(system.model.width, sum(self.clusters))
        return system

    def craft(self, system: Any, batch: Batch, step: Step) -> Batch:
        made = Contrastive.craft(self, system, batch, step)
        n, plain = len(batch), view(self.light, batch, step, 2)
        high = {} if self.radius is None else {"high": high_pass(plain, self.radius)}
        before = [*made.extra["views"].chunk(2), plain, *high.values()]
        others, labels = other_views(n, len(before), plain.device), made.extra.get("labels")
        with torch.no_grad(), self.through(system, CLEAN), frozen_statistics(system):
            z = torch.cat([system(x) for x in before])
            dropped = self.false_negatives(z, others, None if labels is None else labels[:n].repeat(len(before)), step)
        targets = Guesses(batch.extra["clusters"], self.clusters)
        with self.through(system, ADVERSARIAL):
            aimed = changed(self.attack, objective=AmongViews(z, _ATTACKED, others, self.tau, dropped))
            moved = step.attack(aimed, system, plain, None)
        with self.through(system, PSEUDO):
            misled = step.attack(
                changed(self.attack, objective=targets), Heads(system), plain, None, "attack on clusters"
            )
        found = {**high, "adversarial": moved, "misled": misled, "dropped": dropped}
        return replace(made, extra={**made.extra, **found})

    def loss(self, system: Any, batch: Batch, step: Step) -> Tensor:
        extra = batch.extra
        with self.through(system, CLEAN):
            z = [system(x) for x in (*extra["views"].chunk(2), *([extra["high"]] if "high" in extra else []))]
        with self.through(system, ADVERSARIAL):
            z.insert(_ATTACKED, system(extra["adversarial"]))
        with self.through(system, PSEUDO):
            guessed = Guesses(extra["clusters"], self.clusters).loss(Heads(system)(extra["misled"])).mean()
        others = other_views(len(batch), len(z), guessed.device)
        contrast = nt_xent(torch.cat(z), others, self.tau, extra["dropped"]).mean()
        step.say("loss_contrast", contrast)
        step.say("loss_pseudo", guessed)
        say_spread(step, z[_ATTACKED])
        return contrast + self.ce_weight * guessed


class AmongViews(Instances):
    """The same where only the views of one place move, [n, d]; those of the other places stand still.

    z: float [v n, d], of all views. place: of the views that move.
    """

    def __init__(self, z: Tensor, place: int, others: Tensor, tau: float, dropped: Tensor | None = None) -> None:
        super().__init__(others, tau, dropped)
        self.z, self.place = z, place

    def __call__(self, seen: Seen, y: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        views = list(self.z.split(len(seen.logits)))
        views[self.place] = seen.logits
        return nt_xent(torch.cat(views), self.pairs, self.tau, self.dropped).view(len(views), -1).sum(0)


class Guesses:
    """The mean over clusterings of the cross-entropy of clusters int64 [N, K], as an objective of logits [N, sum counts]."""

    reads = ("logits",)
    coupled = True  # the clusters are those of the whole batch
    criterion = None
    classifies = False

    def __init__(self, clusters: Tensor, counts: tuple[int, ...]) -> None:
        self.clusters, self.counts = clusters, counts

    def __call__(self, seen: Seen, y: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        return self.loss(seen.logits)

    def loss(self, logits: Tensor) -> Tensor:
        """Of each example, [N]."""
        parts = zip(logits.split(self.counts, dim=1), self.clusters.unbind(1))
        return torch.stack([F.cross_entropy(part, c, reduction="none") for part, c in parts]).mean(0)


class Heads(nn.Module):
    """A system by its guesses of clusters, [N, sum counts]."""

    def __init__(self, system: Any) -> None:
        super().__init__()
        self.system = system

    def forward(self, x: Tensor) -> Tensor:
        return self.system.heads(self.system.model.features(x))
