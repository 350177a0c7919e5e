"""Linear classifiers on frozen encoders, through which an audit attacks them."""

import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from withstand.errors import bad
from withstand.models.feature_encoder import Probe, encoder_of
from withstand.protocols import Batch, Dataset, Space
from withstand.random import Rows
from withstand.registry import component
from withstand.representation.encoders import labels_of
from withstand.training.recipe import MakeOptimizer, Optimizers, Recipe, Step, System, with_grad

_BLOCK = 256


@component("recipe", "linear_probe", systems=("csl_robustness",))
class LinearProbe(Recipe):
    """A linear classifier on the standardised features of a frozen encoder: the usual judge of self-supervision.

    min mean CE(W ((f(x) - mean) / std) + b, y) over W and b; f stays in eval mode, and as it is.

    The model given is an encoder, an embedding model (whose features before its head are read) or a classifier (which loses
    its last layer). What is shipped is a classifier like any other: `withstand audit` attacks it through the head, and
    other recipes fine-tune all of it. `withstand.representation.probe.linear_probe` solves for the head at once instead.
    """

    task: ClassVar[str] = "classification"
    wraps: ClassVar[bool] = True
    labelled: ClassVar[bool] = False  # the labels need not be those of the model
    defaults: ClassVar[Mapping[str, Any]] = {"optimizer": "adam(1e-2)", "schedule": "cosine", "epochs": 30}

    def deploy(self, model: Any, space: Space) -> nn.Module:
        if space.classes is None or space.classes < 2:
            raise bad("classes", space.classes, "two or more")
        return Probe(encoder_of(model), space.classes)

    def setup(self, model: nn.Module, data: Dataset, rows: Rows) -> nn.Module:
        labels_of(data, "linear_probe")
        probe = Probe(encoder_of(model), len(data.classes))
        probe.standardise(features_of(probe, data)[0])
        return System(probe)

    def optimizers(self, system: Any, main: MakeOptimizer) -> Optimizers:
        system.model.encoder.requires_grad_(False)
        return {"main": main(with_grad(system).values())}

    def loss(self, system: Any, batch: Batch, step: Step) -> Tensor:
        assert batch.y is not None
        with torch.no_grad():
            h = system.model.encoder.eval().features(batch.x)
        return step.cross_entropy(system.model.read(h), batch.y)

    def finish(self, system: Any) -> nn.Module:
        system.model.encoder.requires_grad_(True)
        return system.model


def linear_probe(encoder: nn.Module, data: Dataset, strength: float = 1.0) -> Probe:
    """The linear classifier on standardised features that minimises the sum of the cross-entropies of all examples plus
    ||W||^2 / (2 strength), as scikit-learn's logistic regression does; a copy of the encoder stays frozen in eval mode.

    encoder: as of the recipe `linear_probe`, on any device. strength: a large one gives steep logits, whose gradients an
    attack loses in the softmax.

    Raises: BadInput for examples without labels or of a single class.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    labels_of(data, "a linear probe")
    probe = Probe(encoder_of(encoder), len(data.classes)).to(next(encoder.parameters()).device)
    features, y = features_of(probe, data)
    probe.standardise(features)
    seen = y.unique()
    if len(seen) < 2:
        raise bad("data", f"examples of {len(seen)} class", "of two or more")
    scaled = ((features - probe.mean) / probe.std).double().cpu().numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = LogisticRegression(C=strength, max_iter=2000).fit(scaled, y.cpu().numpy())
    w, b = torch.as_tensor(fitted.coef_), torch.as_tensor(fitted.intercept_)
    if len(seen) == 2:  # scikit-learn then keeps the difference of the two only
        w, b = torch.cat([-w / 2, w / 2]), torch.cat([-b / 2, b / 2])
    with torch.no_grad():
        probe.head.weight.zero_()
        probe.head.bias.fill_(-1e4)  # classes that do not occur are never named
        probe.head.weight[seen] = w.to(probe.head.weight)
        probe.head.bias[seen] = b.to(probe.head.bias)
    return probe.eval()


def features_of(probe: Probe, data: Dataset) -> tuple[Tensor, Tensor]:
    """Features [N, width] of all examples, and their labels, by the encoder in eval mode."""
    device = next(probe.parameters()).device
    probe.encoder.eval()
    features, labels = [], []
    with torch.no_grad():
        for begin in range(0, len(data), _BLOCK):
            batch = data.batch(range(begin, min(begin + _BLOCK, len(data)))).to(device)
            assert batch.y is not None
            features.append(probe.encoder.features(batch.x).float())
            labels.append(batch.y)
    return torch.cat(features), torch.cat(labels)
