import pytest
import torch
import torch.nn.functional as F
from torch import nn

import withstand as ws
from tests.hardening.conftest import cnn, images
from tests.hardening.steps import batch_of, copied, crafted, step_of, system_of
from withstand.errors import BadInput
from withstand.hardening.hat import HAT
from withstand.hardening.terms import divergence
from withstand.hardening.trades import TRADES
from withstand.models import count_passes
from withstand.training import SGD, Trainer

ATTACK = "pgd(linf(0.1), steps=2, random_start=0.001, objective=kl())"


def test_the_loss_is_that_of_the_paper():
    helper = cnn(3)
    recipe = HAT(helper, ATTACK, h=3.0)
    system, step, batch = crafted(recipe, norm=False, step=step_of(smoothing=0.2))
    x, attacked = batch.x, batch.extra["adversarial"]
    advised = helper.eval()(attacked).argmax(1)
    far = system(3 * attacked - 2 * x)
    expected = (
        F.cross_entropy(system(x), batch.y, label_smoothing=0.2)
        + 2.5 * divergence(system(x), system(attacked)).mean()
        - 0.5 * far.log_softmax(1)[range(len(x)), advised].mean()
    )
    torch.testing.assert_close(recipe.loss(system, batch, step), expected)
    assert len(set(advised.tolist()) | set(batch.y.tolist())) > 1


def test_without_the_helper_term_it_is_trades():
    hat, trades = HAT(cnn(3), ATTACK, beta=2.0, gamma=0.0), TRADES(ATTACK, beta=2.0)
    (a, step, batch), (b, other, same) = crafted(hat, norm=False), crafted(trades, norm=False)
    assert torch.equal(batch.extra["adversarial"], same.extra["adversarial"])
    assert torch.equal(hat.loss(a, batch, step), trades.loss(b, same, other))


def test_the_helper_neither_learns_nor_leaves_eval_mode():
    helper = cnn(3)
    recipe = HAT(helper, ATTACK)
    system = system_of(recipe)
    system.train()
    assert system.model.training
    assert not any(m.training for m in system.helper.modules())
    before = copied(system.helper)
    optimizers = recipe.optimizers(system, SGD(0.1))
    assert sum(len(g["params"]) for g in optimizers["main"].param_groups) == len(list(system.model.parameters()))
    step = step_of()
    recipe.loss(system, recipe.craft(system, batch_of(), step), step).backward()
    optimizers["main"].step()
    assert all(torch.equal(v, before[k]) for k, v in system.helper.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in helper.parameters())
    assert helper.training


def test_a_step_costs_one_pass_of_the_helper_and_three_learned_from():
    recipe = HAT(cnn(3))
    system, step = system_of(recipe), step_of()
    with count_passes(system.model) as passes, count_passes(system.helper) as advice:
        recipe.loss(system, recipe.craft(system, batch_of(), step), step).backward()
    assert (passes.forward_calls, passes.backward_calls) == (1 + 10 + 3, 10 + 3)
    assert (advice.forward_calls, advice.backward_calls) == (1, 0)


def test_a_target_or_the_folder_of_a_training_serves_as_the_helper(tmp_path):
    quick = {"epochs": 1, "batch": 12, "accelerator": "cpu"}
    digits = ws.load_data("digits", split="train", limit=40, seed=0)
    plain = ws.harden("zoo:digits_cnn", digits, "standard", out=tmp_path, **quick)
    x = digits.batch(range(3)).x
    for helper in (plain, f"artefact:{tmp_path}"):
        system = HAT(helper, ATTACK).setup(cnn(), digits, ws.Rows.count(0, 40))
        assert torch.equal(system.helper(x), plain(x))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"helper": 3}, "helper: got 3.*a torch model"),
        ({"helper": cnn(), "h": 0.5}, "h: got 0.5"),
        ({"helper": cnn(), "gamma": -1.0}, "gamma"),
        ({}, "helper"),
    ],
)
def test_bad_settings_are_refused(settings, said):
    with pytest.raises(BadInput, match=said):
        HAT(**settings)


def test_a_helper_for_other_classes_is_refused_before_training():
    helper = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    with pytest.raises(BadInput, match=r"outputs \(2, 4\).*the 3 classes of shapes"):
        Trainer(epochs=1, accelerator="cpu").fit(HAT(helper, ATTACK), cnn(), images())
