"""Retrieval engines as targets: what they answer, what is refused, what a log is good for."""

import numpy as np
import pytest
import torch
from torch import nn

import withstand as ws
from tests.models.search_engine import Engine, png
from withstand.errors import BadInput, Unavailable
from withstand.models import HttpRetriever, ImageIndex, RetrievalTarget
from withstand.protocols import Target

gallery = ws.Rows.count(0, 40).uniform((1, 6, 6), "gallery")
x = ws.Rows.count(1, 7).uniform((1, 6, 6), "queries")


def nearest(images, k=5):
    a, b = torch.as_tensor(images).flatten(1), gallery.flatten(1)
    return torch.cdist(a.float(), b).argsort(dim=1)[:, :k].tolist()


def failing(after, then=nearest):
    """Answers so many questions, then fails."""
    left = [after]

    def answer(images):
        left[0] -= 1
        if left[0] < 0:
            raise ConnectionError("the engine is gone")
        return then(images)

    return answer


@pytest.fixture
def engine(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    made = Engine(lambda images: {"ids": nearest(images)}, gallery)
    yield made
    made.server.shutdown()
    made.server.server_close()


# What comes back ---------------------------------------------------------------------------------------------------


def test_a_function_becomes_a_target():
    target: Target = RetrievalTarget(nearest, k=5)
    assert (target.task, target.access, target.module) == ("retrieval", {"top_k"}, None)
    assert target(x) == nearest(x)
    assert target.name == "nearest"


@pytest.mark.parametrize("form", [torch.tensor, np.array, lambda v: [tuple(row) for row in v], lambda v: v])
def test_lists_may_come_as_tensors_arrays_or_tuples(form):
    found = RetrievalTarget(lambda images: form(nearest(images)))(x)
    assert found == nearest(x)
    assert all(type(item) is int for row in found for item in row)


def test_ids_may_be_texts_and_lists_are_cut_to_k():
    target = RetrievalTarget(lambda images: [[f"shoe/{i}" for i in row] for row in nearest(images, 9)], k=3)
    assert target(x) == [[f"shoe/{i}" for i in row[:3]] for row in nearest(x)]


def test_without_k_the_first_list_says_it():
    target = RetrievalTarget(nearest)
    assert target.k is None
    target(x)
    assert target.k == 5


def test_questions_are_counted_and_come_in_batches():
    sizes = []
    target = RetrievalTarget(lambda images: sizes.append(len(images)) or nearest(images), batch=3)
    with ws.count_passes(target) as passes:
        target(x)
        target(x[:2])
    assert sizes == [3, 3, 1, 2]
    assert (passes.forward_calls, passes.forward_examples, passes.backward_calls) == (2, 9, 0)
    assert target.sent == 9


# What is refused ---------------------------------------------------------------------------------------------------

GARBAGE = {
    "an empty list": ([[]] * 7, "an empty list for image 0"),
    "one empty list": ([[1, 2]] * 6 + [[]], "an empty list for image 6"),
    "duplicates": ([[1, 2, 1]] * 7, "the id 1 twice in one list; allowed: each id once"),
    "fewer than k": ([[1, 2, 3]] * 6 + [[1, 2]], "2 ids for image 6; allowed: 3; pass k=2 if it has no more"),
    "too few lists": ([[1, 2]] * 6, "6 lists for 7 images"),
    "no lists": ({"ids": 3}, "a dict for 7 images"),
    "numbers": ([1, 2, 3, 4, 5, 6, 7], "1 for image 0"),
    "floats": ([[0.5, 1.5]] * 7, "the id 0.5"),
    "nothing": ([[None]] * 7, "the id None"),
    "truth values": ([[True, False]] * 7, "the id True"),
}


@pytest.mark.parametrize(("answer", "said"), GARBAGE.values(), ids=GARBAGE)
def test_what_is_no_ranking_is_refused(answer, said):
    with pytest.raises(Unavailable, match=rf"odd returned .*{said}"):
        RetrievalTarget(lambda images: answer, name="odd")(x)


def test_fewer_than_the_declared_k_is_refused():
    with pytest.raises(Unavailable, match="5 ids for image 0; allowed: 8; pass k=5"):
        RetrievalTarget(nearest, k=8)(x)


@pytest.mark.parametrize(
    ("images", "said"),
    [(x * 2, "values in"), (x[0], r"float32 \[1, 6, 6\]"), (x.long(), "int64"), (x.numpy(), "ndarray"), (-x, "values")],
)
def test_images_out_of_range_are_refused_before_the_question(images, said):
    target = RetrievalTarget(nearest)
    with pytest.raises(BadInput, match=rf"x: got .*{said}"):
        target(images)
    assert target.sent == 0


def test_images_of_another_shape_are_refused_where_the_shape_is_known():
    with pytest.raises(BadInput, match=r"x: got images \[1, 6, 6\]; allowed: images \[3, 6, 6\], as nearest takes"):
        RetrievalTarget(nearest, shape=(3, 6, 6))(x)


def test_an_engine_that_fails_is_said():
    with pytest.raises(Unavailable, match=r"answer failed: ConnectionError: the engine is gone\. Run the same command"):
        RetrievalTarget(failing(0))(x)


@pytest.mark.parametrize("options", [{"k": 0}, {"k": 2.5}, {"batch": 0}, {"image_of_id": "gallery/"}])
def test_bad_options_are_refused(options):
    with pytest.raises(BadInput, match=next(iter(options))):
        RetrievalTarget(nearest, **options)


# What items look like ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("show", [lambda i: gallery[i], dict(enumerate(gallery))])
def test_items_are_shown(show):
    assert torch.equal(RetrievalTarget(nearest, image_of_id=show).view([3, 1], x), gallery[[3, 1]])


def test_items_are_read_from_files_in_the_shape_of_the_queries(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(png(gallery[i]))
    target = RetrievalTarget(nearest, image_of_id=str(tmp_path / "{id}.png"))
    assert torch.allclose(target.view([2, 0], x), gallery[[2, 0]], atol=0.5 / 255 + 1e-6)
    assert target.view([1], torch.zeros(1, 3, 12, 10)).shape == (1, 3, 12, 10)
    with pytest.raises(BadInput, match=r"id: got 7 .*; allowed: an item with a picture at"):
        target.view([7], x)
    with pytest.raises(BadInput, match="below the folder"):
        target.view(["../0"], x)


def test_unknown_ids_and_strange_images_are_refused():
    with pytest.raises(BadInput, match=r"id: got 99 \(IndexError"):
        RetrievalTarget(nearest, image_of_id=lambda i: gallery[i]).view([99], x)
    with pytest.raises(BadInput, match=r"id: got 'a' \(KeyError"):
        RetrievalTarget(nearest, image_of_id={}).view(["a"], x)
    with pytest.raises(BadInput, match=r"image of 1: got torch.float32 \[6, 6\]; allowed: float \[1, 6, 6\]"):
        RetrievalTarget(nearest, image_of_id=lambda i: gallery[i][0]).view([1], x)
    with pytest.raises(BadInput, match="image of 1: got values in"):
        RetrievalTarget(nearest, image_of_id=lambda i: gallery[i] * 255).view([1], x)
    with pytest.raises(BadInput, match="image_of_id: got nothing"):
        RetrievalTarget(nearest).view([1], x)


# An index of one's own ---------------------------------------------------------------------------------------------


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Tanh())


@pytest.mark.parametrize("backend", ["torch", "faiss"])
def test_an_index_ranks_by_cosine(net, backend):
    if backend == "faiss":
        pytest.importorskip("faiss")
    engine = ImageIndex(net, gallery, k=6, backend=backend)
    with torch.no_grad():
        similar = nn.functional.cosine_similarity(net(x)[:, None], net(gallery)[None], dim=2)
    assert engine(x) == similar.argsort(dim=1, descending=True)[:, :6].tolist()
    assert engine(gallery)[3][0] == 3
    assert torch.equal(engine.view([3], x), gallery[3:4])


def test_an_index_has_ids_and_a_fingerprint(net):
    names = [f"item {i}" for i in range(40)]
    engine = ImageIndex(net, gallery, k=4, ids=names)
    assert engine(x) == [[names[i] for i in row] for row in ImageIndex(net, gallery, k=4)(x)]
    assert torch.equal(engine.view(["item 7"], x), gallery[7:8])
    prints = {ImageIndex(net, g, k).fingerprint() for g in (gallery, gallery.flip(0)) for k in (3, 4)}
    assert len(prints) == 4


class Roots(nn.Module):
    def forward(self, images):
        return (images.flatten(1) - 0.5).sqrt()


def test_a_bad_index_is_refused(net):
    with pytest.raises(BadInput, match="k: got 41; allowed: 1 to 40, the size of the gallery"):
        ImageIndex(net, gallery, k=41)
    with pytest.raises(BadInput, match="gallery: got no images"):
        ImageIndex(net, gallery[:0])
    with pytest.raises(BadInput, match="ids: got 1 different ones; allowed: 40"):
        ImageIndex(net, gallery, ids=["a"] * 40)
    with pytest.raises(BadInput, match="NaN"):
        ImageIndex(Roots(), gallery)
    with pytest.raises(BadInput, match=r"embedding: got .*only answers queries"):
        ImageIndex(RetrievalTarget(nearest), gallery)


# Behind an address -------------------------------------------------------------------------------------------------


def test_an_address_is_asked(engine):
    target = ws.load_model(engine.url, task="retrieval", batch=3, images=engine.images)
    assert isinstance(target, HttpRetriever)
    assert target(x) == nearest(x)
    assert engine.asked == [3, 3, 1]
    assert "k" not in engine.questions[0]
    assert torch.equal(torch.tensor(engine.questions[0]["inputs"]), x[:3])
    assert torch.allclose(target.view([3, 1], x), gallery[[3, 1]], atol=0.5 / 255 + 1e-6)
    with pytest.raises(Unavailable, match="answered 404"):
        target.view([99], x)


def test_k_is_asked_for(engine):
    engine.answer = lambda images: {"ids": nearest(images, engine.questions[-1]["k"])}
    assert ws.load_model(engine.url, task="retrieval", k=7)(x) == nearest(x, 7)


@pytest.mark.parametrize(
    ("body", "said"),
    [(b"<html>", "no JSON"), ({"logits": []}, r"the keys \['logits'\]"), ([1], "a list"), ({"ids": [[1]]}, "1 lists")],
)
def test_what_an_address_may_not_say(engine, body, said):
    engine.answer = lambda images: body
    with pytest.raises(Unavailable, match=rf"/retrieve returned .*{said}"):
        ws.load_model(engine.url, task="retrieval")(x)


def test_failures_that_may_pass_are_tried_again(engine):
    answers = [(503, "busy"), (500, "busy")]
    engine.answer = lambda images: answers.pop() if answers else {"ids": nearest(images)}
    assert ws.load_model(engine.url, task="retrieval", backoff=0.001)(x) == nearest(x)
    engine.answer = lambda images: (503, "busy")
    with pytest.raises(Unavailable, match=r"answered 503 .*\(tries: 2\)"):
        ws.load_model(engine.url, task="retrieval", backoff=0, retries=1)(x)


def test_options_and_specs_are_checked(tmp_path):
    with pytest.raises(BadInput, match=r"option: there is no 'tmeout'. Did you mean timeout"):
        ws.load_model("http://a/retrieve", task="retrieval", tmeout=3)
    with pytest.raises(BadInput, match="allowed"):
        ws.load_model("net.onnx", task="retrieval")
    file = tmp_path / "mine.py"
    file.write_text(
        "from withstand.models import RetrievalTarget\n"
        "def engine(): return RetrievalTarget(lambda x: [[1, 2]] * len(x))\ndef other(): return 3\n"
    )
    assert ws.load_model(f"{file}:engine", task="retrieval", name="mine")(x) == [[1, 2]] * 7
    with pytest.raises(BadInput, match=r"other\(\): got a int; allowed: a RetrievalTarget"):
        ws.load_model(f"{file}:other", task="retrieval")


# The log -----------------------------------------------------------------------------------------------------------


def test_a_repeated_question_is_answered_from_the_log(tmp_path):
    path = tmp_path / "runs" / "queries.jsonl"
    target = RetrievalTarget(nearest, k=5, log=path, name="nearest")
    first = target(x)
    assert target(x.flip(0)) == first[::-1]
    assert target.sent == 7
    target._log._file.close()
    again = RetrievalTarget(failing(0), k=5, log=path, name="nearest")
    assert again(x) == first
    assert again.sent == 0


def test_a_failure_half_way_loses_nothing(tmp_path):
    target = RetrievalTarget(failing(2), k=5, batch=2, log=tmp_path / "log", name="e")
    with ws.count_passes(target) as passes, pytest.raises(Unavailable, match="Its answers so far are kept"):
        target(x)
    assert target.sent == passes.forward_examples == 4
    target._log._file.close()
    again = RetrievalTarget(nearest, k=5, batch=2, log=tmp_path / "log", name="e")
    assert again(x) == nearest(x)
    assert again.sent == 3


def test_garbage_does_not_enter_the_log(tmp_path):
    target = RetrievalTarget(lambda images: [[1, 1]] * len(images), log=tmp_path / "log", name="e")
    with pytest.raises(Unavailable, match="twice"):
        target(x)
    assert len(target._log) == 0


def test_a_log_of_other_lists_is_refused(tmp_path):
    RetrievalTarget(nearest, k=5, log=tmp_path / "log", name="nearest")._log._file.close()
    with pytest.raises(BadInput, match=r"log: got .* of nearest k=5; allowed: a log of nearest k=4"):
        RetrievalTarget(nearest, k=4, log=tmp_path / "log", name="nearest")


def test_a_log_answers_for_one_engine_alone(net, tmp_path):
    first = ImageIndex(net, gallery, k=5, log=tmp_path / "log")
    found = first(x)
    first._log._file.close()
    other = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Tanh())
    with pytest.raises(BadInput, match=r"log: got .* of index \w+; allowed: a log of index"):
        ImageIndex(other, gallery, k=5, log=tmp_path / "log")
    again = ImageIndex(net, gallery, k=5, log=tmp_path / "log")
    assert again(x) == found
    assert again.sent == 0


def test_a_log_of_two_addresses_is_refused_whatever_they_are_called(tmp_path):
    HttpRetriever("http://a/retrieve", name="shop", log=tmp_path / "log")._log._file.close()
    with pytest.raises(BadInput, match="of http://a/retrieve k=None; allowed: a log of http://b/retrieve"):
        HttpRetriever("http://b/retrieve", name="shop", log=tmp_path / "log")


def test_a_function_with_a_log_needs_a_name(tmp_path):
    with pytest.raises(BadInput, match="name: got none; allowed: a name for the engine"):
        RetrievalTarget(lambda images: nearest(images), k=5, log=tmp_path / "log")
    assert not (tmp_path / "log").exists()
