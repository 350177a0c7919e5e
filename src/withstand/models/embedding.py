"""Models that map images to vectors: a classifier without its last layer, and a head of another kind."""

import copy

import torch.nn.functional as F
from torch import Tensor, nn

from withstand.errors import bad
from withstand.models.target import read_as


def headless(model: nn.Module) -> tuple[nn.Module, int]:
    """A copy of a classifier whose last linear layer passes its input on, and the length of what it passes on.

    What stands around the classifier stays (a normalisation of its inputs), but for what reads logits. An `Embedder` gives
    its backbone.

    Raises: BadInput for a model without a linear layer.
    """
    backbone = copy.deepcopy(read_as(model)[0])
    if isinstance(backbone, Embedder):
        return backbone.backbone, backbone.head.in_features
    linear = [(name, part) for name, part in backbone.named_modules() if isinstance(part, nn.Linear)]
    if not linear:
        raise bad("model", type(model).__name__, "a model whose last layer is linear", "Its head is replaced.")
    name, last = linear[-1]
    if not name:
        return nn.Flatten(), last.in_features
    parent, _, child = name.rpartition(".")
    setattr(backbone.get_submodule(parent), child, nn.Identity())
    return backbone, last.in_features


class Embedder(nn.Module):
    """Unit vectors [N, dim] of images: a backbone's features, a linear layer, and normalisation.

    backbone: images -> features [N, width].
    """

    def __init__(self, backbone: nn.Module, width: int, dim: int) -> None:
        super().__init__()
        if dim < 1:
            raise bad("dim", dim, "a length >= 1")
        self.backbone = backbone
        self.head = nn.Linear(width, dim)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.head(self.features(x)), dim=1)

    def features(self, x: Tensor) -> Tensor:
        """Features [N, width]. Raises: BadInput for a backbone that gives something else."""
        found = self.backbone(x)
        if not isinstance(found, Tensor) or found.shape != (len(x), self.head.in_features):
            got = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            mend = "The last linear layer of the model must be its head."
            raise bad("backbone", f"an output {got}", f"features [{len(x)}, {self.head.in_features}]", mend)
        return found
