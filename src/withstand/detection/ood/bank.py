"""Several detectors of one model, scored in one forward pass."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from withstand.detection.ood.bats import Clipping
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
    the last blocks return, see `withstand.models.taps.blocks`), "head" (weights and bias of the last layer, [K, D + 1], no
    matter what x is), or the name of a submodule, whose output is read.

    A detector with `needs_input` adds passes of its own: `look(target, x, rows)` returns further features, drawn from
    `seed` and the examples' ids. One that `climbs(logits)` gets the input gradient of that value, from a backward pass
    of the shared one, in `look_along(target, x, slope)`. One with `accept(target)` refuses there what it cannot judge.
    One with `teach` learns from adversarial examples as well. One with a `clipping` (BATS) judges by a pass with
    clipped features, which all with an equal clipping share. What detectors fit is a flat dict of tensors, named
    "detector.tensor", ready to be kept as safetensors.

    Raises: BadInput for a target that does not allow what the taps read.
    """

    def __init__(self, target: Target, detectors: Sequence[Any], seed: int = 0) -> None:
        self.target, self.seed = target, seed
        self.detectors: dict[str, Any] = {}
        self._clipped: dict[Clipping, list[str]] = {}
        self._banks: dict[Clipping, tuple[Tensor, Bank]] = {}
        for detector in detectors:
            called = getattr(detector, "label", detector.component_name)
            name, number = called, 1
            while name in self.detectors:
                number += 1
                name = f"{called}-{number}"
            if hasattr(detector, "accept"):
                detector.accept(target)
            if hasattr(detector, "clipping"):
                self._clipped.setdefault(detector.clipping, []).append(name)
            self.detectors[name] = detector
        self.taps = tuple(dict.fromkeys(tap for d in detectors for tap in d.taps))
        inner = ["clipped features"] if self._clipped else [t for t in self.taps if t != "logits"]
        if target.module is None and inner:
            raise bad("detectors", f"taps {', '.join(inner)}", f"logits only: {target.name} shows no features")
        self._places: dict[str, tuple[Tap, nn.Module]] | None = None
        self._head: Tensor | None = None

    def places(self, x: Tensor) -> dict[str, Tap]:
        """Where the features lie in the target's module, by their names; found with one pass of one example, once."""
        return {name: tap for name, (tap, _) in self._found(x).items()}

    def name(self, logits: Tensor, read: Sequence[Tensor]) -> dict[str, Tensor]:
        """Features by name, of what one pass had at `places`."""
        assert self._places is not None
        found = {"logits": logits}
        for (name, (tap, layer)), h in zip(self._places.items(), read):
            found[name] = _as_vectors(layer, h) if tap.side == "input" else h
        if self._head is not None:
            found["head"] = self._head
        return found

    def features(self, x: Tensor) -> dict[str, Tensor]:
        """Everything that the taps read, from one forward pass of x [N, ...], in eval mode without gradients."""
        return self._seen(x, ())[0]

    def _seen(self, x: Tensor, climbing: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The features, and the input gradients of what the named detectors climb, from the same forward pass."""
        with torch.set_grad_enabled(bool(climbing)), self._borrowed():
            if self.target.module is None:
                return {"logits": self.target(x)}, {}
            x = x.detach().requires_grad_() if climbing else x
            logits, *read = see(self.target.module, x, *self.places(x.detach()).values())
            slopes = {n: self._slope(n, logits, x, n != climbing[-1]) for n in climbing}
            return {name: f.detach() for name, f in self.name(logits, read).items()}, slopes

    def _slope(self, name: str, logits: Tensor, x: Tensor, again: bool = False) -> Tensor:
        return torch.autograd.grad(self.detectors[name].climbs(logits).sum(), x, retain_graph=again)[0]

    def read_by(
        self,
        name: str,
        features: Mapping[str, Tensor],
        x: Tensor,
        ids: Tensor | None,
        seed: int | None = None,
        slope: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """What one detector reads of the features of x, with those of its own passes; keeps gradients where there are.

        slope: the input gradient of what it climbs, found anew where it is not given. Raises: BadInput for a detector that
        looks at clipped features, which no pass of the model has.
        """
        detector = self.detectors[name]
        if hasattr(detector, "clipping"):
            raise bad("detector", repr(detector), "one that reads the model as it is")
        own = {k: f for k, f in features.items() if k in detector.taps or _stem(k) in detector.taps}
        if getattr(detector, "needs_input", False):
            rows = Rows(self.seed if seed is None else seed, content_ids(x) if ids is None else ids.to(x.device))
            own |= detector.look(self.target, x, rows)
        if hasattr(detector, "climbs"):
            if slope is None:
                with torch.enable_grad(), self._borrowed():
                    at = x.detach().requires_grad_()
                    slope = self._slope(name, self.target(at), at)
            own |= detector.look_along(self.target, x, slope)
        return own

    def read(self, x: Tensor, ids: Tensor | None = None, names: Sequence[str] = ()) -> dict[str, dict[str, Tensor]]:
        """What each detector (or those named) reads of x: one pass for all, and those of its own. Detectors that look at
        clipped features read nothing here."""
        return self._read(x, ids, names or [*self.detectors])[0]

    def _read(
        self, x: Tensor, ids: Tensor | None, names: Sequence[str], logits: bool = False
    ) -> tuple[dict[str, dict[str, Tensor]], Tensor | None]:
        """What the named detectors read, and the logits of the same pass, where they are asked for."""
        wanted = [n for n in names if not hasattr(self.detectors[n], "clipping")]
        if not wanted and not logits:
            return {}, None
        features, slopes = self._seen(x, [n for n in wanted if hasattr(self.detectors[n], "climbs")])
        with torch.no_grad(), self._borrowed():
            read = {name: self.read_by(name, features, x, ids, slope=slopes.get(name)) for name in wanted}
        return read, features["logits"] if logits else None

    def fit(self, batches: Iterable[Tensor], labels: Tensor | None = None) -> dict[str, Tensor]:
        """What the detectors keep of trusted inputs: one pass over all of them, whose features are held in memory (for
        clipped features another pass, and the inputs are held as well)."""
        batches = list(batches) if self._clipped else batches
        read = _joined([self.read(x) for x in batches])
        kept = {f"{name}.{key}": t for name in read for key, t in self.detectors[name].fit(read[name], labels).items()}
        for clipping, names in self._clipped.items():
            measured = clipping.measured(self.target, batches)
            x = next(iter(batches))
            inner = self._bank(clipping, measured, x)
            own = inner.fit(batches, labels)
            for name, within in zip(names, inner.detectors):
                kept |= {f"{name}.{key}": t for key, t in measured.items()}
                kept |= {f"{name}.within.{key}": t for key, t in _own(within, own).items()}
        return kept

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
        return self._scored(x, fitted, ids, list(names or self.detectors))[0]

    def judge(
        self, x: Tensor, fitted: Mapping[str, Tensor], ids: Tensor | None = None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The scores, and the logits [N, K] of the pass that they come from."""
        scores, logits = self._scored(x, fitted, ids, list(self.detectors), logits=True)
        assert logits is not None
        return scores, logits

    def _scored(
        self, x: Tensor, fitted: Mapping[str, Tensor], ids: Tensor | None, wanted: list[str], logits: bool = False
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        read, said = self._read(x, ids, wanted, logits)
        found = {n: self.detectors[n].score(f, _own(n, fitted)) for n, f in read.items()}
        for clipping, group in self._clipped.items():
            if chosen := [n for n in group if n in wanted]:
                inner = self._bank(clipping, _own(chosen[0], fitted), x)
                inside = dict(zip(group, inner.detectors))
                own = {f"{inside[n]}.{k}": t for n in chosen for k, t in _own(f"{n}.within", fitted).items()}
                scores = inner.score(x, own, ids, [inside[n] for n in chosen])
                found |= {n: scores[inside[n]] for n in chosen}
        return {name: found[name] for name in wanted}, said

    def _bank(self, clipping: Clipping, measured: Mapping[str, Tensor], x: Tensor) -> "Bank":
        """The detectors with this clipping, for the target with it."""
        held = self._banks.get(clipping)
        if held is None or held[0] is not measured["mean"]:
            within = [self.detectors[n].detector for n in self._clipped[clipping]]
            held = measured["mean"], Bank(clipping.applied(self.target, measured, x), within, self.seed)
            self._banks[clipping] = held
        return held[1]

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
                elif tap == "head":
                    self._head = _weights(head(module, x[:1]))
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
    every = lambda d, k: parts[0][d][k] if k == "head" else torch.cat([p[d][k] for p in parts])  # noqa: E731
    return {d: {k: every(d, k) for k in parts[0][d]} for d in parts[0]}


def _weights(layer: nn.Module) -> Tensor:
    """Weights and bias of the layer that makes the logits, [K, D + 1]."""
    weight: Any = layer.weight
    if isinstance(layer, nn.Conv2d) and weight.shape[2:] != (1, 1):
        raise bad("model", repr(layer), "a last layer that is linear, or a convolution of single pixels")
    bias: Any = layer.bias if layer.bias is not None else weight.new_zeros(len(weight))
    return torch.cat([weight.detach().flatten(1), bias.detach()[:, None]], 1)


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
