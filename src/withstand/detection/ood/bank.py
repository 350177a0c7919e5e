"""Several detectors of one model, scored in one forward pass."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from withstand.errors import bad
from withstand.models.state import frozen
from withstand.models.taps import Tap, blocks, head, see
from withstand.protocols import Target
from withstand.random import Rows

BLOCKS = "blocks"
"""The tap that stands for the outputs of several blocks; their features are named "blocks/NAME"."""


class Bank:
    """Detectors that share one forward pass of a target for the union of their taps.

    target: a classifier. detectors: components of kind "detector", named by their component names; two of one kind are
    told apart by a number. Taps are "logits", "penultimate" (what the last layer reads, see `penultimate`), "blocks" (what
    the last blocks return, see `withstand.models.taps.blocks`), or the name of a submodule, whose output is read.

    A detector with `needs_input` adds passes of its own: `look(target, x, rows)` returns further features, drawn from
    `seed` and the examples' ids. One with `accept(target)` refuses there what it cannot judge. One with `teach` learns from
    adversarial examples as well. What detectors fit is a flat dict of tensors, named "detector.tensor", ready to be kept as
    safetensors. Detectors that rerun the tail of the network (ReAct, BATS) have no user here yet.

    Raises: BadInput for a target that does not allow what the taps read.
    """

    def __init__(self, target: Target, detectors: Sequence[Any], seed: int = 0) -> None:
        self.target, self.seed = target, seed
        self.detectors: dict[str, Any] = {}
        for detector in detectors:
            name, number = detector.component_name, 1
            while name in self.detectors:
                number += 1
                name = f"{detector.component_name}-{number}"
            if hasattr(detector, "accept"):
                detector.accept(target)
            self.detectors[name] = detector
        self.taps = tuple(dict.fromkeys(tap for d in detectors for tap in d.taps))
        if target.module is None and (inner := [t for t in self.taps if t != "logits"]):
            raise bad("detectors", f"taps {', '.join(inner)}", f"logits only: {target.name} shows no features")
        self._places: dict[str, tuple[Tap, nn.Module]] | None = None

    def places(self, x: Tensor) -> dict[str, Tap]:
        """Where the features lie in the target's module, by their names; found with one pass of one example, once."""
        return {name: tap for name, (tap, _) in self._found(x).items()}

    def name(self, logits: Tensor, read: Sequence[Tensor]) -> dict[str, Tensor]:
        """Features by name, of what one pass had at `places`."""
        assert self._places is not None
        found = {"logits": logits} if "logits" in self.taps else {}
        for (name, (tap, layer)), h in zip(self._places.items(), read):
            found[name] = _as_vectors(layer, h) if tap.side == "input" else h
        return found

    def features(self, x: Tensor) -> dict[str, Tensor]:
        """Everything that the taps read, from one forward pass of x [N, ...], in eval mode without gradients."""
        with torch.no_grad(), self._borrowed():
            if self.target.module is None:
                return {"logits": self.target(x)}
            logits, *read = see(self.target.module, x, *self.places(x).values())
            return self.name(logits, read)

    def read_by(
        self, name: str, features: Mapping[str, Tensor], x: Tensor, ids: Tensor | None, seed: int | None = None
    ) -> dict[str, Tensor]:
        """What one detector reads of the features of x, with those of its own passes; keeps gradients where there are."""
        detector = self.detectors[name]
        own = {k: f for k, f in features.items() if k in detector.taps or _stem(k) in detector.taps}
        if getattr(detector, "needs_input", False):
            rows = Rows(self.seed if seed is None else seed, content_ids(x) if ids is None else ids.to(x.device))
            own |= detector.look(self.target, x, rows)
        return own

    def read(self, x: Tensor, ids: Tensor | None = None, names: Sequence[str] = ()) -> dict[str, dict[str, Tensor]]:
        """What each detector (or those named) reads of x: one pass for all, and those of its own."""
        features = self.features(x)
        with torch.no_grad(), self._borrowed():
            return {name: self.read_by(name, features, x, ids) for name in names or self.detectors}

    def fit(self, batches: Iterable[Tensor], labels: Tensor | None = None) -> dict[str, Tensor]:
        """What the detectors keep of trusted inputs: one pass over all of them, whose features are held in memory."""
        read = _joined([self.read(x) for x in batches])
        return {
            f"{name}.{key}": tensor
            for name, detector in self.detectors.items()
            for key, tensor in detector.fit(read[name], labels).items()
        }

    def teach(
        self, trusted: Iterable[Tensor], adversarial: Iterable[Tensor], fitted: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """`fitted` after the detectors that can have learned from trusted and adversarial inputs, other than the fitted
        ones."""
        sides = [_joined([self.read(x) for x in batches]) for batches in (trusted, adversarial)]
        found = dict(fitted)
        for name, detector in self.detectors.items():
            if hasattr(detector, "teach"):
                learned = detector.teach(sides[0][name], sides[1][name], _own(name, fitted))
                found |= {f"{name}.{key}": tensor for key, tensor in learned.items()}
        return found

    def score(
        self, x: Tensor, fitted: Mapping[str, Tensor], ids: Tensor | None = None, names: Sequence[str] = ()
    ) -> dict[str, Tensor]:
        """The score [N] of every detector (or of those named), float64, higher = more suspicious; one forward pass.

        ids: int64 [N], what the noise of detectors with passes of their own is drawn by; None: what is in each input.
        """
        read = self.read(x, ids, names)
        return {name: self.detectors[name].score(found, _own(name, fitted)) for name, found in read.items()}

    def score_of(self, name: str, read: Mapping[str, Tensor], fitted: Mapping[str, Tensor]) -> Tensor:
        """The score [N] of one detector, of what it has read; differentiable where the detector is."""
        return self.detectors[name].score(read, _own(name, fitted))

    def _borrowed(self) -> AbstractContextManager[Any]:
        return frozen(self.target.module) if self.target.module is not None else nullcontext()

    def _found(self, x: Tensor) -> dict[str, tuple[Tap, nn.Module]]:
        if self._places is None:
            module, found = self.target.module, {}
            assert module is not None
            names = {part: name for name, part in module.named_modules()}
            for tap in self.taps:
                if tap == "penultimate":
                    layer = head(module, x[:1])
                    found[tap] = (Tap(names[layer], "input"), layer)
                elif tap == BLOCKS:
                    parts = {n: module.get_submodule(n) for n in blocks(module, x[:1])}
                    found |= {f"{BLOCKS}/{n}": (Tap(n), part) for n, part in parts.items()}
                elif tap != "logits":
                    layer = _submodule(self.target, tap)
                    found[tap] = (Tap(names[layer]), layer)
            self._places = found
        return self._places


def penultimate(target: Target, x: Tensor) -> Tensor:
    """What the last layer of a classifier reads, [N, D]; one forward pass in eval mode without gradients."""
    module = target.module
    if module is None:
        raise bad("model", target.name, "a torch model: its features are needed")
    with torch.no_grad(), frozen(module):
        layer = head(module, x[:1])
        name = next(n for n, part in module.named_modules() if part is layer)
        return _as_vectors(layer, see(module, x, Tap(name, "input"))[1])


def content_ids(x: Tensor) -> Tensor:
    """An identity int64 [N] for each input, from what is in it."""
    rows = x.detach().cpu().flatten(1).contiguous().numpy()
    digests = [hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in rows]
    return torch.tensor([int.from_bytes(d, "little", signed=True) for d in digests], device=x.device)


def _as_vectors(layer: nn.Module, h: Tensor) -> Tensor:
    """What a layer reads as vectors [N, D]: tokens and pixels are averaged."""
    if isinstance(layer, nn.Conv2d):
        h = h.flatten(2).mean(2)
    return h if h.dim() == 2 else h.flatten(1, -2).mean(1)


def _joined(parts: Sequence[Mapping[str, Mapping[str, Tensor]]]) -> dict[str, dict[str, Tensor]]:
    """Batches of what each detector reads, as one. Raises: BadInput for none."""
    if not parts:
        raise bad("batches", "none", "at least one batch of inputs")
    return {d: {k: torch.cat([p[d][k] for p in parts]) for k in parts[0][d]} for d in parts[0]}


def _stem(feature: str) -> str:
    """The tap that a feature comes from."""
    return BLOCKS if feature.startswith(f"{BLOCKS}/") else feature


def _submodule(target: Target, name: str) -> nn.Module:
    getter = getattr(target, "submodule", None)
    if getter is None:
        raise bad("detectors", f"the tap {name!r}", "logits or penultimate for this kind of model")
    return getter(name)


def _own(name: str, fitted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): t for key, t in fitted.items() if key.startswith(f"{name}.")}
