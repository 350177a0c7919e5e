"""What a generator learns against: a classifier that stands still."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from withstand.errors import bad
from withstand.models.state import frozen
from withstand.models.taps import Tap, see, stages, submodule
from withstand.models.target import core


class Source(nn.Module):
    """A frozen copy of a classifier: always in eval mode, its parameters without gradients.

    It is no part of what training saves or counts, but goes to the device with the rest. Its normalisation is that of the
    `Normalised` around it (load_model(mean=, std=) puts one there), else none; what a model normalises inside of itself is
    part of its layers. Submodules go by the names that they have without wrappers.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._held = [
            copy.deepcopy(model).requires_grad_(False).eval()
        ]  # a list hides it from parameters() and train()

    @property
    def model(self) -> nn.Module:
        """The classifier."""
        return self._held[0]

    def _apply(self, fn: Any, recurse: bool = True) -> "Source":
        self.model._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def features(self, x: Tensor, layer: str, normal: tuple[float, float] | None = None) -> Tensor:
        """What the submodule `layer` returns for x; normal: a mean and a deviation in the place of its own."""
        net = core(self.model)
        if normal is not None:
            return see(net, (x - normal[0]) / normal[1], Tap(layer))[1]
        part = submodule(net, layer)
        return see(self.model, x, Tap(next(name for name, m in self.model.named_modules() if m is part)))[1]

    def layer(self, name: str | None, x: Tensor) -> str:
        """The name of a layer that returns maps [N, C, H, W] for x; None: the one that ends the second stage.

        Raises: BadInput for a name that does not exist, or a layer of another kind.
        """
        name = stages(core(self.model), x, 2)[1] if name is None else name
        with torch.no_grad(), frozen(self.model):
            h = self.features(x, name)
        if h.dim() != 4:
            raise bad("layer", f"{name!r}, which returns {list(h.shape)}", "a layer that returns maps [N, C, H, W]")
        return name
