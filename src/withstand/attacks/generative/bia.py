"""Beyond ImageNet Attack, and the attack on logits that its generator comes from."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from withstand.attacks.generative.generator import Generator
from withstand.attacks.generative.source import Source
from withstand.errors import bad
from withstand.protocols import Batch, Dataset, Space
from withstand.random import Rows
from withstand.registry import component
from withstand.threats import Linf
from withstand.training.recipe import MakeOptimizer, Optimizers, Recipe, Step, System

PUBLISHED = {"optimizer": "adam(2e-4, betas=(0.5, 0.999))", "schedule": "constant", "batch": 16, "epochs": 1}


@dataclass(frozen=True, kw_only=True)
class CrossDomain(Recipe):
    """A generator that needs images and a source classifier to learn from, and nothing of the models that it is used on."""

    eps: float = 10 / 255
    ngf: int = 64
    blocks: int = 6
    parameterisation: Literal["image", "residual"] = "image"

    verb: ClassVar[str] = "fit-attack"
    learned: ClassVar[bool] = True
    ships: ClassVar[str] = "generator"
    labelled: ClassVar[bool] = False
    defaults: ClassVar[dict[str, Any]] = PUBLISHED

    def __post_init__(self) -> None:
        if not 0 < self.eps <= 1:
            raise bad("eps", self.eps, "a radius in (0, 1], e.g. 10/255")
        for name, least in (("ngf", 1), ("blocks", 0)):
            if getattr(self, name) < least:
                raise bad(name, getattr(self, name), f"a whole number >= {least}")

    def setup(self, model: nn.Module, data: Dataset, rows: Rows) -> nn.Module:
        if data.space.box != (0.0, 1.0):
            raise bad("data", f"values in {data.space.box}", "images with values in [0, 1]")
        x = data.batch([0]).x
        generator = self.deploy(None, Space(tuple(x.shape[1:]), data.space.box))
        generator.eval()(x)  # refuses what it cannot take
        return System(generator, source=Source(model))

    def optimizers(self, system: Any, main: MakeOptimizer) -> Optimizers:
        return {"main": main(system.model.parameters())}

    def deploy(self, model: Any, space: Space) -> nn.Module:
        assert space.shape is not None
        return Generator(int(space.shape[0] or 0), self.ngf, self.blocks, self.parameterisation, self.eps)

    def adversarial(self, system: Any, x: Tensor, step: Step) -> Tensor:
        """The generator's images in the set around x; no gradient comes back where they had to be moved there."""
        made = system.model(x)
        moved = Linf(self.eps).project(made, x, (0.0, 1.0))
        step.say("live_pixels", (made == moved).float().mean())
        return moved


@component("recipe", "bia", systems=("bia",))
class BIA(CrossDomain):
    """A generator that turns the features of a source classifier away, for classifiers of other domains (BIA).

    min_G mean_x cos(A * f(n(x')), A * f(n(x))), x' = G(x) projected into the ball of eps and [0, 1]; f: the maps of a layer,
    each image's flattened to one vector. Plain: A = 1, n the source's own normalisation.
    rn: n(t) = (t - mu) / s with mu from N(0.5, 0.08^2) and s from N(0.75, 0.08^2), one pair for a batch, in the place of the
    source's own normalisation where that stands around it as `Normalised` (as load_model puts it); a network that
    normalises inside of itself sees both. da: A = |mean over channels of f(n(x))|, [N, 1, H, W], held fixed.

    layer: a submodule that returns maps; None takes the end of the second stage, as published for ResNets. Published for
    VGG: the third max-pool, "features.16" and "features.18" of torchvision's 16 and 19; for DenseNets: the second dense
    block, "features.denseblock2", which must be named (None takes "features.transition1").
    parameterisation: "image" as published, where pixels that G moves beyond eps teach it nothing (`live_pixels` in the
    history is the share of the others: at the start few, since G begins near grey); "residual", x + eps * tanh, which has
    none of them, is our own.

    No labels, no discriminator, no price on the size of the change. What is shipped is G: see the attack `generated`. With
    the trainer's settings unsaid it learns as published: Adam 2e-4 with momenta 0.5 and 0.999, batches of 16, one epoch.

    Reference: Zhang, Li, Chen, Song, Gao, He, Xue, "Beyond ImageNet Attack: Towards Crafting Adversarial Examples for
    Black-box Domains", 2022, arXiv 2201.11528; details as in the official code.
    """

    layer: str | None = None
    rn: bool = False
    da: bool = False

    def setup(self, model: nn.Module, data: Dataset, rows: Rows) -> nn.Module:
        system: Any = super().setup(model, data, rows)
        system.layer = system.source.layer(self.layer, data.batch([0]).x)
        return system

    def loss(self, system: Any, batch: Batch, step: Step) -> Tensor:
        moved = self.adversarial(system, batch.x, step)
        loss = self.similarity(system, moved, batch.x, self.normal(step)).mean()
        step.say("cosine", loss)
        return loss

    def normal(self, step: Step) -> tuple[float, float] | None:
        """The mean and deviation that both images of this step are normalised with; None for the source's own."""
        if not self.rn:
            return None
        mu, s = torch.randn(2, generator=step.generator("rn"), dtype=torch.float64).tolist()
        return 0.5 + 0.08 * mu, 0.75 + 0.08 * s

    def similarity(self, system: Any, moved: Tensor, x: Tensor, normal: tuple[float, float] | None = None) -> Tensor:
        """The cosine [N] between the layer's answers to moved and clean images."""
        with torch.no_grad():
            clean = system.source.features(x, system.layer, normal)
            attention = clean.mean(1, keepdim=True).abs() if self.da else clean.new_ones(())
        seen = system.source.features(moved, system.layer, normal)
        return F.cosine_similarity((attention * seen).flatten(1), (attention * clean).flatten(1), dim=1)


@component("recipe", "cda", systems=("bia",))
class CDA(CrossDomain):
    """A generator that turns the logits of a source classifier away, relative to the clean ones (CDA).

    max_G mean_x CE(z(x') - z(x), argmax z(x)), x' as for `bia`; the baseline with the same generator and no layer to name.

    Reference: Naseer, Khan, Khan, Khan, Porikli, "Cross-Domain Transferability of Adversarial Perturbations", 2019, arXiv
    1905.11736; loss as in the official code.
    """

    def loss(self, system: Any, batch: Batch, step: Step) -> Tensor:
        with torch.no_grad():
            clean = system.source(batch.x)
        moved = system.source(self.adversarial(system, batch.x, step))
        return -F.cross_entropy(moved - clean, clean.argmax(1))
