"""The plain attack that a kNN classifier is measured by: through its backbone's own logits, past the votes."""

from typing import Annotated, Any

import torch.nn.functional as F
from pydantic import PlainValidator
from torch import Tensor

from withstand.attacks.engine import Problem
from withstand.attacks.pgd import PGD, start_of
from withstand.errors import bad
from withstand.models.neighbours import knn_of
from withstand.objectives import Misclassified, ObjectiveField, State
from withstand.protocols import Seen
from withstand.random import Rows
from withstand.registry import component


@component("objective", "backbone_cross_entropy", systems=("advknn", "ask"))
class BackboneCrossEntropy:
    """Cross-entropy of the label in the logits of a kNN classifier's own network: -log softmax(f(x))_y."""

    reads = ("logits", "backbone")
    coupled = False
    criterion = Misclassified()

    def begin(self, clean: Seen, y: Tensor, rows: Rows) -> dict[str, Tensor]:
        classes, votes = clean.features["backbone"].shape[1], clean.logits.shape[1]
        if classes != votes:
            mend = "Its network returns no logits of these classes."
            raise bad("model", f"a backbone that returns {classes} values", f"{votes}, one for each class", mend)
        return {}

    def __call__(self, seen: Seen, y: Tensor, state: State) -> Tensor:
        return F.cross_entropy(seen.features["backbone"], y, reduction="none")


@component("attack", "origin", systems=("advknn", "ask"))
class Origin(PGD):
    """PGD on the network under a kNN classifier as if it were the classifier: the baseline of attacks on votes.

    Increases `backbone_cross_entropy`; what it finds counts where the votes fall for it. Fields as for `pgd`, but it begins
    at the clean point. With steps=1, step=1.0 it is FGSM; with more, BIM.

    Reference: named so in Li, Chen, He, Xue, "AdvKnn: Adversarial Attacks On K-Nearest Neighbor Classifiers With
    Approximate Gradients", 2019, arXiv 1911.06591.
    """

    random_start: Annotated[bool | float, PlainValidator(start_of)] = False
    objective: ObjectiveField = BackboneCrossEntropy()

    access = "features"

    def problem(self, **settings: Any) -> Problem:
        knn_of(settings["model"])
        return super().problem(**settings)
