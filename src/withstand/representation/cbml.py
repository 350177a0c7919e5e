"""Contrastive Bayesian metric learning, with labels or with those that clustering makes up."""

from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from withstand.errors import bad
from withstand.protocols import Dataset
from withstand.registry import component
from withstand.representation.clusters import clustered
from withstand.representation.losses import CBMLLoss, MetricLossField
from withstand.representation.metric import Metric
from withstand.training.recipe import Step


@component("recipe", "cbml", systems=("cbml",))
class CBML(Metric):
    """Metric learning with the contrastive Bayesian loss (see `cbml_loss`), with labels or pseudo-labels.

    metric_loss, dim, proxy_rate: see `metric`. norm: "frozen" keeps batch norm at the running statistics that the model
    came with, as the paper does with pretrained networks; from scratch it has to be "trained".
    clusters: forget the labels and learn from this many clusters instead (k-means of the unit vectors that the given model
    makes before its last layer), which should then be trained, on something. Clusters with a single example are left out.
    How the paper made its pseudo-labels was never released: this form is a reconstruction.

    The paper trains for 5,000 steps with adam(3e-5, weight_decay=5e-4), a tenth of that rate from step 1,200 (GoogLeNet:
    3,000) on, 15 classes with 8 examples in a batch and dim=512.

    Reference: Kan, He, Cen, Li, Mladenovic, He, "Contrastive Bayesian Analysis for Deep Metric Learning", 2022, arXiv
    2210.04402.
    """

    metric_loss: MetricLossField = CBMLLoss()
    dim: int = 128
    proxy_rate: float = 10.0
    norm: Literal["trained", "frozen"] = "trained"
    clusters: int | None = None

    defaults: ClassVar = Metric.defaults

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clusters is not None and self.clusters < 2:
            raise bad("clusters", self.clusters, "2 or more, or None to learn from the labels")

    def examples(self, model: nn.Module, data: Dataset, seed: int) -> Dataset:
        return data if self.clusters is None else clustered(model, data, self.clusters, seed)

    def on_embeddings(self, system: Any, x: Tensor, y: Tensor | None, step: Step) -> Tensor:
        if self.norm == "frozen":
            for part in system.model.modules():
                if isinstance(part, _BatchNorm):
                    part.eval()
        return super().on_embeddings(system, x, y, step)
