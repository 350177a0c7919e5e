"""The index of codes, against counted bits."""

import importlib.util
import pickle

import numpy as np
import pytest
import torch

from withstand.errors import BadInput
from withstand.index import CodeIndex, pack, unpack


def codes(seed, n, bits):
    g = torch.Generator().manual_seed(seed)
    return torch.where(torch.rand(n, bits, generator=g) < 0.5, -1, 1)


@pytest.fixture(params=["faiss", "counted"])
def backend(request, monkeypatch):
    if request.param == "counted":
        find = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "faiss" else find(name))
    else:
        pytest.importorskip("faiss")


@pytest.mark.parametrize(("bits", "n", "k"), [(5, 50, 7), (8, 300, 300), (12, 300, 1), (64, 90, 20), (300, 40, 9)])
@pytest.mark.usefixtures("backend")
def test_neighbours_are_those_of_counted_bits_and_the_first_among_equals(bits, n, k):
    db, q = codes(0, n, bits), codes(1, 20, bits)
    far = (q[:, None] != db[None]).sum(2)
    want = far.sort(dim=1, stable=True)
    distance, position = CodeIndex(db).search(q, k)
    assert torch.equal(distance, want.values[:, :k])
    assert torch.equal(position, want.indices[:, :k])


@pytest.mark.usefixtures("backend")
def test_the_first_among_equals_in_a_database_of_several_blocks():
    db, q = codes(0, 70_000, 6), codes(1, 40, 6)
    far = (q[:, None] != db[None]).sum(2)
    assert torch.equal(CodeIndex(db).search(q, 25)[1], far.sort(dim=1, stable=True).indices[:, :25])


@pytest.mark.usefixtures("backend")
def test_one_that_does_not_count_is_left_out():
    db = codes(2, 60, 4)
    far = (db[:, None] != db[None]).sum(2)
    far[torch.arange(60), torch.arange(60)] = 99
    far[7, 7] = 0
    without = torch.arange(60)
    without[7] = -1
    assert torch.equal(CodeIndex(db).search(db, 5, without)[1], far.sort(dim=1, stable=True).indices[:, :5])


@pytest.mark.parametrize("bits", [3, 8, 70, 260])
def test_all_distances_come_block_by_block(bits, monkeypatch):
    monkeypatch.setattr("withstand.index.codes._PAIRS", 100)
    db, q = codes(0, 40, bits), codes(1, 11, bits)
    parts = list(CodeIndex(db).distances(q))
    assert [start for start, _ in parts] == list(range(0, 11, 2))
    assert np.array_equal(np.concatenate([d for _, d in parts]), (q[:, None] != db[None]).sum(2).numpy())


def test_packed_codes_come_back_and_are_the_same_index(tmp_path):
    db = codes(3, 20, 13)
    assert pack(db).shape == (20, 2)
    assert torch.equal(unpack(pack(db), 13), db.float())
    index = CodeIndex(db)
    index.search(db, 2)
    assert CodeIndex(pack(db), 13).fingerprint() == CodeIndex(db > 0).fingerprint() == index.fingerprint()
    assert CodeIndex(-db).fingerprint() != index.fingerprint()
    index.save(tmp_path)
    for other in (CodeIndex.load(tmp_path), pickle.loads(pickle.dumps(index))):
        assert other.fingerprint() == index.fingerprint()
        assert torch.equal(other.search(db, 4)[1], index.search(db, 4)[1])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: CodeIndex(torch.tensor([[0.5, 1.0]])), "a value 0.5"),
        (lambda: CodeIndex(torch.tensor([[float("nan"), 1.0]])), "a value nan"),
        (lambda: CodeIndex(torch.ones(4)), "shape"),
        (lambda: CodeIndex(torch.ones(0, 4)), "empty"),
        (lambda: CodeIndex(torch.ones(2, 3, dtype=torch.uint8), bits=9), "for 9 bits"),
        (lambda: CodeIndex(torch.full((2, 1), 255, dtype=torch.uint8), bits=7), "ones beyond bit 7"),
        (lambda: CodeIndex(torch.ones(3, 4)).search(torch.ones(1, 4), 4), "1 to 3"),
        (lambda: CodeIndex(torch.ones(3, 4)).search(torch.ones(1, 4), 3, torch.zeros(1).long()), "1 to 2"),
        (lambda: CodeIndex(torch.ones(3, 4)).search(torch.ones(1, 5), 1), "codes of 5 bits"),
        (lambda: CodeIndex.load("/nowhere"), "CodeIndex.save"),
    ],
)
def test_what_is_no_code_is_refused(make, said):
    with pytest.raises(BadInput, match=said):
        make()


@pytest.mark.usefixtures("backend")
def test_long_codes_can_differ_in_every_bit():
    db = torch.stack([torch.ones(260), -torch.ones(260)])
    assert next(CodeIndex(db).distances(db))[1].tolist() == [[0, 260], [260, 0]]
    assert CodeIndex(db).search(db, 2)[0].tolist() == [[0, 260], [0, 260]]
