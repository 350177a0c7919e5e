"""The experiments on metric learning, in small, on made-up characters."""

import pytest
import torch
from torch import nn

from withstand.data.arrays import from_arrays
from withstand.random import Rows
from withstand.registry import parse
from withstand.representation.density import density
from withstand.reproductions import cars, cbml, characters, mdprop
from withstand.reproductions.characters import TRAINED
from withstand.reproductions.runner import judge

pytest.importorskip("pytorch_metric_learning")
TINY = {"drawers": 8, "epochs": 1, "width": 4, "dim": 4, "test": 3, "size": 8}


def alphabets(name, size):
    """Ten characters of three alphabets that are learned from and one that is not, 8 drawings each, with a stroke each."""
    assert name == "omniglot"
    y = torch.arange(80) % 10
    x = Rows.count(0, 80).uniform((1, size, size), "alphabets", high=0.5)
    x[torch.arange(80), 0, y % size, y // size] = 1
    names = [f"{[*TRAINED[:3], 'Sanskrit'][c % 4]}/character{c}" for c in range(10)]
    return from_arrays(x.numpy(), y.numpy(), name, names)


def photographs(split, size):
    """Forty noisy images of five classes, each with a brighter corner; other noise for the classes that are searched."""
    y = torch.arange(40) % 5
    x = Rows.count(1 + (split == "seen"), 40).uniform((3, size, size), "cars", high=0.5)
    x[torch.arange(40), y % 3, y % size, y // 3] = 1
    return from_arrays(x.numpy(), y.numpy(), split, layout="nchw")


def learned():
    """A small network that ends in the mean of a map."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = (
            nn.Conv2d(3, 6, 3),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(6, 10),
        )
        return nn.Sequential(*layers)


@pytest.fixture(scope="module", params=[mdprop, cbml])
def measured(request):
    """The whole measurement in small; its module and rows."""
    system = request.param
    patch = pytest.MonkeyPatch()
    patch.setitem(system.SCALES, "smoke", system.SCALES["smoke"] | TINY)
    patch.setattr(characters, "load_data", alphabets)
    patch.setitem(system.SCALES["smoke"], "cars", system.SCALES["smoke"]["cars"] | {"size": 8, "dim": 4, "every": 4})
    patch.setattr(cars, "photographs", photographs)
    patch.setattr(cars, "learned", learned)
    for module in (cars, characters):
        patch.setattr(module, "Trainer", lambda **s: real(**{**s, "batch": 16, "sampler": "m_per_class(4)"}))
    told = []
    rows = [row for part in ("characters", "cars") for row in system.PARTS[part]("smoke", 0, told.append)["rows"]]
    patch.undo()
    assert {f"{arm}: training" for arm in (*system.ARMS, *system.CARS)} <= {*told}
    return system, {(r["arm"], r["metric"]): r["examples"] for r in rows}


real = characters.Trainer


def test_all_claims_can_be_judged(measured):
    system, rows = measured
    listed = [{"arm": a, "metric": m, "examples": e} for (a, m), e in rows.items()]
    for claim in system.CLAIMS:
        assert judge(claim, [listed])["verdict"] in ("shown", "not shown", "inconclusive")


def test_only_characters_of_other_alphabets_are_searched(measured):
    _, rows = measured
    rows = {key: e for key, e in rows.items() if not key[0].startswith("cars")}
    assert {len(e) for (_, m), e in rows.items() if "recall" in m} == {2 * 3}  # two characters by three drawers
    assert {len(e) for (_, m), e in rows.items() if m == "pi_ratio"} == {2}


def test_every_car_is_searched_and_some_are_attacked(measured):
    system, rows = measured
    rows = {key: e for key, e in rows.items() if key[0].startswith("cars")}
    assert {arm for arm, _ in rows} - {"cars / before"} == {*system.CARS}
    assert {len(e) for (_, m), e in rows.items() if m == "recall_at_1"} == {40}
    assert {len(e) for (_, m), e in rows.items() if "robust" in m} == ({10} if system is mdprop else set())
    assert len({tuple(rows[arm, "pi_ratio"]) for arm in system.CARS}) == len(system.CARS)


def test_cars_begin_with_what_a_network_makes_before_its_last_layer():
    x = photographs("unseen", 8).batch(range(4)).x
    z = cars.Features(learned()).eval()(x)
    assert torch.allclose(z, torch.nn.functional.normalize(learned()[:5].eval()(x)), atol=1e-6)


@pytest.mark.data
def test_cars_that_are_learned_and_searched_are_others_and_the_network_has_weights(data_root, monkeypatch):
    monkeypatch.setenv("WITHSTAND_DATA", str(data_root))
    seen, unseen = (cars.photographs(split, 16) for split in ("seen", "unseen"))
    assert not {*seen.classes} & {*unseen.classes}
    x, y = cars.searched({"size": 16})
    assert x.shape == (400, 3, 16, 16)
    assert torch.equal(y, torch.arange(20).repeat_interleave(20))
    assert cars.learned()(x[:2]).shape == (2, 10)


def test_alphabets_are_apart(monkeypatch):
    monkeypatch.setattr(characters, "load_data", alphabets)
    train, test = (characters.characters(part, 8, 5) for part in (TRAINED, None))
    assert {name.split("/")[0] for name in train.classes} == {*TRAINED[:3]}
    assert {name.split("/")[0] for name in test.classes} == {"Sanskrit"}
    assert (len(train), len(test)) == (40, 10)
    assert train.labels.tolist() == [c for c in range(8) for _ in range(5)]


@pytest.mark.parametrize("system", [mdprop, cbml])
def test_every_scale_has_arms_that_can_be_read(system):
    assert set(system.SCALES) == {"smoke", "cpu", "gpu"}
    for settings in system.SCALES.values():
        texts = [*system.ARMS.values(), *getattr(system, "PSEUDO", {}).values()]
        pairs = [(text, settings) for text in texts] + [(text, settings["cars"]) for text, _ in system.CARS.values()]
        for text, own in pairs:
            recipe = parse(text.format(**{"clusters": 9, **own}), "recipe")
            assert recipe.dim == own["dim"]
            assert not hasattr(recipe, "attack") or recipe.attack.threat.eps == own["eps"]
        assert all(rate > 0 for _, rate in system.CARS.values())


def test_all_losses_on_cars_keep_the_norms_as_the_paper_does():
    assert {parse(text.format(dim=4), "recipe").norm for text, _ in cbml.CARS.values()} == {"frozen"}


def test_a_class_is_wide_beside_the_space_between():
    y = torch.arange(3).repeat_interleave(4)
    z = torch.nn.functional.normalize(Rows.count(0, 12).normal((5,), "z", dtype=torch.float64))
    found = characters.densities(z, y)
    means = torch.nn.functional.normalize(torch.stack([z[y == c].mean(0) for c in range(3)]))
    between = sum(1 - (means[a] @ means[b]).item() for a in range(3) for b in range(3) if a != b) / 6
    for c in range(3):
        rows = (y == c).nonzero().flatten().tolist()
        within = sum(1 - (z[a] @ z[b]).item() for a in rows for b in rows if a != b) / 12
        assert found[c].item() == pytest.approx(within / between)
    assert found.mean().item() == pytest.approx(density(z, y)["pi_ratio"])


def test_a_query_does_not_find_itself():
    held = torch.nn.functional.normalize(torch.tensor([[1.0, 0], [0, 1], [0.9, 0.1], [0.1, 0.9], [-1, 0]]))
    y = torch.tensor([0, 1, 1, 1, 0])
    assert characters.found_first(held, held, y).tolist() == [False, True, False, True, False]
