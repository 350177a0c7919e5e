"""Deep metric learning: embeddings in which examples of a class lie together."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from withstand.errors import BadInput, bad
from withstand.models.state import frozen
from withstand.models.taps import Tap, last_map, see
from withstand.protocols import Batch, Dataset
from withstand.random import Rows
from withstand.registry import component
from withstand.representation.losses import PML, MetricLossField
from withstand.representation.recipe import EmbeddingRecipe
from withstand.training.recipe import MakeOptimizer, Optimizers, Step


@component("recipe", "metric", systems=("mdprop", "cbml"))
class Metric(EmbeddingRecipe):
    """Metric learning: minimise a loss on the embeddings of a batch.

    metric_loss: "multi_similarity", "proxy_anchor", "triplet", "contrastive", "arcface", `cbml_loss()`, `s2sd()` or another
    loss of `pml`. dim: length of the embedding. proxy_rate: the learning rate of what the loss itself learns (proxies,
    heads), as a multiple of that of the model; published are 1 for the heads of S2SD, 50 for the proxies of ArcFace (both
    without weight decay, as not here) and 100 for those of Proxy-Anchor.

    Give the trainer batches of few classes with several examples each, as by default: sampler="m_per_class(8)". In
    distributed training every process compares the examples of its own share.
    """

    metric_loss: MetricLossField = PML("multi_similarity")
    dim: int = 128
    proxy_rate: float = 10.0

    defaults: ClassVar = {
        "sampler": "m_per_class(8)", "batch": 64, "optimizer": "adam(1e-3)", "schedule": "constant",
    }  # fmt: skip

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise bad("dim", self.dim, "a length >= 1")
        if not 0 < self.proxy_rate < float("inf"):
            raise bad("proxy_rate", self.proxy_rate, "a number > 0")

    def setup(self, model: nn.Module, data: Dataset, rows: Rows) -> nn.Module:
        if len(data.classes) < 2:
            raise bad("data", f"{len(data.classes)} classes", "examples of two classes or more, with labels")
        system: Any = super().setup(model, data, rows)
        width = system.model.head.in_features
        system.metric_loss = self.metric_loss.build(len(data.classes), self.dim, width, rows.seed)
        if self.metric_loss.adds_maximum:
            system.map = pooled_map(system.model, data.batch(range(min(2, len(data)))).x)
        return system

    def optimizers(self, system: Any, main: MakeOptimizer) -> Optimizers:
        groups = [(parameters, rate) for parameters, rate in self.rates(system) if parameters]
        made = main([{"params": parameters} for parameters, _ in groups])
        for group, (_, rate) in zip(made.param_groups, groups):
            group["lr"] *= rate
        return {"main": made}

    def rates(self, system: Any) -> list[tuple[list[nn.Parameter], float]]:
        """What learns, in groups, and the learning rate of each as a multiple of the trainer's."""
        return [(list(system.model.parameters()), 1.0), (list(system.metric_loss.parameters()), self.proxy_rate)]

    def loss(self, system: Any, batch: Batch, step: Step) -> Tensor:
        self.needs_pairs(batch.y)
        return self.on_embeddings(system, batch.x, batch.y, step)

    def needs_pairs(self, y: Tensor | None) -> None:
        """Refuse a batch from which nothing can be learned."""
        if y is None or y.dim() != 1 or y.is_floating_point():
            raise bad("batch", "no class labels", "examples of one class each")
        if len(y) and int(y.min()) < 0:
            raise bad("batch", "examples without a label (-1)", "a class >= 0 for each", "Leave them out of the data.")
        counts = y.unique(return_counts=True)[1]
        if len(y) < 4 or len(counts) < 2 or (self.metric_loss.pairs and int(counts.max()) < 2):
            got = f"{len(y)} examples of {len(counts)} classes, at most {int(counts.max())} of each"
            mend = "Give the trainer batch=64 and sampler='m_per_class(8)', say."
            raise bad("batch", got, "at least 4 examples of 2 classes, two of which make a pair", mend)

    def on_embeddings(self, system: Any, x: Tensor, y: Tensor | None, step: Step) -> Tensor:
        """The loss of the embeddings of x in train mode."""
        features = None
        if self.metric_loss.adds_maximum:
            z, pixels = see(system.model, x, system.map)
            features = pixels.mean((2, 3)) + pixels.amax((2, 3))
        elif self.metric_loss.needs_features:
            features = system.model.features(x)
            z = F.normalize(system.model.head(features), dim=1)
        else:
            z = system(x)
        if not bool(torch.isfinite(z).all()):
            return z.sum()  # the trainer says that it has diverged
        with torch.autocast(z.device.type, enabled=False):  # exponentials of cosines need all digits
            if z.dtype in {torch.float16, torch.bfloat16}:
                z = F.normalize(z.float(), dim=1)
            value = system.metric_loss(z, y, None if features is None else features.to(z.dtype))
        for name, number in getattr(system.metric_loss, "stats", {}).items():
            step.say(f"loss_{name}", number)
        return value


def pooled_map(model: Any, x: Tensor) -> Tap:
    """Where the map [N, width, H, W] comes out of a submodule whose mean over the pixels is what an `Embedder`'s head reads.

    x: a few inputs. Raises: BadInput where there is none.
    """
    mend = "Take pooling='mean', which asks nothing of the network."
    refused = bad(
        "model", type(model.backbone).__name__, "a network that ends in the mean of a map, as ResNets do", mend
    )
    x = x.to(model.head.weight.device)
    try:
        tap = last_map(model, x)
    except BadInput:
        raise refused from None
    with torch.no_grad(), frozen(model):
        features, pixels = model.features(x), see(model, x, tap)[1]
    if pixels.shape[:2] != features.shape or not torch.allclose(pixels.mean((2, 3)), features, rtol=1e-3, atol=1e-4):
        raise refused
    return tap
