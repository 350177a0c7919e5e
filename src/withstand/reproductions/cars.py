"""Cars of models that were never seen, by networks that begin with weights: what experiments on embeddings share.

400 photographs of 20 models of cars are learned from, searches go among 400 of 20 others. The weights are those of a
ResNet-20 that has learned CIFAR-10, in which an automobile is one of ten things: it has never had to tell two cars apart.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from withstand.data import from_arrays, load_data
from withstand.data.load import data_root
from withstand.models import load_model
from withstand.models.embedding import headless
from withstand.protocols import Dataset
from withstand.registry import parse
from withstand.training import Trainer


@cache
def photographs(split: str, size: int) -> Dataset:
    """The cars "seen" or "unseen", [3, size, size], decoded once."""
    data = load_data("cars", split=split, size=size)
    batch = data.batch(range(len(data)))
    assert batch.y is not None
    return from_arrays(batch.x.numpy(), batch.y.numpy(), f"cars-{split}", data.classes, layout="nchw")


@cache
def learned() -> nn.Module:
    """A ResNet-20 with weights of CIFAR-10, which normalises its input itself."""
    model = load_model("zoo:cifar_resnet20", weights=data_root() / "weights" / "cifar10_resnet20.pth").module
    assert model is not None
    return model


class Features(nn.Module):
    """Unit vectors of what a network makes before its last layer."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.backbone = headless(model)[0]

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.backbone(x), dim=1)


def embedder(recipe: str, rate: float, s: Mapping[str, Any], seed: int) -> nn.Module:
    """What a recipe makes of the network that has learned CIFAR-10, on the cars that are seen. rate: the learning rate."""
    trainer = Trainer(
        epochs=s["epochs"], batch=s["batch"], sampler=s["sampler"], optimizer=f"adam({rate})", schedule="constant",
        augment=("crop_flip(4)",), accelerator=s.get("accelerator", "cpu"),
    )  # fmt: skip
    data = photographs("seen", s["size"])
    return trainer.fit(parse(recipe.format(**s), "recipe"), learned(), data, seed=seed).last.eval().cpu()


def searched(s: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Images and classes of the cars that are searched."""
    test = photographs("unseen", s["size"])
    batch = test.batch(range(len(test)))
    assert batch.y is not None
    device = torch.device(s.get("accelerator", "cpu"))
    return batch.x.to(device), batch.y.to(device)
