"""QAIR against engines whose every answer is known."""

import pytest
import torch
from torch import nn

import withstand as ws
from withstand.attacks import QAIR
from withstand.attacks.fit import FittedAttack
from withstand.attacks.retrieval.relevance import relevance_loss
from withstand.attacks.retrieval.substitute import Prior, prior_of, stealing_cost
from withstand.errors import BadInput, Unavailable
from withstand.models import ImageIndex, RetrievalTarget
from withstand.threats import L2, Linf

gallery = ws.Rows.count(0, 60).uniform((1, 6, 6), "gallery")
x = ws.Rows.count(1, 8).uniform((1, 6, 6), "queries")


def network(seed, width=8):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(36, 24), nn.Tanh(), nn.Linear(24, width)).eval()


def imitation():
    """A network that ranks somewhat as the engine does."""
    made = network(0)
    for i, weight in enumerate(made.parameters()):
        weight.data += 0.1 * ws.Rows.count(i, 1).normal(tuple(weight.shape), "noise")[0]
    return made


@pytest.fixture(scope="module")
def net():
    return network(0)


@pytest.fixture
def engine(net):
    return ImageIndex(net, gallery, k=5)


class Deaf(RetrievalTarget):
    """An engine whose list ignores the input."""

    def __init__(self, k=3):
        super().__init__(lambda images: [list(range(k))] * len(images), image_of_id=lambda i: gallery[i])


FORMS = {
    "no prior": {},
    "prior first": {"substitute": imitation()},
    "P-RGF": {"substitute": imitation(), "first": False},
    "P-RGF, best weight": {"substitute": imitation(), "first": False, "lam": "auto"},
    "best weight": {"substitute": imitation(), "lam": "auto"},
    "prior alone": {"substitute": imitation(), "q": 0},
    "count": {"substitute": imitation(), "gain": "count"},
    "L2": {"substitute": imitation(), "threat": L2(1.0)},
    "lam 1": {"substitute": imitation(), "first": False, "lam": 1.0},
    "to the last": {"substitute": imitation(), "keep": "last", "active": False},
}


def make(form, **more):
    return QAIR(**{"threat": Linf(0.2), "queries": 40, **FORMS[form], **more})


@pytest.mark.parametrize("form", FORMS)
def test_the_cost_is_what_the_engine_was_asked(form, engine):
    asked = []
    target = RetrievalTarget(lambda z: asked.append(len(z)) or engine(z), image_of_id=engine.image_of_id)
    attack = make(form)
    result = attack.run(target, x, seed=3)
    assert int(result.forwards.sum()) == sum(asked) == target.sent
    assert int(result.forwards.max()) <= attack.queries
    assert not result.backwards.any()


@pytest.mark.parametrize("form", [f for f in FORMS if f != "to the last"])
def test_success_is_a_list_without_a_common_item_inside_the_set(form, engine):
    attack = make(form, queries=80)
    result = attack.run(engine, x, seed=3)
    clean, now = engine(x), engine(result.x_adv)
    disjoint = torch.tensor([not set(a) & set(b) for a, b in zip(clean, now)])
    assert torch.equal(result.success, disjoint)
    assert result.success.any()
    assert attack.threat.contains(x, result.x_adv).all()
    assert (result.x_adv >= 0).all()
    assert (result.x_adv <= 1).all()
    won = result.success
    assert (result.cost_at_success[won] == result.forwards[won]).all()  # it stops at the first success
    losses = [relevance_loss(a, b, attack.gain) for a, b in zip(clean, now)]
    assert result.value.tolist() == pytest.approx([-v for v in losses], abs=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_an_engine_that_does_not_listen_costs_the_whole_budget(form):
    engine, attack = Deaf(), make(form)
    result = attack.run(engine, x, seed=1)
    assert not result.success.any()
    if form == "prior alone":  # its path ends where the substitute's gradient holds it
        assert (result.forwards <= attack.queries).all()
    else:
        assert (result.forwards == attack.queries).all()
    assert (result.cost_at_success == -1).all()


def test_the_trace_never_falls_and_ends_at_the_value(engine):
    result = make("prior first").run(engine, x, seed=3)
    values = result.notes["values"]
    assert values.shape == (8, 40)
    assert result.notes["trace_queries"] == tuple(range(1, 41))
    assert (values.diff(dim=1) >= 0).all()
    assert torch.equal(values[:, -1], result.value)
    most = -relevance_loss([0, 1, 2, 3, 4], [0, 1, 2, 3, 4])
    assert torch.allclose(values[:, 0], torch.tensor(most, dtype=torch.float32))
    share = result.notes["zero_differences"]
    assert share.shape == (8,)
    asked = ~share.isnan()
    assert ((share >= 0) & (share <= 1))[asked].all()
    alone = make("prior alone").run(engine, x, seed=3)
    assert alone.notes["zero_differences"].isnan().all()


def test_an_engine_that_does_not_listen_makes_every_difference_zero():
    assert (make("no prior").run(Deaf(), x).notes["zero_differences"] == 1).all()


def test_draws_depend_on_seed_and_id_alone(engine):
    for form in ("prior first", "P-RGF, best weight"):
        whole = make(form).run(engine, x, seed=5)
        rows = torch.tensor([6, 1, 3])
        part = make(form).run(engine, x[rows], seed=5, ids=rows, block=2)
        assert torch.allclose(part.x_adv, whole.x_adv[rows], atol=1e-6)
        assert torch.equal(part.forwards, whole.forwards[rows])


def test_labels_play_no_part(engine):
    y = torch.full((8,), 700)
    assert torch.equal(make("no prior")(engine, x, y), make("no prior")(engine, x))


def test_a_prior_of_the_engines_own_embedding_needs_few_questions(engine, net):
    plain = make("no prior", queries=150).run(engine, x, seed=0)
    known = make("no prior", queries=150, substitute=net).run(engine, x, seed=0)
    assert known.success.sum() >= max(7, int(plain.success.sum()))
    spent = torch.where(plain.success, plain.cost_at_success, 150)
    knew = torch.where(known.success, known.cost_at_success, 150)
    assert knew.double().mean() <= 0.6 * spent.double().mean()


def test_the_prior_is_the_gradient_of_the_weighted_similarity(engine, net):
    class P:
        pass

    p = P()
    p.x = x
    lists = engine(x)
    prior = prior_of(net, engine, lists, p, "linear", None)
    v = prior(x, torch.arange(8))
    w = torch.tensor([5, 4, 3, 2, 1]) / 15

    def similarity(z):
        with torch.no_grad():
            return torch.stack(
                [
                    (w * nn.functional.cosine_similarity(net(i[None]), net(gallery[r]), dim=1)).sum()
                    for i, r in zip(z, lists)
                ]
            )

    assert torch.allclose(v.flatten(1).norm(dim=1), torch.ones(8))
    step = 1e-2
    slopes = (similarity(x + step * v) - similarity(x - step * v)) / (2 * step)
    assert (slopes < 0).all()
    for i in range(5):  # no random direction of unit length falls faster
        u = ws.Rows.count(i, 8).normal((1, 6, 6), "u")
        u = u / u.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        assert ((similarity(x + step * u) - similarity(x - step * u)) / (2 * step) >= slopes - 1e-3).all()


def test_a_prior_without_a_gradient_is_zero():
    flat = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    nn.init.zeros_(flat[1].weight)
    assert not Prior(flat, torch.ones(8, 3))(x, torch.arange(8)).any()
    engine = Deaf()
    result = QAIR(Linf(0.2), queries=30, substitute=flat).run(engine, x)  # falls back on directions without a prior
    assert (result.forwards == 30).all()


def test_where_nothing_changes_the_step_follows_the_prior(net):
    middle, asked = x[:1].clamp(0.3, 0.7), []
    target = RetrievalTarget(lambda z: asked.append(z) or [[0, 1, 2]] * len(z), image_of_id=lambda i: gallery[i])
    QAIR(Linf(0.2), queries=5, q=3, substitute=net, first=False).run(target, middle)
    w = torch.tensor([7, 3, 1]) / 11
    point = middle.clone().requires_grad_(True)
    (w * nn.functional.cosine_similarity(net(point), net(gallery[:3]))).sum().backward()
    assert point.grad is not None
    assert torch.allclose(asked[-1], middle - 0.04 * point.grad.sign())


def test_sigma_grows_where_nothing_changes():
    far = []

    def answer(z):
        far.append((z - x[:1]).flatten(1).norm(dim=1).max().item())
        return [[1, 2, 3]] * len(z)

    QAIR(Linf(0.2), queries=60, q=4, sigma=0.05).run(RetrievalTarget(answer), x[:1], seed=0)
    probes = [d for i, d in enumerate(far[1:]) if i % 5 == 0]
    assert max(probes[-3:]) > 2 * probes[0]


# Failing, resuming -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [1, 9, 60])
def test_a_failed_engine_costs_nothing_twice(engine, tmp_path, after):
    attack = make("prior first")
    whole = attack.run(engine, x, seed=2)
    left = [after]

    def frail(z):
        left[0] -= 1
        if left[0] < 0:
            raise ConnectionError("gone")
        return engine(z)

    options = {"k": 5, "image_of_id": engine.image_of_id, "name": "e", "batch": 3, "log": tmp_path / "log"}
    first = RetrievalTarget(frail, **options)
    with pytest.raises(Unavailable, match="gone"):
        attack.run(first, x, seed=2)
    first._log._file.close()
    again = RetrievalTarget(engine, **options)
    resumed = attack.run(again, x, seed=2)
    assert torch.equal(resumed.x_adv, whole.x_adv)
    assert torch.equal(resumed.forwards, whole.forwards)
    different = first.sent + again.sent  # a question that comes twice is answered from the log
    assert first.sent > 0
    assert different == len(again._log) <= int(whole.forwards.sum())


# What is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"queries": 1}, "queries"),
        ({"q": -1}, "q"),
        ({"q": 0}, "q: got 0; allowed: .* with a substitute"),
        ({"sigma": 0.0}, "sigma"),
        ({"step": 0.0}, "step"),
        ({"lam": 1.5}, "lam"),
        ({"lam": "best"}, "lam"),
        ({"gain": "quadratic"}, "gain"),
        ({"threat": Linf()}, "threat|eps"),
        ({"substitute": 3}, "substitute: got int"),
    ],
)
def test_bad_settings_are_refused(settings, said):
    with pytest.raises(BadInput, match=said):
        QAIR(**settings)


def test_what_is_no_engine_is_refused(net):
    with pytest.raises(BadInput, match="returns no lists"):
        QAIR()(net, x)
    with pytest.raises(BadInput, match="returns no lists"):
        QAIR()(ws.models.as_target(net), x)
    with pytest.raises(BadInput, match=r"top_k only|access"):
        ws.attacks.PGD()(Deaf(), x, torch.zeros(8).long())


def test_items_that_cannot_be_seen_are_refused_before_the_first_question(engine):
    asked = []
    blind = RetrievalTarget(lambda z: asked.append(1) or engine(z))
    with pytest.raises(BadInput, match="image_of_id: got nothing"):
        make("prior first").run(blind, x)
    assert not asked
    assert make("prior first", images=lambda i: gallery[i]).run(blind, x).success.any()


def test_a_substitute_that_returns_nan_is_refused(engine):
    broken = network(1)
    broken[1].weight.data[0, 0] = torch.nan
    with pytest.raises(BadInput, match="substitute: got an output with NaN"):
        QAIR(substitute=broken).run(engine, x)
    assert engine.sent == 0


def test_the_substitute_is_left_alone(engine):
    substitute = network(1).train()
    before = {k: v.clone() for k, v in substitute.state_dict().items()}
    QAIR(Linf(0.2), queries=20, substitute=substitute).run(engine, x)
    assert substitute.training
    assert all(p.requires_grad and p.grad is None for p in substitute.parameters())
    assert all(torch.equal(v, before[k]) for k, v in substitute.state_dict().items())


def test_it_is_a_value(net):
    assert ws.parse("qair:queries=99,eps=0.1", "attack") == QAIR(Linf(0.1), queries=99)
    assert repr(QAIR(Linf(0.1), lam="auto")) == "qair(linf(0.1), lam='auto')"
    assert repr(QAIR(substitute=net)) != repr(QAIR(substitute=network(5)))
    assert stealing_cost(net) is None
    assert stealing_cost(None) is None
    fitted = FittedAttack("model", net, ws.models.as_target(net).space, "stolen", None)  # type: ignore[arg-type]
    object.__setattr__(fitted, "fitted", type("F", (), {"history": [{"epoch": 1, "queries": 70}]})())
    assert stealing_cost(QAIR(substitute=fitted).substitute) == 70


def test_the_last_question_of_a_budget_is_a_step():
    asked = []
    middle = x[:1].clamp(0.3, 0.7)
    target = RetrievalTarget(lambda z: asked.append(z[0]) or [[len(asked), 50 + len(asked) % 2]] * len(z))
    QAIR(Linf(0.2), queries=5, q=10, active=False).run(target, middle)
    assert len(asked) == 5
    assert torch.allclose((asked[-1] - middle[0]).abs(), torch.tensor(0.04))
    assert not torch.allclose((asked[-2] - middle[0]).abs(), torch.tensor(0.04))


def test_a_step_of_chance_that_brings_items_back_is_undone():
    clean, fewer = [0, 1, 2], [0, 7, 8]
    asked = []
    # the clean list, a direction that changes nothing, a step; a direction that changes nothing, a step that brings all back
    answers = [clean, clean, fewer, fewer, clean]
    engine = RetrievalTarget(lambda z: asked.append(0) or [answers[len(asked) - 1]])
    blind = {"threat": Linf(0.2), "q": 1, "keep": "last", "active": False}
    one = QAIR(queries=3, **blind)(engine, x[:1], seed=1)
    asked.clear()
    two = QAIR(queries=5, **blind)(engine, x[:1], seed=1)
    assert len(asked) == 5
    assert not torch.equal(one, x[:1])
    assert torch.equal(one, two)
