"""The guided attack against its definition."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import withstand as ws
from withstand.attacks import GPGA, PGD, AutoAttack
from withstand.attacks.gpga import MatchDeceive
from withstand.errors import BadInput
from withstand.protocols import Seen
from withstand.threats import L2, Linf


def net(seed: int, classes: int = 5, scale: float = 1.0) -> nn.Sequential:
    torch.manual_seed(seed)
    made = nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, classes)).double().eval()
    with torch.no_grad():
        made[3].weight.mul_(scale)
        made[3].bias.mul_(scale)
    return made


@pytest.fixture
def batch():
    x = ws.Rows.count(0, 10).uniform((3, 2, 2), "x", dtype=torch.float64)
    return x, net(0)(x).argmax(1)


def seen_of(model, x):
    return Seen(x, model(x))


def test_the_difference_of_two_cross_entropies_is_the_weighted_margin(batch):
    x, y = batch
    model, guide = net(0), net(1)
    z, q = model(x), guide(x).softmax(1)
    expected = F.cross_entropy(z, y, reduction="none") - F.cross_entropy(z, q, reduction="none")
    margins = (q * (z - z.gather(1, y[:, None]))).sum(1)
    torch.testing.assert_close(expected, margins)
    share = 1 - q.gather(1, y[:, None]).squeeze(1)  # shared out anew among the other classes
    torch.testing.assert_close(MatchDeceive(guide)(seen_of(model, x), y, {}), margins / share, rtol=1e-9, atol=0)


def test_smaller_weights_mix_the_two_terms(batch):
    x, y = batch
    model, guide = net(0), net(1)
    z, q = model(x), guide(x).softmax(1)
    expected = F.cross_entropy(z, y, reduction="none") + 0.3 * (q * z.log_softmax(1)).sum(1)
    torch.testing.assert_close(MatchDeceive(guide, 0.3)(seen_of(model, x), y, {}), expected)


def test_a_guide_that_knows_nothing_gives_the_mean_margin(batch):
    x, y = batch
    z = net(0)(x)
    uniform = net(1, scale=0.0)
    expected = (z.sum(1) - 5 * z.gather(1, y[:, None]).squeeze(1)) / 4
    torch.testing.assert_close(MatchDeceive(uniform)(seen_of(net(0), x), y, {}), expected, rtol=1e-9, atol=1e-12)


def test_a_guide_that_is_sure_of_the_label_leaves_a_gradient(batch):
    x, y = batch
    value = MatchDeceive(net(0, scale=1e6))(seen_of(net(0), x), y, {})
    assert (value < 0).all()  # not zero: the other classes share what is left


def test_no_gradient_flows_through_the_guide_and_it_is_left_as_it_was(batch):
    x, y = batch
    model, guide = net(0), nn.Sequential(net(1), nn.Dropout(0.5)).train()
    point = x.clone().requires_grad_(True)
    fixed = point.detach()
    objective = MatchDeceive(guide)
    (found,) = torch.autograd.grad(objective(Seen(point, model(point)), y, {}).sum(), point)
    q = net(1)(fixed).softmax(1).scatter(1, y[:, None], 0)
    q = q / q.sum(1, keepdim=True)
    other = x.clone().requires_grad_(True)
    z = model(other)
    (expected,) = torch.autograd.grad((q * (z - z.gather(1, y[:, None]))).sum(), other)
    torch.testing.assert_close(found, expected)
    assert guide.training
    assert all(p.grad is None and p.requires_grad for p in guide.parameters())


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.3)])
def test_without_weight_it_is_pgd_from_the_clean_point(batch, threat):
    x, y = batch
    guided = GPGA(threat, net(1), weight=0.0, keep="last", active=False)(net(0), x, y)
    plain = PGD(threat, steps=10, step=0.25, random_start=False, keep="last", active=False)(net(0), x, y)
    assert torch.equal(guided, plain)


def test_every_step_is_the_definition(batch):
    x, y = batch
    model, guide = net(0), net(1)
    z = x.clone()
    for _ in range(4):
        z.requires_grad_(True)
        q = guide(z.detach()).softmax(1)
        out = model(z)
        loss = F.cross_entropy(out, y, reduction="none") - F.cross_entropy(out, q, reduction="none")
        (g,) = torch.autograd.grad(loss.sum(), z)
        z = (z.detach() + 0.3 * 0.1 * g.sign()).clamp(x - 0.1, x + 0.1).clamp(0, 1)
    found = GPGA(Linf(0.1), guide, steps=4, step=0.3, keep="last", active=False)(model, x, y)
    torch.testing.assert_close(found, z.detach())


def test_a_guided_start_is_where_the_guide_alone_ends(batch):
    x, y = batch
    guide = net(1)
    start = PGD(Linf(0.1), steps=10, step=0.25, random_start=False, keep="last", active=False)(guide, x, y)
    found = GPGA(Linf(0.1), guide, steps=1, step=1e-9, guided_start=True, keep="last", active=False)(net(0), x, y)
    torch.testing.assert_close(found, start, rtol=0, atol=1e-9)


def test_with_two_classes_the_guide_has_no_say(batch):
    x, _ = batch
    model = net(0, classes=2)
    y = model(x).argmax(1)
    for guide in (net(1, classes=2), net(2, classes=2)):
        margin = PGD(Linf(0.1), steps=5, step=0.25, random_start=False, objective="margin", keep="last", active=False)
        found = GPGA(Linf(0.1), guide, steps=5, keep="last", active=False)(model, x, y)
        assert torch.equal(found, margin(model, x, y))


def test_saturated_logits_do_not_stop_it(batch):
    x, y = batch
    x, guide = x.float(), net(1).float()
    plain, large = net(0).float(), net(0, scale=1e6).float()
    settings = {"steps": 5, "keep": "last", "active": False}
    assert torch.equal(GPGA(Linf(0.1), guide, **settings)(large, x, y), GPGA(Linf(0.1), guide, **settings)(plain, x, y))
    stalled = PGD(Linf(0.1), random_start=False, **settings)(large, x, y)
    assert torch.equal(stalled[large(x).softmax(1).amax(1) == 1], x[large(x).softmax(1).amax(1) == 1])


def test_passes_of_the_guide_are_counted(batch):
    x, y = batch
    quiet = Linf(1e-9)
    found = GPGA(quiet, net(1), steps=3).run(net(0), x, y)
    assert (found.forwards == 3 + 3 + 2).all()  # steps of both, and the look at the end of both
    assert (found.backwards == 3).all()
    started = GPGA(quiet, net(1), steps=3, guided_start=True).run(net(0), x, y)
    assert (started.forwards == found.forwards + 10).all()
    assert (started.backwards == found.backwards + 10).all()


def test_more_steps_never_break_fewer(batch):
    x, y = batch
    won = [GPGA(Linf(0.15), net(1), steps=s).run(net(0), x, y).success for s in (2, 4, 8)]
    assert (won[0] <= won[1]).all()
    assert (won[1] <= won[2]).all()


def test_autoattack_begins_with_it_where_a_guide_is_given(batch):
    x, y = batch
    attack = AutoAttack(Linf(0.1), steps=5, queries=20, guide=net(1))
    found = attack.run(net(0), x, y)
    assert found.notes["attacks"][:3] == ["clean", "gpga", "apgd-ce"]
    alone = GPGA(Linf(0.1), net(1)).run(net(0), x, y)
    assert (alone.success <= found.success).all()


def test_a_guide_may_be_the_text_of_a_model(tmp_path, batch):
    (tmp_path / "guides.py").write_text(
        "import torch\n\ndef make():\n    torch.manual_seed(1)\n    return torch.nn.Sequential(torch.nn.Flatten(), "
        "torch.nn.Linear(12, 5)).double()\n"
    )
    x, y = batch
    found = GPGA(Linf(0.1), f"{tmp_path}/guides.py:make")(net(0), x, y)
    assert found.shape == x.shape


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: MatchDeceive(net(1), weight=1.5), "weight: got 1.5"),
        (lambda: MatchDeceive(net(1), weight=-0.1), "weight: got -0.1"),
        (lambda: MatchDeceive(), "guide: got none"),
        (lambda: GPGA(steps=0), "steps: got 0"),
        (lambda: GPGA(step=0.0), "step: got 0.0"),
        (lambda: GPGA(weight=2.0), "weight: got 2.0"),
        (lambda: GPGA(guide=3), "model: got int"),
        (lambda: GPGA(Linf()), "radius"),
    ],
)
def test_bad_settings_are_refused(make, said):
    with pytest.raises(BadInput, match=said):
        make()


def test_a_guide_of_other_classes_or_none_is_refused(batch):
    x, y = batch
    with pytest.raises(BadInput, match="7 classes"):
        GPGA(Linf(0.1), net(1, classes=7))(net(0), x, y)
    with pytest.raises(BadInput, match="guide: got none"):
        GPGA(Linf(0.1))(net(0), x, y)
