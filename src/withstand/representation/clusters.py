"""Labels that a model makes up: the clusters of its features."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from withstand.data.derived import Derived
from withstand.errors import bad
from withstand.models.feature_encoder import encoder_of
from withstand.models.state import frozen
from withstand.protocols import Batch, Dataset, Space

_BLOCK = 256


@dataclass(frozen=True, repr=False)
class Relabelled(Derived):
    """Some examples of a data set, with other labels. positions: their places there; labels; both int64 [N]."""

    positions: np.ndarray
    labels: np.ndarray

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(str(c) for c in range(int(self.labels.max()) + 1))

    @property
    def space(self) -> Space:
        return replace(self.source.space, classes=len(self.classes))

    def __len__(self) -> int:
        return len(self.positions)

    def batch(self, positions: Sequence[int]) -> Batch:
        at = np.asarray(positions)
        return replace(self.source.batch(self.positions[at].tolist()), y=torch.from_numpy(self.labels[at]))


@dataclass(frozen=True, repr=False)
class Clustered(Derived):
    """A data set whose batches carry the clusters of their examples besides, int64 [N, K], as extra["clusters"].

    clusters: int64 [N, K], of K clusterings.
    """

    clusters: np.ndarray

    @property
    def labels(self) -> Any:
        """As the source's, where it tells them."""
        return self.source.labels  # type: ignore[attr-defined]

    def batch(self, positions: Sequence[int]) -> Batch:
        made = self.source.batch(positions)
        return replace(made, extra={**made.extra, "clusters": torch.from_numpy(self.clusters[np.asarray(positions)])})


def with_clusters(model: nn.Module, data: Dataset, counts: Sequence[int], seed: int) -> Clustered:
    """The examples with their clusters by k-means of the unit vectors that the model makes before its last linear layer,
    once for each number of clusters.

    Raises: BadInput for fewer examples than clusters.
    """
    features = _features(model, data)
    return Clustered(data, np.stack([_kmeans(features, k, seed) for k in counts], axis=1))


def clustered(model: nn.Module, data: Dataset, clusters: int, seed: int) -> Relabelled:
    """The examples labelled by k-means of the unit vectors that the model makes before its last linear layer.

    Clusters with a single example are left out, and the labels are numbered without gaps.

    Raises: BadInput for fewer examples than clusters, and where fewer than two clusters are left.
    """
    made = _kmeans(_features(model, data), clusters, seed)
    names, labels, counts = np.unique(made, return_inverse=True, return_counts=True)
    held = np.flatnonzero(counts[labels] > 1)
    if len(names := np.unique(labels[held])) < 2:
        raise bad("clusters", f"{clusters}, of which {len(names)} have two examples", "fewer clusters or more examples")
    return Relabelled(data, held, np.searchsorted(names, labels[held]).astype(np.int64))


def _kmeans(features: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    from sklearn.cluster import KMeans

    if clusters > len(features):
        raise bad("clusters", clusters, f"2 to {len(features)}, the number of examples")
    made = KMeans(clusters, n_init=4, random_state=seed % 2**32).fit_predict(features)  # pyright: ignore[reportArgumentType]
    return made.astype(np.int64)


def _features(model: nn.Module, data: Dataset) -> np.ndarray:
    """Unit vectors [N, width]."""
    encoder = encoder_of(model)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    found = []
    with frozen(encoder, "eval"), torch.no_grad():
        for begin in range(0, len(data), _BLOCK):
            x = data.batch(range(begin, min(begin + _BLOCK, len(data)))).x.to(device)
            found.append(encoder(x).float().cpu())
    features = torch.cat(found).numpy()
    if not np.isfinite(features).all():
        raise bad("model", "NaN or infinite features", "finite ones, by which to cluster the examples")
    return features
