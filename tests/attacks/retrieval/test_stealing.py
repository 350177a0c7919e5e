"""Collecting lists and learning an embedding from them."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import withstand as ws
from withstand.attacks import QAIR
from withstand.attacks.retrieval import stealing
from withstand.attacks.retrieval.stealing import Lists, Steal, collect, overlap_at, rank_loss
from withstand.attacks.retrieval.substitute import loaded, stealing_cost
from withstand.data import as_dataset
from withstand.errors import BadInput, Unavailable
from withstand.models import ImageIndex, RetrievalTarget
from withstand.registry import parse

gallery = ws.Rows.count(0, 80).uniform((1, 6, 6), "gallery")
seeds = ws.Rows.count(1, 10).uniform((1, 6, 6), "seeds")
ATTACKER = as_dataset((seeds, torch.arange(10) % 3))


def network(seed, width=8):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(36, 32), nn.ReLU(), nn.Linear(32, width))


@pytest.fixture
def engine():
    return ImageIndex(network(0).eval(), gallery, k=5)


# Collecting --------------------------------------------------------------------------------------------------------


def by_hand(engine, queries):
    """One question after another, each item once, in the order in which they came."""
    queue, asked, known = [s[None] for s in seeds], [], []
    while queue and len(asked) < queries:
        image = queue.pop(0)
        items = engine(image)[0]
        asked.append((image[0], items))
        for item in items:
            if item not in known:
                known.append(item)
                queue.append(gallery[item][None])
    return asked, known


@pytest.mark.parametrize("queries", [1, 7, 10, 45])
def test_the_walk_is_that_of_one_question_after_another(engine, queries):
    lists = collect(engine, seeds, queries)
    asked, known = by_hand(engine, queries)
    assert torch.equal(lists.x, torch.stack([image for image, _ in asked]))
    assert [[lists.ids[i] for i in row] for row in lists.found.tolist()] == [items for _, items in asked]
    assert lists.ids == known
    assert torch.equal(lists.items, gallery[known])


def test_the_budget_is_kept_and_a_small_gallery_ends_the_walk(engine):
    with ws.count_passes(engine) as passes:
        collect(engine, seeds, 33)
    assert passes.forward_examples == 33
    small = ImageIndex(network(0).eval(), gallery[:6], k=3)
    lists = collect(small, seeds, 1000)
    assert len(lists.x) == 10 + len(lists.ids) <= 16


def test_a_failed_walk_costs_nothing_twice(engine, tmp_path):
    left = [2]

    def frail(z):
        left[0] -= 1
        if left[0] < 0:
            raise ConnectionError("gone")
        return engine(z)

    options = {"k": 5, "image_of_id": engine.image_of_id, "batch": 8, "log": tmp_path / "log", "name": "e"}
    first = RetrievalTarget(frail, **options)
    with pytest.raises(Unavailable):
        collect(first, seeds, 60)
    first._log._file.close()
    again = RetrievalTarget(engine, **options)
    lists, whole = collect(again, seeds, 60), collect(engine, seeds, 60)
    assert torch.equal(lists.x, whole.x)
    assert torch.equal(lists.found, whole.found)
    assert first.sent > 0
    assert first.sent + again.sent == 60


def test_unknown_items_end_the_walk(engine):
    with pytest.raises(BadInput, match="id: got 99"):
        collect(RetrievalTarget(lambda z: [[99]] * len(z), image_of_id=lambda i: gallery[i]), seeds, 20)
    asked = []
    with pytest.raises(BadInput, match="image_of_id: got nothing"):
        collect(RetrievalTarget(lambda z: asked.append(1) or [[1]] * len(z)), seeds, 20)
    assert not asked


# Learning ----------------------------------------------------------------------------------------------------------


def naive(query, ranked, far, strange, margin):
    terms = []
    for b in range(len(query)):
        d = [(query[b] - r).norm() for r in ranked[b]]
        n = len(d)
        terms += [(d[i] - d[j] + margin * (j - i)).clamp_min(0) for i in range(n) for j in range(i + 1, n)]
        for f, counts in zip(far[b], strange[b]):
            if counts:
                terms += [(d[i] - (query[b] - f).norm() + margin * (n - i)).clamp_min(0) for i in range(n)]
    return sum(terms) / len(terms)


def test_the_loss_agrees_with_a_loop():
    draw = ws.Rows.count(0, 4)
    query = F.normalize(draw.normal((3,), "q", dtype=torch.float64), dim=1)
    ranked = F.normalize(draw.normal((6, 3), "r", dtype=torch.float64), dim=2)
    far = F.normalize(draw.normal((2, 3), "f", dtype=torch.float64), dim=2)
    strange = torch.tensor([[True, False], [True, True], [False, False], [True, True]])
    assert torch.allclose(rank_loss(query, ranked, far, strange, 0.1), naive(query, ranked, far, strange, 0.1))
    none = torch.zeros(4, 2, dtype=torch.bool)
    assert torch.allclose(rank_loss(query, ranked, margin=0.1), naive(query, ranked, far, none, 0.1))


def test_the_loss_is_zero_where_the_order_holds_with_room():
    angle = torch.tensor([0.1, 0.4, 0.8])
    ranked = torch.stack([angle.cos(), angle.sin()], 1)[None]
    query = torch.tensor([[1.0, 0.0]])
    assert rank_loss(query, ranked, margin=0.1) == 0
    assert rank_loss(query, ranked.flip(1), margin=0.1) > 0
    assert rank_loss(query, ranked, torch.tensor([[[0.0, 1.0]]]), margin=0.1) == 0
    assert rank_loss(query, ranked, torch.tensor([[[1.0, 0.0]]]), margin=0.1) > 0


def test_overlap_counts_shared_items():
    items = torch.eye(6).view(6, 1, 1, 6)
    same = nn.Flatten()
    x = torch.tensor([[0.9, 0.8, 0.1, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.1, 0.9, 0.8]]).view(2, 1, 1, 6)
    lists = Lists(x, torch.tensor([[0, 1], [4, 3]]), items, list(range(6)))
    assert overlap_at(same, lists) == 0.75
    assert overlap_at(same, lists, torch.tensor([1])) == 0.5


def test_overlap_does_not_count_the_item_that_a_question_shows():
    items = torch.tensor([[1.0, 0.0, 0.0], [0.9, 0.3, 0.0], [0.8, 0.0, 0.5], [0.0, 0.0, 1.0]]).view(4, 1, 1, 3)
    with_it = Lists(items[:1], torch.tensor([[0, 1]]), items, list(range(4)))
    without = Lists(items[:1], torch.tensor([[1, 3]]), items, list(range(4)))
    assert overlap_at(nn.Flatten(), with_it) == 1
    assert overlap_at(nn.Flatten(), Lists(items[:1], torch.tensor([[0, 2]]), items, list(range(4)))) == 0
    assert overlap_at(nn.Flatten(), without) == 0.5


def test_an_image_that_is_seed_and_item_is_asked_once(engine):
    lists = collect(engine, torch.cat([gallery[:3], gallery[:3]]), 1000)
    assert len(lists.x.flatten(1).unique(dim=0)) == len(lists.x) == len(lists.ids)
    assert (lists.own >= 0).all()
    assert torch.equal(lists.items[lists.own], lists.x)


def test_an_item_is_not_far_from_the_question_that_shows_it(monkeypatch):
    marks = []

    def seen(query, ranked, far, strange, margin):
        itself = (far - query[:, None]).norm(dim=2) < 1e-6
        marks.append((itself.any(), (itself & strange).any()))
        return rank_loss(query, ranked, far, strange, margin)

    def others(images):
        return [[i for i in row if not torch.equal(gallery[i], z)][:3] for row, z in zip(whole(images), images)]

    whole = ImageIndex(network(0).eval(), gallery[:8], k=4)
    monkeypatch.setattr(stealing, "rank_loss", seen)
    recipe = Steal(victim=RetrievalTarget(others, image_of_id=lambda i: gallery[i]), queries=18, steps=6, far=8)
    ws.fit_attack(recipe, network(7), ATTACKER, epochs=1)
    assert any(there for there, _ in marks)
    assert not any(strange for _, strange in marks)


def stolen(engine, **settings):
    recipe = Steal(victim=engine, queries=70, steps=300, batch=32)
    return ws.fit_attack(recipe, network(7), ATTACKER, **{"epochs": 6, **settings})


def test_a_substitute_ranks_as_the_engine_does(engine):
    untrained = overlap_at(network(7), collect(engine, seeds, 70))
    after = stolen(engine)
    assert after.history[-1]["overlap"] > max(2 * untrained, 0.3)
    assert after.history[-1]["loss"] < 0.5 * after.history[0]["loss"]
    assert after.history[-1]["queries"] == 70
    assert stealing_cost(QAIR(substitute=after).substitute) == 70
    fresh = ws.Rows.count(3, 20).uniform((1, 6, 6), "fresh")
    theirs, ours = engine(fresh), ImageIndex(after.module, gallery, k=5)(fresh)
    shared = sum(len(set(a) & set(b)) for a, b in zip(theirs, ours)) / 100
    assert shared > 0.3


def test_a_training_that_was_killed_ends_with_the_same_weights(engine, tmp_path):
    whole = stolen(engine, epochs=4)

    def quit(moment):
        if moment.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stolen(engine, epochs=4, out=tmp_path / "run", progress=quit)
    resumed = stolen(engine, epochs=4, out=tmp_path / "run")
    for a, b in zip(whole.module.state_dict().values(), resumed.module.state_dict().values()):
        assert torch.equal(a, b)


def test_the_network_that_was_given_is_left_alone(engine):
    given = network(7).train()
    before = {k: v.clone() for k, v in given.state_dict().items()}
    ws.fit_attack(Steal(victim=engine, queries=20, steps=2), given, ATTACKER, epochs=1)
    assert given.training
    assert all(torch.equal(v, before[k]) for k, v in given.state_dict().items())


def test_a_stolen_model_is_an_artefact(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "import torch, withstand as ws\nfrom withstand.models import ImageIndex\n"
        "def engine():\n"
        "    gallery = ws.load_data('digits').batch(range(60)).x\n"
        "    return ImageIndex(torch.nn.Flatten(), gallery, k=5)\n"
    )
    recipe = parse(f"steal(victim='{file}:engine', queries=30, steps=20)", "recipe")
    data = ws.load_data("digits", split="train", limit=8)
    folder = tmp_path / "stolen"
    ws.fit_attack(recipe, "zoo:digits_cnn", data, out=folder, epochs=1)
    text = f"artefact:{folder}"
    attack = ws.parse(f"qair(linf(0.3), queries=20, substitute='{text}')", "attack")
    assert stealing_cost(attack.substitute) == 30
    engine = ws.load_model(f"{file}:engine", task="retrieval")
    assert attack.run(engine, data.batch(range(4)).x).forwards.max() <= 20
    assert loaded(text)(data.batch(range(4)).x).shape == (4, 10)
    assert json.loads((folder / "artefact.json").read_text())["kind"] == "model"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"queries": 1}, "queries"),
        ({"steps": 0}, "steps"),
        ({"batch": 0}, "batch"),
        ({"margin": 0.0}, "margin"),
        ({"far": -1}, "far"),
        ({"held": 1.0}, "held"),
        ({"victim": 3}, "victim: got int"),
        ({"victim": nn.Flatten()}, "victim: got Flatten"),
        ({"victim": RetrievalTarget(lambda z: z), "log": "x"}, "log: got x; allowed: None for a live engine"),
    ],
)
def test_bad_settings_are_refused(settings, said):
    with pytest.raises(BadInput, match=said):
        Steal(**settings)


def test_a_recipe_without_a_victim_is_refused():
    with pytest.raises(BadInput, match="victim: got none"):
        ws.fit_attack(Steal(), network(7), ATTACKER, epochs=1)
