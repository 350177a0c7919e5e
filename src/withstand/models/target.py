"""The torch target: a module that maps images in [0, 1] to logits, with what an audit must know about it."""

import hashlib
import re
from collections.abc import Mapping
from typing import Any, Literal, TypeGuard

import torch
from torch import Tensor, nn

from withstand.errors import BadInput, bad
from withstand.models.record import TrainingRecord
from withstand.protocols import Space, Target

Outputs = Literal["logits", "probabilities"]


def as_target(model: Any, name: str | None = None, space: Space | None = None) -> Target:
    """The target for anything that can stand for one: a target (returned as it is) or a module.

    name: what tables and reports call it, default the class name. space: what inputs look like, if known.
    Raises: BadInput for anything else.
    """
    if isinstance(model, nn.Module):
        return TorchTarget(model, name, space)
    if is_target(model):
        return model
    raise bad("model", type(model).__name__, "a torch module or what load_model returns")


def is_target(value: object) -> TypeGuard[Target]:
    """Whether the value has what the protocol asks for."""
    return callable(value) and all(hasattr(value, a) for a in ("name", "task", "access", "space", "fingerprint"))


class TorchTarget:
    """A torch module under test.

    module: images [N, C, H, W] in [0, 1] -> logits [N, K], whatever the model itself returns around them; modes and
    gradients are the caller's business (see `frozen`). notes: what was assumed while loading, for people to read.
    """

    def __init__(
        self,
        model: nn.Module,
        name: str | None = None,
        space: Space | None = None,
        task: str = "classification",
        outputs: Outputs = "logits",
        source: str = "",
        notes: tuple[str, ...] = (),
    ) -> None:
        """source: text of the code that built the model, if known; it is part of the fingerprint."""
        self.name = name or type(model).__name__
        self.task = task
        self.space = space or Space()
        self.model = model
        self.module: nn.Module = Logits(model, self.space.classes, outputs) if task == "classification" else model
        self.notes = notes
        self.built_by: dict[str, Any] | None = None
        """The arguments of `load_model` that build it again, without the weights."""
        self.record: TrainingRecord | None = None
        """How its training went, if known."""
        self._source = source

    @property
    def access(self) -> frozenset[str]:
        """Everything; the training's history only where it was validated and recorded."""
        known = {"gradients", "features", "scores", "decision"}
        return frozenset(known | {"training history"} if self.record is not None and self.record.held else known)

    def __call__(self, x: Tensor) -> Tensor:
        return self.module(x)

    def __repr__(self) -> str:
        return f"<{self.name}: {self.task}, input {self.space.shape}, {self.space.classes} classes>"

    def to(self, device: torch.device | str) -> "TorchTarget":
        """Move the module (in place, as torch does) and return self."""
        self.module.to(device)
        return self

    def submodule(self, name: str) -> nn.Module:
        """A part of the model by the name that the model itself gives it, whatever wrappers stand around it.

        Raises: BadInput with the nearest names.
        """
        from withstand.errors import unknown

        model = self.model.model if isinstance(self.model, Normalised) else self.model
        parts = dict(model.named_modules())
        if name not in parts:
            raise unknown("submodule", name, (n for n in parts if n))
        return parts[name]

    def fingerprint(self) -> str:
        """Changes with the architecture, the normalisation, any weight or buffer, and the source text if known."""
        digest = hashlib.sha256(re.sub(r" at 0x[0-9a-f]+", "", repr(self.module)).encode())
        digest.update(f"\0{self.task}\0{self._source}".encode())
        for name, tensor in self.module.state_dict().items():
            if isinstance(tensor, Tensor):
                digest.update(f"\0{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()[:32]


class Logits(nn.Module):
    """Around a classifier: returns its logits [N, K], whatever it returns them in.

    classes: K, if known; outputs "probabilities": the model returns probabilities p, and log p stands for the logits.
    """

    def __init__(self, model: nn.Module, classes: int | None = None, outputs: Outputs = "logits") -> None:
        super().__init__()
        if outputs not in ("logits", "probabilities"):
            raise bad("outputs", repr(outputs), '"logits" or "probabilities"')
        self.model, self.classes = model, classes
        self.outputs: Outputs = outputs
        self.training = model.training

    def forward(self, x: Tensor) -> Tensor:
        out = logits_of(self.model(x), self.classes)
        return out if self.outputs == "logits" else out.clamp_min(torch.finfo(out.dtype).tiny).log()

    def extra_repr(self) -> str:
        return "" if self.outputs == "logits" else f"outputs={self.outputs}"


def read_as(module: nn.Module) -> tuple[nn.Module, Outputs]:
    """What a target is built from again, of a module that one may have been: the bare module, and what it returns."""
    return (module.model, module.outputs) if isinstance(module, Logits) else (module, "logits")


class Normalised(nn.Module):
    """(x - mean) / std per channel in front of a model, so that attacks see images in [0, 1].

    mean, std: one number per channel, in units of the [0, 1] range.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.model = model
        # not persistent: the state dict stays that of the model, under one prefix
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)
        self.training = model.training

    def forward(self, x: Tensor) -> Any:
        channels = max(len(self.mean), len(self.std))
        if 1 < channels != x.shape[1]:
            raise bad("x", f"{x.shape[1]} channels", f"{channels} channels, as many as mean and std have values")
        shape = (1, -1, *[1] * (x.ndim - 2))
        return self.model((x - self.mean.to(x.dtype).view(shape)) / self.std.to(x.dtype).view(shape))

    def extra_repr(self) -> str:
        return f"mean={self.mean.tolist()}, std={self.std.tolist()}"


def core(model: nn.Module) -> nn.Module:
    """The architecture itself, without `Logits` and `Normalised` around it."""
    while isinstance(model, (Logits, Normalised)):
        model = model.model
    return model


def logits_of(output: Any, classes: int | None = None) -> Tensor:
    """The logits [N, K] in what a classifier returned: a tensor, an object or mapping with `logits`, a tuple with one
    candidate (a float tensor of rank 2; several: the one with K = classes columns).

    Raises: BadInput where there is none, or more than one.
    """
    if isinstance(output, Tensor):
        found = [output]
    elif isinstance(output, Mapping) and "logits" in output:
        found = [output["logits"]]
    elif isinstance(logits := getattr(output, "logits", None), Tensor):
        found = [logits]
    elif isinstance(output, (Mapping, tuple, list)):
        parts = output.values() if isinstance(output, Mapping) else output
        found = [p for p in parts if isinstance(p, Tensor) and p.ndim == 2 and p.is_floating_point()]
        if len(found) > 1 and classes is not None:
            found = [p for p in found if p.shape[1] == classes]
    else:
        found = []
    if len(found) == 1 and isinstance(found[0], Tensor) and found[0].ndim == 2 and found[0].is_floating_point():
        return found[0]
    raise BadInput(
        f"the model returned {_described(output)}; allowed: float logits [N, K] as a tensor, as `.logits`, under the "
        'key "logits", or as the only such tensor of a tuple (with classes=K: the only one with K columns). '
        "Wrap the model in a module whose forward returns the logits."
    )


def _described(output: Any) -> str:
    if isinstance(output, Tensor):
        return f"a {str(output.dtype).removeprefix('torch.')} tensor of shape {list(output.shape)}"
    if isinstance(output, Mapping):
        return f"a {type(output).__name__} with " + ", ".join(f"{k!r}: {_described(v)}" for k, v in output.items())
    if isinstance(output, (tuple, list)):
        return f"a {type(output).__name__} of " + ", ".join(_described(v) for v in output)
    return f"an object of type {type(output).__name__}"
