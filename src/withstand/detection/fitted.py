"""Detectors of one model that are fitted, kept, and asked about new inputs."""

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from withstand.data import as_dataset, load_data
from withstand.detection.judging import NOTIONS, acceptable, judge
from withstand.detection.ood.bank import Bank
from withstand.errors import BadInput, bad
from withstand.files import write_atomic, write_json
from withstand.models import as_target, check_compatible
from withstand.protocols import Dataset, Target
from withstand.registry import coerce, parse
from withstand.training.materials import split

FILE = "detectors.json"
DEFAULT = ("msp", "max_logit", "energy", "knn")
_BLOCK = 256


@dataclass(frozen=True)
class Scored:
    """What detectors say to some inputs. scores: float64 [N] by detector, higher = more suspicious; prediction int64 [N]
    and confidence [N] (largest softmax probability) of the model; labels int64 [N], -1 where there is none; ids [N]."""

    scores: dict[str, Tensor]
    prediction: Tensor
    confidence: Tensor
    labels: Tensor
    ids: Tensor


@dataclass(frozen=True)
class FittedDetectors:
    """Detectors of a model, with what they have fitted; `fit_detectors` makes them, `load_detectors` reads them back.

    bank: the detectors. fitted: their tensors. held: the scores of familiar examples that nothing was fitted on, float64
    in rising order, by detector; thresholds come from them. origin: what it was made of, for the reader.
    """

    bank: Bank
    fitted: dict[str, Tensor]
    held: dict[str, Tensor]
    origin: dict[str, Any]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the detectors, as tables call them."""
        return tuple(self.bank.detectors)

    def __repr__(self) -> str:
        return f"<{', '.join(self.names)} for {self.bank.target.name}, fitted on {self.origin['data']['name']}>"

    def threshold(self, name: str, fpr: float = 0.05) -> float:
        """The lowest score such that at most this share of the held-out familiar examples lies above it.

        Raises: BadInput for a share outside [0, 1), or so small that the held-out examples cannot tell.
        """
        if not 0 <= fpr < 1:
            raise bad("fpr", fpr, "a share of familiar inputs in [0, 1)")
        held = self.held[name]
        above = int(fpr * len(held) + 1e-9)
        if fpr and not above:
            mend = f"Take {1 / len(held):.3g} or more, or fit with more held-out examples."
            raise bad("fpr", fpr, f"a share that {len(held)} held-out examples can tell, or 0", mend)
        return float(held[len(held) - 1 - above])

    def score(self, x: Tensor, ids: Tensor | None = None) -> dict[str, Tensor]:
        """The score float64 [N] of inputs [N, ...] by each detector, higher = more suspicious, on the CPU."""
        return self._judged(x, ids)[0]

    def scored(self, data: Any) -> Scored:
        """Scores, predictions and labels of a whole data set, or what `load_data` reads."""
        examples = load_data(data) if isinstance(data, str) else as_dataset(data)
        if not len(examples):
            raise bad("data", f"{examples.name}, which is empty", "at least one example")
        parts = [self._part(examples, at) for at in _blocks(len(examples))]
        scores = {name: torch.cat([p.scores[name] for p in parts]) for name in self.names}
        rest = [torch.cat([getattr(p, f) for p in parts]) for f in ("prediction", "confidence", "labels", "ids")]
        return Scored(scores, *rest)

    def _judged(self, x: Tensor, ids: Tensor | None) -> tuple[dict[str, Tensor], Tensor]:
        device = _device(self.bank.target)
        found, logits = self.bank.judge(x.to(device), self.fitted, None if ids is None else ids.to(device))
        return {name: s.double().cpu() for name, s in found.items()}, logits.float().cpu()

    def _part(self, data: Dataset, at: range) -> Scored:
        batch = data.batch(at)
        ids = torch.arange(at.start, at.stop) if batch.ids is None else batch.ids
        scores, logits = self._judged(batch.x, ids)
        confidence, prediction = logits.softmax(1).max(1)
        labels = torch.full((len(ids),), -1) if batch.y is None else batch.y
        return Scored(scores, prediction, confidence, labels, ids)

    def save(self, folder: str | Path) -> Path:
        """Write `detectors.json` and `detectors.safetensors` into a folder; returns it. Raises: BadInput where it holds
        something else."""
        from safetensors.torch import save

        folder = check_folder(folder)
        tensors = {k: t.detach().cpu().contiguous() for k, t in self.fitted.items()}
        tensors |= {f"held {name}": t for name, t in self.held.items()}
        write_atomic(folder / "detectors.safetensors", save(tensors))
        detectors = [repr(d) for d in self.bank.detectors.values()]
        write_json(folder / FILE, {"kind": "detectors", "detectors": detectors, "seed": self.bank.seed, **self.origin})
        return folder


def fit_detectors(
    model: Any, data: Any, detectors: Sequence[Any] = DEFAULT, *, held: float = 0.2, seed: int = 0
) -> FittedDetectors:
    """Fit detectors of a model on examples that it is familiar with, in one pass (BATS: one more).

    >>> found = fit_detectors(model, "digits", ["msp", "knn(k=5)", "bats(energy)"])
    >>> found.score(x)["knn"] > found.threshold("knn", fpr=0.05)

    model: what `load_model` reads, a target, or a module. data: a data set, or what `load_data` reads (its training part).
    detectors: components of kind "detector" or their texts. held: the share of the examples, of each class its part, that
    nothing is fitted on; thresholds and reports come from them.

    Raises: BadInput for a model and data that do not fit, and what the detectors refuse.
    """
    from withstand.models import load_model

    target = load_model(model) if isinstance(model, str) else as_target(model)
    examples = load_data(data, split="train") if isinstance(data, str) else as_dataset(data)
    if not detectors:
        raise bad("detectors", "none", "at least one, e.g. msp", "withstand list detectors")
    if not 0 < held < 1:
        raise bad("held", held, "a share of the examples between 0 and 1")
    bank = Bank(target, [coerce("detector")(d) for d in detectors], seed)
    space = check_compatible(target, examples, labels=False)
    learned, kept = split(examples, held, seed)
    assert kept is not None
    device = _device(target)
    blocks = [learned.batch(at) for at in _blocks(len(learned))]
    labels = None if any(b.y is None for b in blocks) else torch.cat([b.y for b in blocks if b.y is not None])
    fitted = bank.fit((b.x.to(device) for b in blocks), None if labels is None else labels.to(device))
    origin = {
        "model": {"name": target.name, "fingerprint": target.fingerprint()},
        "data": {"name": learned.name, "fingerprint": learned.fingerprint(), "classes": list(learned.classes)},
        "examples": {"fitted": len(learned), "held": len(kept)},
        "shape": list(space.shape or ()),
        "versions": {package: metadata.version(package) for package in ("withstand", "torch")},
    }
    made = FittedDetectors(bank, fitted, {}, origin)
    made.held.update({name: s.sort().values for name, s in made.scored(kept).scores.items()})
    return made


def check_folder(folder: str | Path) -> Path:
    """The folder that detectors shall be written to. Raises: BadInput for a file, and where it holds something else."""
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise bad("out", f"{folder}, a file", "a folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / FILE).is_file():
        raise bad("out", f"{folder}, which holds something else", "a new folder, or that of detectors")
    return folder


def load_detectors(folder: str | Path, model: Any) -> FittedDetectors:
    """What `FittedDetectors.save` wrote, for the model that they were fitted on.

    Raises: BadInput for a folder without detectors, files that do not belong together, and another model or other weights.
    """
    from safetensors.torch import load

    from withstand.models import load_model

    folder, mend = Path(folder), "withstand detect fit writes one."
    if not (folder / FILE).is_file():
        raise bad("detectors", f"{folder}, which has no {FILE}", "a folder of detectors", mend)
    try:
        said = json.loads((folder / FILE).read_text(encoding="utf-8"))
        tensors = load((folder / "detectors.safetensors").read_bytes())
        detectors, own = [parse(text, "detector") for text in said.pop("detectors")], said["model"]["fingerprint"]
        seed = said.pop("seed")
        said.pop("kind")
    except BadInput:
        raise
    except Exception as error:  # safetensors has errors of its own
        raise bad("detectors", f"{folder} ({type(error).__name__}: {error})", "a folder of detectors", mend) from None
    target = load_model(model) if isinstance(model, str) else as_target(model)
    if target.fingerprint() != own:
        raise bad(
            "model",
            f"{target.name} (fingerprint {target.fingerprint()})",
            f"what the detectors were fitted on: {said['model']['name']} (fingerprint {own})",
            "Features of other weights mean something else. Give that model, or fit the detectors anew.",
        )
    device = _device(target)
    held = {k.removeprefix("held "): t for k, t in tensors.items() if k.startswith("held ")}
    fitted = {k: t.to(device) for k, t in tensors.items() if not k.startswith("held ")}
    bank = Bank(target, detectors, seed)
    if set(held) != set(bank.detectors):
        raise bad("detectors", f"{folder}, whose files do not belong together", "a folder of detectors", mend)
    return FittedDetectors(bank, fitted, held, said)


def evaluate(
    detectors: FittedDetectors,
    familiar: Any,
    unfamiliar: Mapping[str, Any] | None = None,
    shifted: Mapping[str, Any] | None = None,
    fpr: float = 0.05,
) -> list[dict[str, Any]]:
    """How well detectors tell what to accept from what to reject, by every notion of that side by side.

    familiar: labelled examples of the model's own distribution. unfamiliar: sets of other classes, by name. shifted: sets of
    the same classes and another distribution (corrupted, drawn, rephotographed), labelled alike. fpr: the share of
    held-out familiar examples that the threshold of "error" flags.

    Returns: rows with "notion", "sets" ("familiar", "familiar + NAME", "all": every set with equal weight), "detector",
    "accuracy" of the model on what has labels, and the figures of `Judgement`. Cells with nothing to accept or nothing to
    reject have no row. Predictions are those of the model itself, also where a detector changes its features.

    Raises: BadInput for sets without labels that need them. Warns of an unfamiliar set with classes of the model's data.
    """
    parts: dict[str, tuple[Scored, bool, bool]] = {
        "familiar": (detectors.scored(_of(familiar, "familiar", True)), False, False)
    }
    for name, given in (shifted or {}).items():
        parts[name] = detectors.scored(_of(given, name, True)), True, False
    for name, given in (unfamiliar or {}).items():
        data = _of(given, name, False)
        if common := sorted(_plain(detectors.origin["data"]["classes"]) & _plain(data.classes)):
            said = ", ".join(common[:5])
            warnings.warn(f"{name} shares classes with {detectors.origin['data']['name']}: {said}.", stacklevel=2)
        parts[name] = detectors.scored(data), False, True
    cells = {"familiar": ["familiar"]} | {f"familiar + {n}": ["familiar", n] for n in parts if n != "familiar"}
    if len(parts) > 2:
        cells["all"] = list(parts)
    rows = []
    for notion in NOTIONS:
        for cell, names in cells.items():
            chosen = [parts[n] for n in names]
            labels = np.concatenate([np.full(len(s.labels), -1) if out else s.labels.numpy() for s, _, out in chosen])
            said = np.concatenate([s.prediction.numpy() for s, _, _ in chosen])
            moved = np.concatenate([np.full(len(s.labels), shift) for s, shift, _ in chosen])
            weights = np.concatenate([np.full(len(s.labels), 1 / len(s.labels)) for s, _, _ in chosen])
            accept, used = acceptable(labels, said, moved, notion)
            if accept[used].all() or not accept[used].any():
                continue
            alike = np.ones(len(weights)) if cell != "all" else weights
            known = labels >= 0
            for name in detectors.names:
                scores = np.concatenate([s.scores[name].numpy() for s, _, _ in chosen])
                found = judge(scores[used], accept[used], detectors.threshold(name, fpr), alike[used])
                row = {"notion": notion, "sets": cell, "detector": name, **asdict(found)}
                rows.append(row | {"accuracy": float((labels == said)[known].mean())})
    return rows


def _device(target: Target) -> torch.device:
    own = None if target.module is None else next(target.module.parameters(), None)
    return torch.device("cpu") if own is None else own.device


def _blocks(n: int) -> Iterator[range]:
    return (range(i, min(i + _BLOCK, n)) for i in range(0, n, _BLOCK))


def _of(given: Any, name: str, labelled: bool) -> Dataset:
    data = load_data(given) if isinstance(given, str) else as_dataset(given)
    if labelled and not data.classes:
        raise bad(name, "a set without labels", "labelled examples", "Whether the model is right tells what to accept.")
    return data


def _plain(classes: Sequence[str]) -> set[str]:
    return {c.lower().replace("_", " ").strip() for c in classes}
