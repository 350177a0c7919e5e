import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.hardening.by_hand import gradients, plain, ready, step_at
from tests.hardening.conftest import ATTACK, cnn, images
from withstand.errors import BadInput
from withstand.hardening.iat import IAT, Mix, mixing
from withstand.threats import Linf
from withstand.training import SGD, Trainer
from withstand.training.augment import pairs


def hand_made(u, y, f, lam, order):
    """M, row by row."""
    total = 0.0
    for i, j in enumerate(order.tolist()):
        both = f((lam * u[i] + (1 - lam) * u[j])[None]).log_softmax(1)[0]
        total = total - lam * both[y[i]] - (1 - lam) * both[y[j]]
    return total / len(u)


def test_each_half_is_the_mixed_loss_with_draws_of_its_own():
    recipe = IAT(ATTACK)
    system, batch, step = ready(recipe, plain(norm=False))
    loss = recipe.loss(system, batch, step)
    draws = [pairs(24, 1.0, step, f"iat/{half}") for half in ("clean", "adversarial")]
    assert draws[0][0] != draws[1][0]
    halves = [hand_made(u, batch.y, system.model, *d) for u, d in zip((batch.x, batch.extra["adversarial"]), draws)]
    assert torch.allclose(loss, sum(halves) / 2, atol=1e-12)
    assert torch.allclose(step.said["loss_clean"], halves[0], atol=1e-6)
    shared = IAT(ATTACK, share_mix=True).loss(system, batch, step_at())
    one = [hand_made(u, batch.y, system.model, *draws[0]) for u in (batch.x, batch.extra["adversarial"])]
    assert torch.allclose(shared, sum(one) / 2, atol=1e-12)


def test_the_mixed_loss_is_the_soft_cross_entropy_of_mixed_labels_and_linear_in_lam():
    z, y = torch.randn(6, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 2, 1, 0])
    order, step = torch.tensor([3, 5, 0, 1, 2, 4]), step_at()
    soft = lambda lam: F.cross_entropy(z, lam * F.one_hot(y, 3).double() + (1 - lam) * F.one_hot(y, 3).double()[order])  # noqa: E731
    values = [Mix(lam, order).loss(z, y, step) for lam in (0.0, 0.3, 1.0)]
    assert all(torch.allclose(v, soft(lam), atol=1e-12) for v, lam in zip(values, (0.0, 0.3, 1.0)))
    assert torch.allclose(values[1], 0.7 * values[0] + 0.3 * values[2], atol=1e-12)
    shares = F.one_hot(y, 3).double()
    assert torch.allclose(Mix(0.3, order).loss(z, shares, step), values[1], atol=1e-12)
    assert torch.allclose(Mix(0.3, torch.arange(6)).loss(z, y, step), F.cross_entropy(z, y), atol=1e-12)


def test_without_mixing_it_is_half_clean_half_adversarial_bit_for_bit():
    recipe = IAT(ATTACK, alpha=0.0)
    system, batch, step = ready(recipe, plain())
    twin = copy.deepcopy(system)
    loss = recipe.loss(system, batch, step)
    by_hand = (F.cross_entropy(twin(batch.x), batch.y) + F.cross_entropy(twin(batch.extra["adversarial"]), batch.y)) / 2
    assert torch.equal(loss, by_hand)
    assert all(torch.equal(a, b) for a, b in zip(gradients(loss, system), gradients(by_hand, twin)))


def test_a_ball_of_radius_zero_makes_both_halves_equal():
    recipe = IAT("pgd(linf(0.0), steps=1)", share_mix=True)
    system, batch, step = ready(recipe, plain())
    loss = recipe.loss(system, batch, step)
    assert torch.equal(step.said["loss_clean"], step.said["loss_adversarial"])
    assert torch.equal(loss.detach(), step.said["loss_clean"].double())


def test_the_attack_comes_first_and_knows_nothing_of_the_mixing():
    made = [ready(IAT(ATTACK, **s), plain())[1] for s in ({}, {"alpha": 0.2}, {"mode": "manifold", "share_mix": True})]
    adversarial = made[0].extra["adversarial"]
    assert all(torch.equal(m.extra["adversarial"], adversarial) for m in made)
    assert not adversarial.requires_grad
    assert Linf(0.1).contains(made[0].x, adversarial).all()
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    assert not torch.equal(adversarial, made[0].x)


def test_the_input_as_the_only_place_is_input_mixup():
    system, batch, step = ready(IAT(ATTACK), plain())
    twin = copy.deepcopy(system)
    manifold = IAT(ATTACK, mode="manifold", layers=("input",))
    assert torch.equal(IAT(ATTACK).loss(system, batch, step), manifold.loss(twin, batch, step_at()))


def test_hidden_mixing_happens_at_the_drawn_place_and_leaves_what_comes_before():
    model = plain()
    recipe = IAT(ATTACK, mode="manifold")
    system, batch, step = ready(recipe, model)
    assert system.places == ("input", "2", "5")
    only = IAT(ATTACK, mode="manifold", layers=("2",))
    system, batch, step = ready(only, plain(norm=False))
    seen = []
    handle = system.model[1].register_forward_hook(lambda m, i, o: seen.append(o))
    loss = only.loss(system, batch, step)
    handle.remove()
    assert torch.equal(seen[0], system.model[:2](batch.x))
    draws = [pairs(24, 1.0, step, f"iat/{half}") for half in ("clean", "adversarial")]
    hidden = [system.model[:3](u) for u in (batch.x, batch.extra["adversarial"])]
    halves = [hand_made(h, batch.y, system.model[3:], *d) for h, d in zip(hidden, draws)]
    assert torch.allclose(loss, sum(halves) / 2, atol=1e-12)
    assert not any(m._forward_hooks for m in system.modules())


def test_every_place_is_drawn():
    recipe = IAT(ATTACK, mode="manifold")
    system, _, _ = ready(recipe, plain())
    drawn = [recipe._draw(system, 24, step_at(step=s, steps=300), "clean").place for s in range(300)]
    counts = [drawn.count(p) for p in system.places]
    assert sum(counts) == 300
    assert min(counts) > 70


@pytest.mark.parametrize("mode", ["input", "manifold"])
def test_one_joint_pass_equals_two_without_batch_norm_and_not_with_it(mode):
    for norm in (False, True):
        layers = None if mode == "input" else ("2",)
        two = IAT(ATTACK, mode=mode, layers=layers)
        system, batch, step = ready(two, plain(norm=norm))
        twin = copy.deepcopy(system)
        a = two.loss(system, batch, step)
        b = IAT(ATTACK, mode=mode, layers=layers, norm="joint").loss(twin, batch, step_at())
        assert torch.allclose(a, b, atol=1e-12) == (not norm)


def test_lam_is_uniform_for_alpha_one():
    lams = torch.tensor([pairs(4, 1.0, step_at(step=s, steps=4000), "iat/clean")[0] for s in range(4000)])
    assert abs(lams.mean() - 1 / 2) < 4 * (1 / 12 / 4000) ** 0.5
    assert abs(lams.var() - 1 / 12) < 0.005


def test_a_single_example_is_warned_of():
    recipe = IAT(ATTACK)
    system, batch, step = ready(recipe, plain(norm=False), n=1)
    with pytest.warns(UserWarning, match="nothing to be mixed with"):
        recipe.loss(system, batch, step)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 1, 3, padding=1), nn.Linear(64, 3)

    def forward(self, x):
        return self.head(self.conv(self.conv(x)).flatten(1))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"alpha": -1.0}, "alpha"),
        ({"layers": ("conv",)}, "layers"),
        ({"mode": "manifold", "layers": ()}, "layers"),
        ({"mode": "manifold", "layers": ("convv",)}, "Did you mean"),
        ({"mode": "manifold", "layers": ("conv",)}, "runs more than once"),
        ({"mode": "hidden"}, "mode"),
    ],
)
def test_bad_settings_are_refused(settings, said):
    with pytest.raises(BadInput, match=said):
        Trainer(epochs=1, optimizer=SGD(0.01), accelerator="cpu").fit(IAT(ATTACK, **settings), Twice(), images())


def test_a_layer_that_never_runs_is_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(BadInput, match="runs in every forward pass"), mixing(model, "1", lambda u: u):
        pass


def test_it_trains_in_manifold_mode_with_soft_labels():
    trainer = Trainer(epochs=2, batch=8, optimizer=SGD(0.05), accelerator="cpu", augment="mixup(alpha=0.5)")
    fitted = trainer.fit(IAT(ATTACK, mode="manifold"), cnn(), images())
    assert {"loss_clean", "loss_adversarial", "train_accuracy_clean"} <= fitted.history[-1].keys()
