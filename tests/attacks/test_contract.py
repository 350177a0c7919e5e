"""What every attack promises, whatever it searches; new attacks are picked up from the registry."""

import copy
import json

import pytest
import torch
from torch import nn

import withstand as ws
from tests.attacks import fitted
from withstand.attacks.neighbours.block import KNNBlock
from withstand.errors import BadInput
from withstand.models import HiddenKNN, knn_of
from withstand.registry import entries, from_json, parse, replace, to_json

# Cheaper settings for the tests; an attack that is not named here runs with its defaults.
FAST = {
    "pgd": "pgd(linf(0.1), steps=4, restarts=2)",
    "fgsm": "fgsm(linf(0.1))",
    "gpga": "gpga(linf(0.1), weight=0.0)",
    "apgd": "apgd(linf(0.1), steps=6, restarts=2)",
    "apgd_t": "apgd_t(linf(0.1), steps=6)",
    "fab": "fab(linf(0.1), steps=5, restarts=2)",
    "fab_t": "fab_t(linf(0.1), steps=5)",
    "square": "square(linf(0.1), queries=70)",
    "boundary": "boundary(queries=150)",
    "carlini_wagner": "carlini_wagner(steps=20, searches=3, c=1.0, lr=0.1)",
    "deepfool": "deepfool(steps=5)",
    "lbfgs": "lbfgs(steps=10, searches=3)",
    "noise": "noise(linf(0.1), samples=5)",
    "opt": "opt(queries=200, q=3)",
    "sign_opt": "sign_opt(queries=200, k=20)",
    "tsa_stat": "tsa_stat(steps=20)",
    "zoo": "zoo(queries=200, searches=2, coordinates=8)",
    "autoattack": "autoattack(linf(0.1), steps=5, queries=30)",
}
for name in (
    "mi",
    "ni",
    "di",
    "ti",
    "si",
    "ssa",
    "si_ni_ti_dim",
    "logit_std",
):  # their own end is the last step, judged elsewhere
    FAST[name] = f"{name}(linf(0.1), steps=4, keep='best', active=True)"
FAST["admix"] = "admix(linf(0.1), steps=2, keep='best', active=True)"
FAST["vmi"] = "vmi(linf(0.1), steps=3, views=(variance(samples=3),), keep='best', active=True)"
FAST["vni"] = "vni(linf(0.1), steps=3, views=(nesterov(), variance(samples=3)), keep='best', active=True)"
FAST["pgn"] = "pgn(linf(0.1), steps=3, views=(penalised_norm(samples=3),), keep='best', active=True)"
FAST["vni_si_ti_dim"] = "vni_si_ti_dim(linf(0.1), steps=1, keep='best', active=True)"
FAST["bsr"] = "bsr(linf(0.1), steps=3, views=(block_shuffle(copies=2),), keep='best', active=True)"
FAST["rap"] = "rap(linf(0.1), steps=3, views=(worst_neighbour(steps=2, after=1),), keep='best', active=True)"
FAST["tpa"] = "tpa(linf(0.1), steps=3, samples=3, keep='best', active=True)"
FAST |= fitted.attacks(classes=5)
FAST |= {
    "ask": "ask(linf(0.1), steps=4, neighbours=3, restarts=2)",
    "mean_guide": "mean_guide(linf(0.1), guides=4, steps=10, lr=0.1)",
    "mean_guide_l2": "mean_guide_l2(guides=4, steps=10, searches=3, lr=0.1)",
}
MIXED = {"admix"}  # what others are in the block is part of the method
ATTACKS = [
    e.name
    for e in entries("attack")
    if e.module.startswith("withstand.")
    and e.load().access != "top_k"
    and getattr(e.load(), "task", "") != "hashing"  # those: tests/attacks/hashing; the others: tests/attacks/retrieval
]
VOTES = [e.name for e in entries("attack") if e.module.startswith("withstand.attacks.neighbours.")]
FAST["origin"] = "origin(linf(0.1), steps=4)"
LIVE = {"advknn": lambda knn: {"block": KNNBlock(5, knn_of(knn).sizes)}}
"""What else an attack is given that knows the model that it is for."""


def make(name: str, model: nn.Module | None = None):
    attack = parse(FAST.get(name, name), kind="attack")
    return replace(attack, **LIVE[name](model)) if model is not None and name in LIVE else attack


@pytest.fixture
def model(request, network, votes) -> nn.Module:
    return (
        votes if getattr(request.node, "callspec", None) and request.node.callspec.params["name"] in VOTES else network
    )


@pytest.fixture(scope="module")
def votes(network) -> nn.Module:
    """A kNN classifier on the network's map and logits, for attacks that need one."""
    x = ws.Rows.count(1, 60).uniform((1, 8, 8), "x", dtype=torch.float64)
    return HiddenKNN(network, ["4", "logits"], x, torch.arange(60) % 5, k=3).train()


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(512, 5)
    ).double()
    for parameter in net.parameters():
        parameter.data.mul_(3)
    return net.train()


@pytest.fixture
def batch(model: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    x = ws.Rows.count(0, 12).uniform((1, 8, 8), "x", dtype=torch.float64)
    y = model.eval()(x).argmax(1)
    y[3] = (y[3] + 1) % 5  # one example that the model already gets wrong
    model.train()
    return x, y


@pytest.mark.parametrize("name", ATTACKS)
def test_points_are_valid_and_the_model_is_left_alone(name, model, batch):
    x, y = batch
    attack = make(name, model)
    learning = [p.requires_grad for p in model.parameters()]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    untouched = x.clone()
    r = attack.run(model, x, y, seed=1)
    assert r.x_adv.shape == x.shape
    assert r.x_adv.dtype == x.dtype
    assert not r.x_adv.requires_grad
    assert torch.equal(x, untouched)
    assert attack.threat.contains(x, r.x_adv).all()
    assert r.x_adv.min() >= 0
    assert r.x_adv.max() <= 1
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == learning
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name", ATTACKS)
def test_success_is_what_the_model_says(name, model, batch):
    x, y = batch
    r = make(name, model).run(model, x, y, seed=1)
    with torch.no_grad():
        wrong = model.eval()(r.x_adv).argmax(1) != y
    model.train()
    assert torch.equal(r.success & wrong, r.success)
    assert bool(r.success[3])
    assert torch.equal(r.x_adv[3], x[3])
    assert torch.equal(r.cost_at_success >= 0, r.success)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", [name for name in ATTACKS if name not in VOTES])
def test_models_of_half_precision_are_attacked_at_their_own_points(name, dtype, network, batch):
    if name == "tsa_stat":
        pytest.skip("its statistics are refused in half precision")
    coarse, x = copy.deepcopy(network).to(dtype).eval(), batch[0].to(dtype)
    y = coarse(x).argmax(1)
    found = make(name).run(coarse, x, y)
    assert found.x_adv.dtype == dtype
    assert bool(((found.x_adv >= 0) & (found.x_adv <= 1)).all())
    assert bool((coarse(found.x_adv).argmax(1) != y)[found.success].all())
    if name in ("deepfool", "lbfgs", "carlini_wagner"):
        assert found.success.float().mean() > 0.5
        far = make(name).threat.distance(x.double(), found.x_adv.double())
        assert torch.allclose(found.distance.double(), far, atol=1e-6)


@pytest.mark.parametrize("name", ["deepfool(linf(0.02))", "deepfool(l2(0.1))"])
def test_what_rounding_to_half_precision_carries_beyond_the_radius_is_no_success(name, network, batch):
    coarse, x = copy.deepcopy(network).to(torch.bfloat16).eval(), batch[0].to(torch.bfloat16)
    y, attack = coarse(x).argmax(1), parse(name, "attack")
    found = attack.run(coarse, x, y)
    far = attack.threat.distance(x.double(), found.x_adv.double())
    assert bool((far <= attack.threat.eps + 1e-6).all())
    assert torch.allclose(found.distance.double(), far, atol=1e-6)
    assert torch.equal(found.cost_at_success >= 0, found.success)
    assert torch.equal(coarse(found.x_adv).argmax(1) != y, found.success)
    assert found.success.any()
    assert not found.success.all()


@pytest.mark.parametrize("name", ATTACKS)
def test_draws_depend_on_seed_and_id_alone(name, model, batch):
    x, y = batch
    attack = make(name, model)
    whole = attack.run(model, x, y, seed=5)
    again = attack.run(model, x, y, seed=5)
    assert torch.equal(whole.x_adv, again.x_adv)
    if name in MIXED:
        return
    rows = torch.tensor([7, 2, 9])
    part = attack.run(model, x[rows], y[rows], seed=5, ids=rows)
    assert torch.allclose(part.x_adv, whole.x_adv[rows], atol=1e-9)
    split = attack.run(model, x, y, seed=5, block=5)
    assert torch.allclose(split.x_adv, whole.x_adv, atol=1e-9)


@pytest.mark.parametrize("name", ATTACKS)
def test_global_generators_are_neither_read_nor_moved(name, model, batch):
    x, y = batch
    torch.manual_seed(0)
    first = make(name, model)(model, x, y)
    state = torch.get_rng_state()
    second = make(name, model)(model, x, y)
    assert torch.equal(first, second)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("name", ATTACKS)
def test_settings_can_be_written_and_read_back(name):
    attack = make(name)
    assert parse(repr(attack), kind="attack") == attack
    assert from_json(json.loads(json.dumps(to_json(attack)))) == attack


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda x, y: (x * 255, y), "normalisation"),
        (lambda x, y: (x.where(x > 0.5, torch.nan), y), "finite"),
        (lambda x, y: ((x * 255).byte(), y), "float tensor"),
        (lambda x, y: (x[0, 0, 0], y), "batch"),
        (lambda x, y: (x, y.float()), "y.long"),
        (lambda x, y: (x, y[:3]), "12 labels"),
        (lambda x, y: (x, y - 9), "labels from 0"),
        (lambda x, y: (x, y + 9), "classes"),
    ],
)
def test_bad_input_is_refused(name, spoil, said, model, batch):
    with pytest.raises(BadInput, match=said):
        make(name, model)(model, *spoil(*batch))


def test_nan_logits_are_an_error(batch):
    broken = nn.Sequential(nn.Flatten(), nn.Linear(64, 5).double())
    nn.init.constant_(broken[1].weight, torch.nan)
    with pytest.raises(BadInput, match="NaN"):
        make("pgd")(broken, *batch)
