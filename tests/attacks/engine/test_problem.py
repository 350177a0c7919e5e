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
