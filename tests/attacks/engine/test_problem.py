import pytest
import torch
from torch import nn

import withstand as ws
from withstand.attacks.boundary import Boundary
from withstand.attacks.deepfool import DeepFool
from withstand.attacks.fab import FAB
from withstand.attacks.opt import OPT
from withstand.attacks.zoo import ZOO
from withstand.errors import BadInput
from withstand.objectives import DLR, Margin, at, best_other

A = ws.attacks


class NaNOffTheData(nn.Module):
    """Logits of `net` at the points x, NaN elsewhere."""

    def __init__(self, net, x):
        super().__init__()
        self.net, self.x = net, x

    def forward(self, z):
        far = torch.cdist(z.flatten(1), self.x.flatten(1)).amin(1) > 1e-6
        return self.net(z).masked_fill(far[:, None], torch.nan)


@pytest.mark.parametrize(
    "attack",
    [Boundary(queries=50), OPT(queries=50), ZOO(queries=100), DeepFool(), FAB(), A.PGD(ws.Linf(0.1))],
    ids=lambda a: a.component_name,
)
def test_logits_that_are_not_numbers_count_neither_as_broken_nor_as_robust(attack, net, points):
    x, y = points
    with pytest.raises(BadInput, match="NaN or infinite logits"):
        attack.run(NaNOffTheData(net, x), x, y)


class Backwards(nn.Module):
    """A model whose gradient points the wrong way."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, z):
        return self.net(2 * z.detach() - z)


@pytest.mark.parametrize("given", [True, False])
def test_the_result_is_never_worse_than_the_clean_point_with_labels_or_without(given, net, points):
    x, y = points
    r = A.PGD(ws.Linf(0.05), steps=2, objective=Margin()).run(Backwards(net), x, y if given else None)
    clean = best_other(net(x), y) - at(net(x), y)
    assert (r.value >= clean.float() - 1e-6).all()
    assert (r.distance == 0).any()


def test_soft_labels_are_refused_where_success_is_judged_and_taken_where_it_is_not(net, points):
    x, y = points
    soft = torch.eye(5, dtype=x.dtype)[y]
    for rows in (slice(None), slice(5)):
        with pytest.raises(BadInput, match="soft labels"):
            A.PGD(ws.Linf(0.1)).run(net, x[rows], soft[rows])
    last = {"keep": "last", "active": False}
    attack = A.PGD(ws.Linf(0.1), steps=2, **last)
    assert torch.equal(attack(net, x, soft), attack(net, x, y))


@pytest.mark.parametrize("attack", [A.APGD(ws.Linf(0.01), DLR(), steps=2), A.APGDT(ws.Linf(0.01), steps=2)], ids=repr)
def test_notes_by_example_cover_blocks_in_which_nothing_was_left_to_attack(attack, net, points):
    x, y = points
    wrong = torch.where(torch.arange(len(y)) < 8, (y + 1) % 5, y)
    whole, parts = (attack.run(net, x, wrong, block=b).notes["dlr_without_gradient"] for b in (len(x), 8))
    assert len(parts) == len(x)
    assert torch.equal(whole, parts)


@pytest.mark.parametrize("attack", [A.PGD(ws.Linf(0.1)), A.APGD(ws.Linf(0.1)), FAB(), DeepFool()], ids=repr)
def test_a_model_that_cuts_the_gradient_is_refused_with_advice(attack, net, points):
    x, y = points
    with pytest.raises(BadInput, match=r"without a gradient.*BPDA"):
        attack.run(lambda z: net(z.detach()), x, y)


class Root(nn.Module):
    """Finite logits, and a gradient that is NaN where the first value has not moved from 0.5."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, z):
        still = (z.flatten(1)[:, :1] - 0.5) * 0
        return self.net(z) + still.abs().sqrt()


@pytest.mark.parametrize(
    "attack",
    [A.PGD(ws.Linf(0.1), steps=3), A.APGD(ws.L2(0.5), steps=5), FAB(steps=3), DeepFool(steps=3), A.FABT(steps=3)],
    ids=lambda a: a.component_name,
)
def test_a_gradient_that_is_no_number_counts_as_zero_and_is_told_once(attack, net, points):
    x, y = points
    with pytest.warns(RuntimeWarning, match="NaN or infinite") as told:
        found = attack.run(Root(net), x, y)
    assert len({str(w.message) for w in told}) == 1
    assert torch.isfinite(found.x_adv).all()
    if attack.nearest:  # these have no random start
        assert torch.equal(found.x_adv[:, 0, 0, 0], x[:, 0, 0, 0])
    assert found.success.any()  # the other values still have their gradient


def test_a_finite_gradient_is_told_nothing_about(net, points, recwarn):
    A.PGD(ws.Linf(0.1), steps=3).run(net, *points)
    assert not [w for w in recwarn if issubclass(w.category, RuntimeWarning)]


@pytest.mark.parametrize("objective", ["margin", "dlr"])
def test_a_model_of_one_class_is_refused(objective):
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 1))
    with pytest.raises(BadInput, match=f"1 classes.*for (margin|{objective})"):
        A.PGD(ws.Linf(0.1), objective=objective).run(model, torch.rand(3, 1, 2, 2), torch.zeros(3).long())
