"""Collections that are kept, and the encoders that may ask them."""

import json

import pytest
import torch
from torch import nn

from withstand import index
from withstand.data import from_arrays
from withstand.errors import BadInput
from withstand.models import Encoder, TorchTarget

G = torch.Generator().manual_seed(0)
X = torch.rand(60, 1, 4, 4, generator=G)
DATA = from_arrays(X, torch.arange(60) % 3, classes=["a", "b", "c"])


def encoder(task="embedding", seed=0, bits=12):
    torch.manual_seed(seed)
    layers = [nn.Flatten(), nn.Linear(16, bits, bias=task != "hashing")]
    if task == "hashing":
        layers.insert(1, Centre())
    return Encoder(TorchTarget(nn.Sequential(*layers, nn.Tanh()), task, task=task))


class Centre(nn.Module):
    def forward(self, x):
        return x - 0.5


@pytest.mark.parametrize(
    ("kind", "task"), [("flat", "embedding"), ("hnsw", "embedding"), ("binary", "hashing"), ("flat", "classification")]
)
def test_a_collection_is_searched_the_same_after_it_was_kept(kind, task, tmp_path):
    if kind == "hnsw":
        pytest.importorskip("faiss")
    encode = encoder(task)
    made = index.build(encode, DATA, kind)
    made.save(tmp_path / "kept")
    for shelf in (made, index.load(tmp_path / "kept")):
        assert len(shelf) == 60
        found = shelf.query(encode, X[:5], k=4)
        vectors = encode(X)
        far = (vectors[:5, None] != vectors).sum(2).float() if kind == "binary" else 1 - vectors[:5] @ vectors.T
        want = far.sort(dim=1, stable=True)
        for row, items in enumerate(found):
            assert [i.distance for i in items] == pytest.approx(want.values[row, :4].tolist(), abs=1e-5)
            assert kind == "flat" or [i.id for i in items] == want.indices[row, :4].tolist()
            assert items[0].distance == pytest.approx(0, abs=1e-6)
            assert all(i.label == "abc"[i.id % 3] for i in items)
    assert index.load(tmp_path / "kept").origin == made.origin


def test_the_kind_follows_the_encoder():
    assert index.build(encoder(), DATA).kind == "flat"
    assert index.build(encoder("hashing"), DATA).kind == "binary"


def test_another_encoder_is_refused(tmp_path):
    folder = index.build(encoder(), DATA).save(tmp_path / "kept")
    for other in (encoder(seed=1), encoder("classification")):
        with pytest.raises(BadInput, match=r"fingerprint .* Vectors of other weights mean something else"):
            index.load(folder).query(other, X[:1])


def test_graphs_find_nearly_all_neighbours():
    pytest.importorskip("faiss")
    vectors = torch.randn(3000, 16, generator=torch.Generator().manual_seed(1))
    exact = index.Index(vectors).search(vectors[:100], 10)
    near, found = index.HNSW(vectors).search(vectors[:100], 10)
    hits = (found[:, :, None] == exact[1][:, None]).any(2).float().mean()
    assert hits > 0.98
    assert torch.allclose(near[:, 0], exact[0][:, 0], atol=1e-5)


def test_several_labels_are_named():
    data = from_arrays(X, torch.arange(60) % 3, classes=["a", "b", "c"])
    made = index.build(encoder(), data)
    many = index.Collection(
        made.kind, made.index, made.ids, torch.eye(3)[data.labels] + torch.eye(3)[0], data.classes, (), made.encoder, {}
    )
    assert many.query(encoder(), X[1:2], 1)[0][0].label == "a, b"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda f: index.build(encoder(), DATA, "binary"), "makes vectors"),
        (lambda f: index.build(encoder("hashing"), DATA, "hnsw"), "makes codes"),
        (lambda f: index.build(encoder(), DATA, "tree"), "tree"),
        (lambda f: index.load(f), "withstand index build"),
        (lambda f: index.build(encoder(), DATA).query(encoder(), X[:1], 61), "1 to 60"),
        (lambda f: index.HNSW(torch.full((2, 2), torch.nan)), "NaN"),
        (lambda f: index.HNSW(torch.eye(2)).search(torch.eye(2), 3), "1 to 2"),
        (lambda f: index.HNSW(torch.eye(2)).search(torch.eye(3), 1), "N, 2"),
        (lambda f: index.HNSW.load(f), "HNSW.save"),
    ],
)
def test_wrong_use_is_refused(make, said, tmp_path):
    if "HNSW" in said or "N, 2" in said:
        pytest.importorskip("faiss")
    with pytest.raises(BadInput, match=said):
        make(tmp_path)


def test_a_folder_of_something_else_is_left_alone_and_mixed_parts_are_noticed(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "notes.txt").write_text("mine")
    made = index.build(encoder(), DATA)
    with pytest.raises(BadInput, match="something else"):
        made.save(tmp_path / "a")
    folder = made.save(tmp_path / "b")
    made.save(folder)  # the same again is no harm
    said = json.loads((folder / "collection.json").read_text())
    (folder / "collection.json").write_text(json.dumps(said | {"fingerprint": "other"}))
    with pytest.raises(BadInput, match="do not belong together"):
        index.load(folder)
