"""One score out of those of several layers: what LID and Mahalanobis share."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from withstand.errors import bad
from withstand.models.taps import vectors


class Layered:
    """score = sum_l w_l (s_l - m_l) / d_l, with m_l and d_l the mean and deviation of layer l's score on trusted examples.

    w_l = 1 / L until `teach` learns the weights, as the papers do, by a logistic regression of trusted (clean and noisy)
    against adversarial examples. Equal weights are ours: they need no adversarial example, and so know no attack.
    """

    layers: tuple[str, ...]

    needs_input = False

    @property
    def taps(self) -> tuple[str, ...]:
        """The layers that are read: those named, else what the last layer reads and what the last four blocks return."""
        return self.layers or ("penultimate", "blocks")

    def fit(self, features: Mapping[str, Tensor], y: Tensor | None = None) -> dict[str, Tensor]:
        fitted, scores = {}, []
        for name in sorted(features):
            own, found = self.fit_layer(vectors(features[name]).double(), y)
            fitted |= {f"{name}.{key}": tensor for key, tensor in own.items()}
            scores.append(found)
        table = torch.stack(scores, 1)
        fitted["mean"], fitted["deviation"] = table.mean(0), table.std(0).clamp_min(1e-12)
        return fitted | {"weights": torch.full_like(table[0], 1 / table.shape[1])}

    def score(self, features: Mapping[str, Tensor], fitted: Mapping[str, Tensor]) -> Tensor:
        return self.table(features, fitted) @ fitted["weights"]

    def table(self, features: Mapping[str, Tensor], fitted: Mapping[str, Tensor]) -> Tensor:
        """The standardised score of each layer, [N, L], layers in the order of their names."""
        columns = []
        for name in sorted(features):
            own = {k.removeprefix(f"{name}."): t for k, t in fitted.items() if k.startswith(f"{name}.")}
            columns.append(self.score_layer(vectors(features[name]).double(), own))
        return (torch.stack(columns, 1) - fitted["mean"]) / fitted["deviation"]

    def teach(
        self, trusted: Mapping[str, Tensor], adversarial: Mapping[str, Tensor], fitted: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """`fitted` with the weights of a logistic regression that tells adversarial from trusted examples, both sides
        counting the same; the examples should not be those of `fit`. Raises BadInput for an empty side."""
        from sklearn.linear_model import LogisticRegression

        sides = [self.table(f, fitted).cpu().numpy() for f in (trusted, adversarial)]
        if not all(len(side) for side in sides):
            raise bad("adversarial", "no examples of one kind", "trusted and adversarial examples to learn from")
        kinds = np.repeat([0, 1], [len(side) for side in sides])
        learned = LogisticRegression(class_weight="balanced", max_iter=1000).fit(np.concatenate(sides), kinds).coef_[0]
        return {**fitted, "weights": torch.as_tensor(learned).to(fitted["weights"])}

    def fit_layer(self, h: Tensor, y: Tensor | None) -> tuple[dict[str, Tensor], Tensor]:
        """What one layer keeps of trusted vectors [M, D], and their scores [M]."""
        raise TypeError(f"{type(self).__name__} defines no fit_layer")

    def score_layer(self, h: Tensor, own: Mapping[str, Tensor]) -> Tensor:
        """The score [N] of vectors [N, D] in one layer."""
        raise TypeError(f"{type(self).__name__} defines no score_layer")
