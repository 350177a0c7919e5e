import pytest
import torch
from torch import nn

import withstand as ws
from withstand.attacks import PGD
from withstand.errors import BadInput


@pytest.fixture
def flat():
    """A model without a slope: points stay where they start."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    nn.init.zeros_(model[1].weight)
    return model


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_a_share_of_the_examples_begins_at_the_clean_point(flat, share):
    x = torch.full((500, 1, 4, 4), 0.5)
    attack = PGD(ws.Linf(0.1), steps=1, clean_starts=share, keep="last", active=False)
    still = (attack(flat, x, torch.zeros(500, dtype=torch.long)) == x).flatten(1).all(1)
    assert float(still.float().mean()) == pytest.approx(share, abs=0.06)
    half = attack(flat, x[:250], torch.zeros(250, dtype=torch.long))
    assert torch.equal((half == x[:250]).flatten(1).all(1), still[:250])  # drawn one by one


def test_other_shares_are_refused():
    with pytest.raises(BadInput, match="clean_starts"):
        PGD(clean_starts=1.5)
