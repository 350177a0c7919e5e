"""What a search compares images by: unit vectors or codes, of whatever model makes them."""

import hashlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from withstand.errors import BadInput, WithstandError, bad
from withstand.models.state import frozen
from withstand.models.taps import penultimate, see, vectors
from withstand.models.target import as_target
from withstand.protocols import Dataset

_BLOCK = 256


class Encoder:
    """Images [N, C, H, W] to unit vectors float32 [N, D], or to codes of -1 and +1, float32 [N, K].

    >>> encode = Encoder(load_model("zoo:digits_cnn", pretrained=False))
    >>> encode(torch.rand(2, 1, 8, 8)).shape
    torch.Size([2, 128])

    model: what `load_model` reads, a target, or a module. Of a model with the task "embedding" its output, of one with the
    task "hashing" the sign of its output (+1 for 0). Of a classifier what `layer` returns (means over pixels or tokens);
    None: what the last layer reads. Always in eval mode and without gradients; the model is not copied. Vectors come with
    length 1; a vector of zeros stays.

    Raises: BadInput for models that show no features and classifiers without such a layer; when called, for outputs that
    are no vectors, NaN or infinite.
    """

    def __init__(self, model: Any, layer: str | None = None) -> None:
        from withstand.models.load import load_model

        self.target = load_model(model) if isinstance(model, str) else as_target(model)
        if self.target.task not in ("embedding", "hashing", "classification") or self.target.module is None:
            got = f"{self.target.name}: {self.target.task}, access to {', '.join(sorted(self.target.access))}"
            raise bad("model", got, "a torch model that embeds, hashes or classifies", "Its features are looked at.")
        if layer is not None and self.target.task != "classification":
            raise bad(
                "layer", repr(layer), f"None for a model whose task is {self.target.task}", "Its output is taken."
            )
        self.layer = layer
        self.binary = self.target.task == "hashing"
        self.name = self.target.name + (f" [{layer}]" if layer else "")
        classifies = self.target.task == "classification"
        self._module = Features(self.target.module, layer) if classifies else self.target.module

    def __call__(self, x: Tensor) -> Tensor:
        """Vectors or codes of images, on the device of the model."""
        some: Any = next(self._module.parameters(), x)
        try:
            with torch.no_grad(), frozen(self._module):
                found = torch.cat([self._output(part.to(some.device)) for part in x.split(_BLOCK)])
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            if isinstance(error, (WithstandError, torch.OutOfMemoryError)):
                raise
            said = str(error).split("\n")[0]
            raise BadInput(f"{self.name} fails on inputs {list(x.shape)}: {said}") from error
        if not bool(found.isfinite().all()):
            raise bad("model", f"{self.name}, which returns NaN or infinite values", "finite vectors")
        return torch.where(found >= 0, 1.0, -1.0) if self.binary else F.normalize(found.float(), dim=1)

    def of(self, data: Dataset) -> tuple[Tensor, Tensor | None, Tensor]:
        """Vectors or codes of a data set, its labels (None where it has none) and its ids, all on the CPU."""
        parts = [data.batch(range(i, min(i + _BLOCK, len(data)))) for i in range(0, len(data), _BLOCK)]
        if not parts:
            raise bad("data", f"{data.name}, which is empty", "at least one example")
        found = torch.cat([self(part.x).cpu() for part in parts])
        labels = [part.y for part in parts if part.y is not None]
        ids = [part.ids for part in parts if part.ids is not None]
        whole = torch.arange(len(found)) if len(ids) < len(parts) else torch.cat(ids).cpu()
        return found, None if len(labels) < len(parts) else torch.cat(labels).cpu(), whole

    def fingerprint(self) -> str:
        """Changes with the model, any weight of it, and the layer."""
        said = f"{self.target.fingerprint()}\0{self.layer or ''}"
        return hashlib.sha256(said.encode()).hexdigest()[:32]

    def _output(self, x: Tensor) -> Tensor:
        found = self._module(x)
        if not isinstance(found, Tensor) or found.dim() != 2 or not found.is_floating_point():
            got = f"{found.dtype} {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise bad("model", f"{self.name}, which returns {got}", f"float vectors [{len(x)}, D]")
        return found


class Features(nn.Module):
    """A classifier as an embedding: what `layer` returns (means over pixels or tokens), or what its last layer reads, with
    length 1. Keeps its gradients. Raises: BadInput for a layer that there is not; when called, where no layer makes logits.
    """

    def __init__(self, model: nn.Module, layer: str | None = None) -> None:
        super().__init__()
        self.model, self.layer = model, layer
        self.training = model.training
        self._tap = None if layer is None else penultimate(model, torch.empty(0), layer)

    def forward(self, x: Tensor) -> Tensor:
        if self._tap is None:
            self._tap = penultimate(self.model, x[:1])
        return F.normalize(vectors(see(self.model, x, self._tap)[1]), dim=1)

    def extra_repr(self) -> str:
        return "" if self.layer is None else f"layer={self.layer!r}"
