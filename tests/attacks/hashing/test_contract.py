"""What every attack on hashing models keeps to."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from tests.attacks.hashing.conftest import BITS, CLASSES
from tests.pretend import GPU, pretended
from withstand.attacks.hashing.painter import CodeGenerator, Painter
from withstand.attacks.hashing.tha import PrototypeNet
from withstand.audit.measure import attack_passes
from withstand.errors import BadInput
from withstand.models.target import TorchTarget
from withstand.registry import entries, parse, replace

NAMES = [e.name for e in entries("attack") if getattr(e.load(), "task", "") == "hashing"]
FREE = ("hag",)
"""Those that know no database."""
FITTED = ("tha", "prosgan")
"""Those whose codes come from what was fitted."""


def text(name: str, threat: str = "linf(0.1)") -> str:
    return f"{name}({threat})" if name == "prosgan" else f"{name}({threat}, steps=5)"


def make(name: str, base: Any, **more: Any) -> Any:
    attack = parse(text(name), "attack")
    known = {} if name in FREE else {"database": base}
    if name in FITTED:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            net = PrototypeNet(CLASSES, BITS, 16, 8)
            painter = Painter((1, 8, 8), 8, ngf=4, blocks=1)
        known |= {"prototypes": net} if name == "tha" else {"generator": CodeGenerator(net, painter)}
    return replace(attack, **known, **more)


@pytest.fixture(params=NAMES)
def name(request: Any) -> str:
    return request.param


def test_these_attacks_are_there() -> None:
    assert set(NAMES) == {"cga", "p2p", "dhta", "hag", "sdha", "tha", "prosgan"}


def test_points_are_valid_and_the_model_is_left_alone(name, model, queries, base) -> None:
    x, y = queries
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.train()
    found = make(name, base).run(model, x, y, seed=1)
    assert model.training
    model.eval()
    assert bool(((found.x_adv - x).abs() <= 0.1 + 1e-6).all())
    assert float(found.x_adv.min()) >= 0
    assert float(found.x_adv.max()) <= 1
    assert not torch.equal(found.x_adv, x)
    assert not found.success.any()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_what_was_fitted_may_lie_in_main_memory(name, model, queries, base) -> None:
    with pretended():
        x, y = (part.to("cuda") for part in queries)
        found = make(name, base).run(copy.deepcopy(model).to("cuda"), x, y, seed=1)
        assert found.x_adv.device == found.distance.device == GPU


def test_draws_depend_on_seed_and_id_alone(name, model, queries, base) -> None:
    x, y = queries
    attack, rows = make(name, base), torch.tensor([7, 2, 9])
    whole = attack(model, x, y, seed=5)
    assert torch.allclose(attack(model, x[rows], y[rows], seed=5, ids=rows), whole[rows], atol=1e-9)
    assert torch.allclose(attack(model, x, y, seed=5, block=5), whole, atol=1e-9)


def test_its_text_and_its_threat_come_back(name, base) -> None:
    made = parse(text(name), "attack")
    assert parse(repr(made), "attack") == made
    with pytest.raises(BadInput, match="radius"):
        parse(text(name, "linf(None)"), "attack")
    with pytest.raises(BadInput, match="steps"):
        parse(f"{name}(steps=0)", "attack")


def test_no_room_moves_nothing(name, model, queries, base) -> None:
    x, y = queries
    still = make(name, base, threat=parse("linf(0.0)", "threat"))
    assert torch.equal(still(model, x, y), x)


def test_the_last_iterate_can_be_had(name, model, queries, base) -> None:
    x, y = queries
    found = make(name, base, keep="last", active=False)(model, x, y)
    assert found.shape == x.shape


def test_a_classifier_is_refused(name, queries, base) -> None:
    x, y = queries
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, BITS)).double()
    network[1].weight.data.mul_(50)
    with pytest.raises(BadInput, match="a hashing model"):
        make(name, base)(network, x, y)


def test_no_attack_costs_more_than_its_estimate(name, model, queries, base) -> None:
    x, y = queries
    attack = make(name, base)
    found = attack.run(model, x, y)
    spent = float((found.forwards + found.backwards).max()) / 2
    assert 0 < spent <= attack_passes(attack, TorchTarget(model, task="hashing"))


@pytest.mark.parametrize("guided", [n for n in NAMES if n not in FREE])
def test_codes_of_another_length_are_refused(guided, model, queries, base) -> None:
    if guided in FITTED:
        pytest.skip("what was fitted has a length of its own")
    x, y = queries
    with pytest.raises(BadInput, match="bits"):
        make(guided, (base.codes[:, :4], base.labels))(model, x, y)


@pytest.mark.parametrize("guided", ["cga", "dhta", "p2p", *FITTED])
def test_without_labels_or_a_database_there_is_no_aim(guided, model, queries, base) -> None:
    x, y = queries
    with pytest.raises(BadInput, match="labels"):
        make(guided, base)(model, x)
    with pytest.raises(BadInput, match="the codes and labels that the attacker knows"):
        replace(make(guided, base), database=None)(model, x, y)


def test_what_is_no_database_is_refused() -> None:
    with pytest.raises(BadInput, match="database"):
        parse("cga", "attack").__class__(database=3)
