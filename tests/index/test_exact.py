"""The index against brute force, with both back ends."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from withstand.errors import BadInput
from withstand.index import Index, exact

BACKENDS = ["torch", pytest.param("faiss", marks=pytest.mark.skipif(not exact._has_faiss(), reason="needs faiss"))]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def brute(vectors, queries, k, metric, without=None):
    """Every pair in float64, sorted by distance and then by position."""
    v, q = vectors.double().numpy(), queries.double().numpy()
    far = np.empty((len(q), len(v)))
    for i in range(len(q)):
        for j in range(len(v)):
            lengths = np.linalg.norm(q[i]) * np.linalg.norm(v[j])
            far[i, j] = np.linalg.norm(q[i] - v[j]) if metric == "l2" else 1 - (q[i] @ v[j] / lengths if lengths else 0)
            if without is not None and int(without[i]) == j:
                far[i, j] = np.inf
    order = np.argsort(np.round(far, 5), axis=1, kind="stable")[:, :k]
    return np.take_along_axis(far, order, 1), order


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("k", [1, 7, 60])
def test_the_neighbours_are_those_of_brute_force(metric, backend, k) -> None:
    vectors, queries = normal(60, 12), normal(9, 12, seed=1)
    distance, position = Index(vectors, metric, backend).search(queries, k)
    far, order = brute(vectors, queries, k, metric)
    assert position.tolist() == order.tolist()
    np.testing.assert_allclose(distance.numpy(), far, atol=2e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_the_neighbours_are_those_of_scikit_learn(metric, backend) -> None:
    vectors, queries = normal(500, 30), normal(40, 30, seed=1)
    peer = NearestNeighbors(n_neighbors=8, algorithm="brute", metric="euclidean" if metric == "l2" else metric)
    far, order = peer.fit(vectors.numpy()).kneighbors(queries.numpy())
    distance, position = Index(vectors, metric, backend).search(queries, 8)
    assert position.tolist() == order.tolist()
    np.testing.assert_allclose(distance.numpy(), far, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 6), st.integers(0, 1000), st.sampled_from(["cosine", "l2"]), st.booleans()
)  # fmt: skip
def test_ties_go_to_the_smallest_position_however_many_there_are(m, d, seed, metric, out) -> None:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda n: torch.randint(-1, 2, (n, d), generator=generator).float()  # noqa: E731
    vectors, queries = draw(m), draw(5)
    if metric == "cosine":  # directions along an axis, whose cosines have no rounding; some are zero
        axes = torch.eye(d)
        vectors, queries = vectors * axes[torch.arange(m) % d], queries * axes[torch.arange(5) % d]
    without = torch.randint(-1, m, (5,), generator=generator) if out and m > 1 else None
    k = 1 + seed % (m - (without is not None))
    _, order = brute(vectors, queries, k, metric, without)
    for backend in ("torch", "faiss") if exact._has_faiss() else ("torch",):
        assert Index(vectors, metric, backend).search(queries, k, without)[1].tolist() == order.tolist()


@pytest.mark.skipif(not exact._has_faiss(), reason="needs faiss")
@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_both_back_ends_give_the_same_bits(metric) -> None:
    vectors, queries = normal(3000, 64), normal(100, 64, seed=1)
    a = Index(vectors, metric, "torch").search(queries, 20)
    b = Index(vectors, metric, "faiss").search(queries, 20)
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1], b[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_vector_is_its_own_nearest_unless_it_is_left_out(backend) -> None:
    vectors, everyone = normal(30, 5), torch.arange(30)
    index = Index(vectors, "l2", backend)
    distance, position = index.search(vectors, 3)
    assert torch.equal(position[:, 0], everyone)
    assert (distance[:, 0] == 0).all()
    apart = index.search(vectors, 2, without=everyone)[1]
    assert torch.equal(apart, position[:, 1:])
    assert torch.equal(index.search(vectors, 3, without=torch.full((30,), -1))[1], position)
    assert index.search(vectors, 29, without=everyone)[1].shape == (30, 29)


def test_blocks_change_nothing(monkeypatch) -> None:
    vectors, queries, without = normal(50, 6), normal(23, 6, seed=1), torch.arange(23)
    whole = Index(vectors, "cosine", "torch").search(queries, 5, without)
    monkeypatch.setattr(exact, "_PAIRS", 200)
    monkeypatch.setattr(exact, "_VALUES", 100)
    cut = Index(vectors, "cosine", "torch").search(queries, 5, without)
    assert torch.equal(whole[0], cut[0])
    assert torch.equal(whole[1], cut[1])
    assert Index(vectors).search(queries[:0], 5)[1].shape == (0, 5)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_half_precision_around_it_changes_nothing(metric) -> None:
    vectors, queries = 1 + normal(300, 16) / 8, 1 + normal(20, 16, seed=1) / 8  # closer than half precision can tell
    index = Index(vectors, metric, "torch")
    distance, position = index.search(queries, 10)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = index.search(queries, 10)
    assert torch.equal(inside[0], distance)
    assert torch.equal(inside[1], position)


def test_cosine_sees_directions_only_and_zero_vectors_are_at_one() -> None:
    vectors, queries = normal(20, 4), normal(5, 4, seed=1)
    index = Index(vectors * torch.arange(1, 21)[:, None])
    assert torch.equal(index.search(3 * queries, 4)[1], Index(vectors).search(queries, 4)[1])
    distance, _ = index.search(torch.zeros(1, 4), 20)
    assert torch.equal(distance, torch.ones(1, 20))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_copy_and_new_vectors_are_searched_as_they_are(backend) -> None:
    index = Index(normal(20, 4), "l2", backend)
    index.search(normal(1, 4), 1)
    copied = copy.deepcopy(index)
    with torch.no_grad():
        index.vectors.copy_(index.vectors.flip(0))
    assert int(index.search(copied.vectors[:1], 1)[1]) == 19
    assert int(copied.search(copied.vectors[:1], 1)[1]) == 0


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_saved_and_loaded_it_is_the_same(tmp_path, metric) -> None:
    index = Index(normal(20, 4), metric)
    index.save(tmp_path)
    back = Index.load(tmp_path)
    assert torch.equal(back.vectors, index.vectors)
    assert back.metric == metric
    assert back.fingerprint() == index.fingerprint()
    other = Index(normal(20, 4, seed=1), metric)
    assert other.fingerprint() != index.fingerprint()
    assert Index(index.vectors, "l2").fingerprint() != Index(index.vectors, "cosine").fingerprint()
    other.save(tmp_path / "other")
    (tmp_path / "index.safetensors").write_bytes((tmp_path / "other" / "index.safetensors").read_bytes())
    with pytest.raises(BadInput, match="not those of index"):
        Index.load(tmp_path)
    with pytest.raises(BadInput, match=r"a folder that Index\.save wrote"):
        Index.load(tmp_path / "nowhere")


def test_what_is_no_index_or_query_is_refused() -> None:
    index = Index(normal(5, 3))
    broken = normal(5, 3)
    broken[2, 1] = float("nan")
    for make, said in [
        (lambda: Index(torch.zeros(0, 3)), "empty"),
        (lambda: Index(torch.zeros(3)), r"\[M, D\]"),
        (lambda: Index(torch.zeros(3, 2, dtype=torch.int64)), "float tensor"),
        (lambda: Index(broken), "NaN"),
        (lambda: Index(normal(5, 3), "dot"), "metric"),  # type: ignore[arg-type]
        (lambda: Index(normal(5, 3), backend="annoy"), "backend"),  # type: ignore[arg-type]
        (lambda: index.search(normal(2, 3), 6), "k: got 6; allowed: 1 to 5"),
        (lambda: index.search(normal(2, 3), 5, torch.tensor([0, 1])), "1 to 4"),
        (lambda: index.search(normal(2, 3), 0), "k: got 0"),
        (lambda: index.search(normal(2, 4), 1), r"\[N, 3\]"),
        (lambda: index.search(broken, 1), "NaN"),
        (lambda: index.search(normal(2, 3), 1, torch.tensor([0, 5])), "without"),
        (lambda: index.search(normal(2, 3), 1, torch.tensor([0])), "without"),
    ]:
        with pytest.raises(BadInput, match=said):
            make()
