"""How well embeddings and codes retrieve: by neighbours, by ranked lists, by balls, and how densely they lie.

Relevant is what has the same label: int64 [N], or multi-hot [N, C] of zeros and ones (relevant = they share a label).
Every measure is taken for each query first, so that callers can put intervals on means. Nothing holds the full matrix of
distances. Among equal distances the item that stands first in the database comes first, unless told otherwise.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from withstand.errors import bad
from withstand.index import CodeIndex, Index
from withstand.index.exact import Metric
from withstand.representation.density import density
from withstand.representation.labels import Labels, lonely

Lone = Literal["refuse", "skip", "zero"]
"""What becomes of a query to which nothing is relevant: an error, left out of the means, or zero in all measures."""
Ties = Literal["stable", "average"]
_VALUES = 1 << 23  # neighbours held at once


def retrieval_metrics(
    embeddings: Tensor,
    labels: Tensor,
    database: Tensor | None = None,
    database_labels: Tensor | None = None,
    *,
    ks: Sequence[int] = (1, 2, 4, 8),
    at_r: bool = True,
    metric: Metric = "cosine",
    lone: Lone = "refuse",
    nmi: bool = False,
    seed: int = 0,
) -> dict[str, float]:
    """The means of `retrieval_scores`, and what `density` says of the embeddings.

    >>> e = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
    >>> found = retrieval_metrics(e, torch.tensor([0, 0, 1, 1]), ks=(1,))
    >>> found["recall_at_1"], found["map_at_r"]
    (1.0, 1.0)

    nmi: with `normalized_mutual_information` by k-means of this seed. Density and NMI are of the database where there is
    one, and need one label for each item. The rest: see `retrieval_scores`.
    """
    scores = retrieval_scores(embeddings, labels, database, database_labels, ks=ks, at_r=at_r, metric=metric, lone=lone)
    items, said = (embeddings, labels) if database is None else (database, database_labels)
    assert said is not None
    found = means(scores)
    if said.dim() == 1:
        found |= density(items, said)
        if nmi:
            found["nmi"] = normalized_mutual_information(items, said, seed)
    return found


def retrieval_scores(
    embeddings: Tensor,
    labels: Tensor,
    database: Tensor | Index | None = None,
    database_labels: Tensor | None = None,
    *,
    ks: Sequence[int] = (1, 2, 4, 8),
    at_r: bool = True,
    metric: Metric = "cosine",
    lone: Lone = "refuse",
    without: Tensor | None = None,
) -> dict[str, Tensor]:
    """Measures of the ranked lists of embeddings, float64 [N] each, one value for each query.

    recall_at_K: 1 where one of the K nearest is relevant, else 0 (as metric learning uses the word). map_at_K: average
    precision of the K nearest, sum over relevant positions r <= K of (relevant among the first r) / r, divided by the
    number of relevant ones among those K (0 where there is none). With R items relevant to the query: r_precision: share
    of relevant ones among the R nearest; map_at_r: sum over relevant positions r <= R of (relevant among the first r) / r,
    divided by R.

    embeddings: float [N, D]; labels: of the queries. database: float [M, D] or an `Index` of them, with its labels; None:
    the queries themselves, each without itself (leave one out). at_r: whether to take the measures at R, for which the R
    nearest are searched. lone: see `Lone`; left-out queries are NaN. without: int64 [N], a position of the database for
    each query that does not count, or -1.

    References: Musgrave, Belongie, Lim, "A Metric Learning Reality Check", 2020, arXiv 2003.08505 (R-precision, MAP@R).
    Roth et al., "Revisiting Training Strategies and Generalization Performance in Deep Metric Learning", 2020, arXiv
    2002.08473 (recall).

    Raises: BadInput for K beyond the items, embeddings that are NaN or of another dimension, no items, labels of another
    length or form, and (lone="refuse") a query to which nothing is relevant.
    """
    if database is None:
        database, database_labels = embeddings, labels
        without = torch.arange(len(embeddings))
    asked, mine = Labels.pair(labels, len(embeddings), database_labels, len(database))
    without = None if without is None else without.cpu()
    index = database if isinstance(database, Index) else Index(database, metric)
    relevant = asked.relevant_counts(mine, without)
    lonely(relevant, lone, asked)
    most = len(index) - (without is not None)
    ks = sorted(set(ks))
    if ks and not 1 <= ks[0] <= ks[-1] <= most:
        raise bad("ks", ks, f"numbers from 1 to {most}, the items that a query is compared with", "Give smaller ones.")
    found: dict[str, list[Tensor]] = {}
    # queries with as many relevant items go together: a large class does not make the lists of small ones longer
    order = relevant.argsort(stable=True) if at_r else torch.arange(len(embeddings))
    start = 0
    while start < len(order):
        stop = start + max(1, _VALUES // max([1, *ks, int(relevant[order[start]]) if at_r else 1]))
        rows = order[start:stop]
        if at_r:  # a block reaches only as far as lists of about the same length
            length = max(1, int(relevant[rows[0]]))
            rows = rows[: max(1, int((relevant[rows] <= max(2 * length, *ks, 1)).sum()))]
        r = relevant[rows]
        depth = max([*ks, int(r.max()) if at_r else 0])
        own = None if without is None else without[rows]
        position = index.search(embeddings[rows], depth, own)[1].cpu() if depth else torch.zeros(len(rows), 0).long()
        for name, values in _of_lists(asked.relevant(rows, mine, position), r if at_r else None, ks).items():
            found.setdefault(name, []).append(values)
        start += len(rows)
    back = order.argsort()
    scores = {name: torch.cat(parts)[back] for name, parts in found.items()}
    return _with_lone(scores, relevant, lone)


def _of_lists(hits: Tensor, r: Tensor | None, ks: Sequence[int]) -> dict[str, Tensor]:
    """The measures of lists. hits: bool [N, k], whether the item there is relevant."""
    place = torch.arange(1, hits.shape[1] + 1, dtype=torch.float64)
    gain = hits.cumsum(1) / place * hits  # the precision at relevant positions
    found: dict[str, Tensor] = {}
    for k in ks:
        found[f"recall_at_{k}"] = hits[:, :k].any(1).double()
        found[f"map_at_{k}"] = gain[:, :k].sum(1) / hits[:, :k].sum(1).clamp_min(1)
    if r is not None:
        within = place <= r[:, None]
        found["r_precision"] = (hits & within).sum(1) / r.clamp_min(1).double()
        found["map_at_r"] = (gain * within).sum(1) / r.clamp_min(1)
    return found


# Codes ---------------------------------------------------------------------------------------------------------------


def mean_average_precision(
    codes: Tensor,
    labels: Tensor,
    database: Tensor | CodeIndex,
    database_labels: Tensor,
    *,
    topk: int | None = None,
    ties: Ties = "stable",
    lone: Lone = "zero",
) -> float:
    """MAP of codes by Hamming distance; the mean of "map" (or "map_at_K") of `code_scores`.

    With the labels that an attack aims at instead of the queries' own it is t-MAP, which a targeted attack increases.
    lone="zero" is the field's convention. Raises: as `code_scores`.
    """
    name = "map" if topk is None else f"map_at_{topk}"
    ks = () if topk is None else (topk,)
    return means(code_scores(codes, labels, database, database_labels, ks=ks, ties=ties, radius=None, lone=lone))[name]


def code_scores(
    codes: Tensor,
    labels: Tensor,
    database: Tensor | CodeIndex | None = None,
    database_labels: Tensor | None = None,
    *,
    ks: Sequence[int] = (),
    ties: Ties = "stable",
    radius: int | None = 2,
    lone: Lone = "refuse",
    without: Tensor | None = None,
) -> dict[str, Tensor]:
    """Measures of lookups of binary codes by Hamming distance, float64 [N] each, one value for each query.

    map: average precision of the whole ranked database, mean over relevant positions r of (relevant among the first r) / r.
    map_at_K, recall_at_K: as in `retrieval_scores`. precision_at_radius_T, recall_at_radius_T: of the items at most T bits
    away; the precision of an empty ball is 0.

    Many codes are equally far. ties: "stable", those in the order of the database; "average", the expected average
    precision over all orders of those (for the whole list only): a bucket of n items, r of them relevant, after N0 items
    with R0 relevant adds sum_{i=1..n} r/n (R0 + 1 + (i - 1)(r - 1)/(n - 1)) / (N0 + i).

    codes: [N, K] of -1 and +1, or bool; any K. database, labels, lone, without: as in `retrieval_scores`.

    Reference: McSherry, Najork, "Computing Information Retrieval Performance Measures Efficiently in the Presence of Tied
    Scores", ECIR 2008 (average).

    Raises: BadInput as `retrieval_scores`, for codes that are none or of another length, and for ks with ties="average".
    """
    if ties not in ("stable", "average"):
        raise bad("ties", repr(ties), '"stable" or "average"')
    if ties == "average" and ks:
        raise bad("ks", list(ks), 'none with ties="average"', "The average over orders is taken of whole lists.")
    if database is None:
        database, database_labels, without = codes, labels, torch.arange(len(codes))
    index = database if isinstance(database, CodeIndex) else CodeIndex(database)
    if radius is not None and not 0 <= radius <= index.bits:
        raise bad("radius", radius, f"0 to {index.bits}, the bits of a code, or None")
    asked, mine = Labels.pair(labels, len(codes), database_labels, len(index))
    without = None if without is None else without.cpu()
    relevant = asked.relevant_counts(mine, without)
    lonely(relevant, lone, asked)
    most = len(index) - (without is not None)
    if any(not 1 <= k <= most for k in ks):
        raise bad("ks", list(ks), f"numbers from 1 to {most}, the items that a query is compared with")
    parts: dict[str, list[np.ndarray]] = {}
    for start, distance in index.distances(codes):
        rows = torch.arange(start, start + len(distance))
        hits = asked.all_relevant(rows, mine)
        if without is not None:  # what does not count is farther than everything, and relevant to nobody
            own = without[rows].numpy()
            at = np.flatnonzero(own >= 0)
            distance = distance.astype(np.uint16)
            distance[at, own[at]], hits[at, own[at]] = index.bits + 1, False
        r = relevant[rows].numpy()
        total, good = _histograms(distance, hits, index.bits)
        block = _by_order(distance, hits, r, ks) if ties == "stable" else {"map": _expected(total, good, r)}
        if radius is not None:
            seen, right = total[:, : radius + 1].sum(1), good[:, : radius + 1].sum(1)
            block[f"precision_at_radius_{radius}"] = right / np.maximum(seen, 1)
            block[f"recall_at_radius_{radius}"] = right / np.maximum(r, 1)
        for name, values in block.items():
            parts.setdefault(name, []).append(values)
    scores = {name: torch.from_numpy(np.concatenate(values)) for name, values in parts.items()}
    return _with_lone(scores, relevant, lone)


def distinct_codes(codes: Tensor | CodeIndex) -> int:
    """How many different codes there are: 1 says that a hashing model has collapsed."""
    index = codes if isinstance(codes, CodeIndex) else CodeIndex(codes)
    return len(np.unique(index.packed, axis=0))


def _histograms(distance: np.ndarray, hits: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """How many items, and how many relevant ones, stand at each distance: int64 [n, bits + 1] each."""
    width = bits + 2  # the last: what does not count
    where = distance + np.arange(len(distance))[:, None] * width
    total = np.bincount(where.ravel(), minlength=len(distance) * width).reshape(-1, width)
    good = np.bincount(where[hits], minlength=len(distance) * width).reshape(-1, width)
    return total[:, :-1], good[:, :-1]


def _by_order(distance: np.ndarray, hits: np.ndarray, r: np.ndarray, ks: Sequence[int]) -> dict[str, np.ndarray]:
    order = np.argsort(distance, axis=1, kind="stable")  # what does not count stands last
    listed = np.take_along_axis(hits, order, 1)
    gain = listed.cumsum(1) / np.arange(1, distance.shape[1] + 1) * listed
    found = {"map": gain.sum(1) / np.maximum(r, 1)}
    for k in ks:
        found[f"recall_at_{k}"] = listed[:, :k].any(1).astype(float)
        found[f"map_at_{k}"] = gain[:, :k].sum(1) / np.maximum(listed[:, :k].sum(1), 1)
    return found


def _expected(total: np.ndarray, good: np.ndarray, r: np.ndarray) -> np.ndarray:
    """The expected average precision over all orders within each distance, [n]."""
    before, found = total.cumsum(1) - total, good.cumsum(1) - good
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, int(total.sum(1).max()) + 1))])
    slope = np.where(total > 1, (good - 1) / np.maximum(total - 1, 1), 0.0)
    spread = harmonic[before + total] - harmonic[before]
    each = total * slope + (found + 1 - slope - slope * before) * spread
    return (good / np.maximum(total, 1) * each).sum(1) / np.maximum(r, 1)


# Means ---------------------------------------------------------------------------------------------------------------


def means(scores: Mapping[str, Tensor]) -> dict[str, float]:
    """The mean of each measure over the queries that count. Raises: BadInput where none does."""
    if any(bool(values.isnan().all()) for values in scores.values()):
        raise bad("labels", "nothing relevant to any query", "a query with an item of its label in the database")
    return {name: float(values.nanmean()) for name, values in scores.items()}


def normalized_mutual_information(embeddings: Tensor, labels: Tensor, seed: int = 0) -> float:
    """2 I(A; B) / (H(A) + H(B)) between labels and k-means clusters, as many as there are classes.

    Vectors are brought to length 1 first. All equal: one cluster, 0. Labels: int [N].

    Reference: Manning, Raghavan, Schütze, "Introduction to Information Retrieval", 2008, section 16.3.
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import normalized_mutual_info_score

    from withstand.random import derive
    from withstand.representation.density import unit

    said, _ = Labels.pair(labels, len(embeddings), labels, len(embeddings))
    if said.many:
        raise bad("labels", "several for an item", "one label for each item, int [N]", "Clusters hold an item once.")
    points = unit(embeddings).cpu().numpy()
    clusters = min(len(labels.unique()), len(np.unique(points, axis=0)))
    draw = derive(seed, "k-means") % (1 << 32)
    found = KMeans(clusters, random_state=draw).fit_predict(points)
    return float(normalized_mutual_info_score(labels.cpu().numpy(), found))


def _with_lone(scores: dict[str, Tensor], relevant: Tensor, lone: Lone) -> dict[str, Tensor]:
    none = relevant == 0
    return {name: values.masked_fill(none, torch.nan if lone == "skip" else 0.0) for name, values in scores.items()}
