import pytest
import torch

import withstand as ws
from withstand.errors import BadInput

A = ws.attacks


def test_masks_by_example_follow_their_rows_through_blocks(net, points):
    x, y = points
    mask = (torch.arange(len(x))[:, None, None, None] + torch.arange(36).reshape(1, 1, 6, 6)) % 2
    attack = A.PGD(ws.Masked(ws.Linf(0.2), mask), steps=5)
    whole, parts = (attack.run(net, x, y, block=b) for b in (len(x), 5))
    assert whole.success.any()
    assert torch.equal(whole.x_adv, parts.x_adv)
    assert ((whole.x_adv == x) | (mask == 1)).all()


def test_one_mask_may_have_a_row_of_its_own(net, points):
    x, y = points
    mask = torch.arange(36).reshape(1, 1, 6, 6) % 2
    one, row = (A.PGD(ws.Masked(ws.Linf(0.2), m), steps=5).run(net, x, y) for m in (mask[0], mask))
    assert one.success.any()
    assert torch.equal(one.x_adv, row.x_adv)


@pytest.mark.parametrize("n", [20, 30])
@pytest.mark.parametrize("kind", ["eps", "mask"])
def test_radii_and_masks_for_another_number_of_examples_are_refused(n, kind, net, points):
    x, y = points
    many = ws.Linf(torch.full((n,), 0.1)) if kind == "eps" else ws.Masked(ws.Linf(0.1), torch.ones(n, 1, 6, 6))
    with pytest.raises(BadInput, match=kind):
        A.PGD(many).run(net, x, y, block=4)
