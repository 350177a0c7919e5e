"""Probes: how well a fresh linear classifier tells adversarial features from natural ones."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from withstand.attacks import PGD
from withstand.models.taps import penultimate, see, vectors
from withstand.random import derive
from withstand.threats import Linf

FOLDS = 2


def domain_probe(eps: float, seed: int, by_class: bool = False) -> Callable[..., list[dict[str, Any]]]:
    """A measure for `measure_arms`: "probe_accuracy", for each test image the share of its two feature vectors (natural,
    adversarial) whose domain a logistic regression gets right that was fitted on the other half of the images.

    by_class: one regression for each class, which can use no difference between classes.
    """

    def measure(name: str, hardened: Any, x: Tensor, y: Tensor) -> list[dict[str, Any]]:
        model: nn.Module = hardened.module.eval()
        moved = PGD(Linf(eps), steps=10)(model, x, y, seed=derive(seed, "probe"))
        natural, adversarial = (_features(model, part) for part in (x, moved))
        right = np.zeros(len(x))
        for fold in range(FOLDS):
            held = np.arange(len(x)) % FOLDS == fold
            for group in [y.cpu().numpy() == c for c in y.unique().tolist()] if by_class else [np.ones(len(x), bool)]:
                right[held & group] = _told(natural, adversarial, ~held & group, held & group)
        return [{"arm": name, "metric": "probe_accuracy", "examples": right.tolist()}]

    return measure


def _told(natural: np.ndarray, adversarial: np.ndarray, train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Share of the two domains of each test image that is told right, [test images]; 1/2 with nothing to learn from."""
    if not train.any() or not test.any():
        return np.full(int(test.sum()), 0.5)
    fitted = np.concatenate([natural[train], adversarial[train]])
    domain = np.repeat([0, 1], train.sum())
    scale = StandardScaler().fit(fitted)
    probe = LogisticRegression(C=1.0, max_iter=500).fit(scale.transform(fitted), domain)
    hits = [probe.predict(scale.transform(part[test])) == label for label, part in enumerate((natural, adversarial))]
    return np.mean(hits, axis=0)


def _features(model: nn.Module, x: Tensor) -> np.ndarray:
    with torch.no_grad():
        tap = penultimate(model, x[:2])
        return np.concatenate([vectors(see(model, part, tap)[1]).cpu().numpy() for part in x.split(500)])
