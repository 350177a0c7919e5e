"""Encoders: a network without its head whose features are what is used, and a linear classifier upon one."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from withstand.errors import bad
from withstand.models.embedding import Embedder, headless
from withstand.models.target import read_as


class FeatureEncoder(nn.Module):
    """Unit vectors [N, width] of inputs of any rank: a backbone's features, normalised.

    backbone: inputs -> features [N, width].
    """

    def __init__(self, backbone: nn.Module, width: int) -> None:
        super().__init__()
        self.backbone, self.width = backbone, width

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.features(x), dim=1)

    def features(self, x: Tensor) -> Tensor:
        """Features [N, width] as the backbone gives them. Raises: BadInput for one that gives something else."""
        found = self.backbone(x)
        if not isinstance(found, Tensor) or found.shape != (len(x), self.width):
            got = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            mend = "The last linear layer of the model must be its head."
            raise bad("backbone", f"an output {got}", f"features [{len(x)}, {self.width}]", mend)
        return found


def encoder_of(model: nn.Module) -> FeatureEncoder:
    """A copy of the encoder in a model: itself, the backbone of an embedding, or a classifier without its last layer."""
    model = read_as(model)[0]
    if isinstance(model, FeatureEncoder):
        return copy.deepcopy(model)
    if isinstance(model, Embedder):
        return FeatureEncoder(copy.deepcopy(model.backbone), model.head.in_features)
    return FeatureEncoder(*headless(model))


class Probe(nn.Module):
    """Logits [N, classes] of standardised features: W ((f(x) - mean) / std) + b."""

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: FeatureEncoder, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("mean", torch.zeros(encoder.width))
        self.register_buffer("std", torch.ones(encoder.width))
        self.head = nn.Linear(encoder.width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.encoder.features(x))

    def read(self, features: Tensor) -> Tensor:
        """Logits of features [N, width]."""
        return self.head((features - self.mean) / self.std)

    def standardise(self, features: Tensor) -> None:
        """Take mean and standard deviation from features [N, width]; those that never change are only shifted."""
        std, mean = torch.std_mean(features.double(), 0, correction=0)
        self.mean.copy_(mean)
        self.std.copy_(torch.where(std > 1e-6 * std.max().clamp_min(1e-6), std, 1.0))
