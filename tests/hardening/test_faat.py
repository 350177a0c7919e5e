import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.hardening.by_hand import gradients, plain, ready, step_at
from tests.hardening.conftest import ATTACK, cnn, images
from withstand.errors import BadInput
from withstand.hardening.faat import FAAT, conv
from withstand.training import SGD, Adam, Trainer


def targets(y, classes=3, s=0.03, fill=None):
    """q_nat and q_adv, number by number."""
    rows = []
    for label in y.tolist():
        own = [1.0 if k == label else 0.0 for k in range(classes)]
        other = [1.0 if k == fill else 0.0 for k in range(classes)]
        pair = [other + own, own + other]
        rows.append([[min(max(t, s / (classes - 1)), 1 - s) for t in row] for row in pair])
    return torch.tensor(rows, dtype=torch.float64).unbind(1)


def h(q, logits):
    return -(q * logits.log_softmax(1)).sum(1).mean()


def run(recipe, system, batch, step, rate=0.0):
    """Both updates as the trainer makes them; the losses, and the gradients of each."""
    losses, found = [], []
    for update in recipe.updates(system, batch, step):
        for part in update.freeze:
            part.requires_grad_(False)
        loss = update.loss()
        for part in update.freeze:
            part.requires_grad_(True)
        moved = system.discriminator if update.opt == "discriminator" else system.model
        still = system.model if update.opt == "discriminator" else system.discriminator
        assert all((g == 0).all() for g in gradients(loss, still))
        found.append(gradients(loss, moved))
        losses.append(loss.detach())
        with torch.no_grad():
            for p, g in zip(moved.parameters(), found[-1]):
                p -= rate * g
    return losses, found


def test_targets_of_the_sheet():
    nat, adv = FAAT().targets(torch.tensor([1]), 3)
    assert torch.allclose(nat, torch.tensor([[0.015, 0.015, 0.015, 0.015, 0.97, 0.015]]))
    assert torch.allclose(adv, torch.tensor([[0.015, 0.97, 0.015, 0.015, 0.015, 0.015]]))
    assert float(nat.sum()) == pytest.approx(0.97 + 5 * 0.03 / 2)
    hard = FAAT(smoothing=0.0).targets(torch.tensor([1, 2]), 3)
    logits = torch.randn(2, 6)
    assert torch.allclose(F.cross_entropy(logits, hard[0]), F.cross_entropy(logits, torch.tensor([4, 5])))
    assert torch.allclose(F.cross_entropy(logits, hard[1]), F.cross_entropy(logits, torch.tensor([1, 2])))


def test_the_domains_of_every_class_differ_but_for_class_0_as_published():
    y = torch.arange(4)
    nat, adv = FAAT().targets(y, 4)
    assert (nat != adv).any(1).all()
    nat, adv = FAAT(variant="published").targets(y, 4)
    assert (nat != adv).any(1).tolist() == [False, True, True, True]
    by_hand = targets(y, 4, fill=0)
    assert torch.allclose(nat.double(), by_hand[0])
    assert torch.allclose(adv.double(), by_hand[1])


def test_labels_may_be_shares():
    y = torch.tensor([0, 2])
    for a, b in zip(FAAT().targets(y, 3), FAAT().targets(F.one_hot(y, 3).float(), 3)):
        assert torch.equal(a, b)


@pytest.mark.parametrize("move", ["natural", "adversarial", "both"])
@pytest.mark.parametrize("kind", ["conv", "mlp"])
def test_both_losses_are_the_formulas(move, kind):
    recipe = FAAT(ATTACK, weights=(0.5, 1.0, 0.1, 2.0), move=move, discriminator=kind)
    system, batch, step = ready(recipe, plain())
    twin = copy.deepcopy(system)
    losses, _ = run(recipe, system, batch, step)
    body = twin.model[:6] if kind == "conv" else twin.model[:8]
    z = [body(u) for u in (batch.x, batch.extra["adversarial"])]
    c = [twin.model[6 if kind == "conv" else 8 :](v) for v in z]
    nat, adv = targets(batch.y)
    told = [twin.discriminator(v) for v in z]
    assert torch.allclose(losses[0], h(nat, told[0]) / 2 + h(adv, told[1]) / 2, atol=1e-6)
    domain = (move != "adversarial") * h(adv, told[0]) + (move != "natural") * h(nat, told[1])
    p, q = (logits.softmax(1) for logits in c)
    kl = (p * (p / q).log()).sum(1).mean()
    by_hand = 0.5 * F.cross_entropy(c[0], batch.y) + F.cross_entropy(c[1], batch.y) + 0.1 * domain + 2 * kl
    assert torch.allclose(losses[1], by_hand, atol=1e-6)


def test_without_the_domain_term_it_is_adversarial_training_bit_for_bit():
    recipe = FAAT(ATTACK, weights=(0, 1, 0, 0))
    system, batch, step = ready(recipe, plain())
    twin = copy.deepcopy(system)
    _, (ours, theirs) = run(recipe, system, batch, step)
    by_hand = F.cross_entropy(twin.model(batch.extra["adversarial"]), batch.y)
    assert all(torch.equal(a, b) for a, b in zip(theirs, gradients(by_hand, twin.model)))
    assert max(g.abs().max() for g in ours) > 0


def test_the_classifier_learns_from_the_discriminator_that_has_just_learned():
    recipe = FAAT(ATTACK, weights=(0, 0, 1, 0), discriminator="mlp")
    system, batch, step = ready(recipe, plain())
    twin = copy.deepcopy(system)
    (_, loss), _ = run(recipe, system, batch, step, rate=0.5)
    z = twin.model[:8](batch.x)
    _, adv = targets(batch.y)
    assert not torch.allclose(loss, h(adv, twin.discriminator(z)), atol=1e-4)
    assert torch.allclose(loss, h(adv, system.discriminator(z)), atol=1e-6)


def test_natural_features_move_towards_adversarial_ones_of_their_own_class():
    recipe = FAAT(ATTACK, weights=(0, 0, 1, 0), discriminator="mlp")
    system, batch, step = ready(recipe, plain())
    (_, before), (_, g) = run(recipe, system, batch, step)
    with torch.no_grad():
        for p, d in zip(system.model.parameters(), g):
            p -= 0.05 * d
    told = system.discriminator(system.model[:8](batch.x))
    assert h(targets(batch.y)[1], told) < before


def test_swapping_the_halves_everywhere_changes_nothing():
    recipe = FAAT(ATTACK, weights=(0, 1, 0.1, 0), move="both", discriminator="mlp")
    system, batch, step = ready(recipe, plain())
    swapped = copy.deepcopy(system)
    last = swapped.discriminator[-1]
    last.weight.data, last.bias.data = last.weight.data.roll(3, 0), last.bias.data.roll(3, 0)
    other = copy.deepcopy(recipe)
    object.__setattr__(other, "targets", lambda y, k: recipe.targets(y, k)[::-1])
    (a, b), _ = run(recipe, system, batch, step)
    (c, d), _ = run(other, swapped, batch, step_at())
    assert torch.allclose(a, c)
    assert torch.allclose(b, d)


def test_the_best_discriminator_of_equal_features_gives_each_domain_one_half():
    recipe = FAAT(smoothing=0.0)
    logits = torch.zeros(1, 6, dtype=torch.float64, requires_grad=True)
    for _ in range(400):
        loss = sum(F.cross_entropy(logits, q.double()) / 2 for q in recipe.targets(torch.tensor([1]), 3))
        (g,) = torch.autograd.grad(loss, logits)
        logits = (logits - 2 * g).detach().requires_grad_(True)
    assert logits.softmax(1)[0, [1, 4]].tolist() == pytest.approx([0.5, 0.5], abs=0.01)


@pytest.mark.parametrize("side", [4, 5, 8, 16])
def test_the_convolutional_discriminator_fits_maps_of_any_size_from_4(side):
    assert conv(3, 5)(torch.rand(2, 3, side, side)).shape == (2, 10)


def test_accuracies_of_the_discriminator():
    recipe = FAAT(ATTACK, discriminator="mlp")
    system, batch, step = ready(recipe, plain())

    class Perfect(nn.Module):
        """Knows class and domain by the order in which it is asked."""

        def __init__(self, confused):
            super().__init__()
            self.asked, self.confused, self.weight = 0, confused, nn.Parameter(torch.zeros(()))

        def forward(self, z):
            natural = self.asked % 2 == 0
            self.asked += 1
            return F.one_hot(batch.y + 3 * (natural != self.confused), 6).double() * 9 + self.weight

    for confused, share in ((False, 1.0), (True, 0.0)):
        system.discriminator = Perfect(confused)
        next(recipe.updates(system, batch, step)).loss()
        assert float(step.said["domain_accuracy_given_class"]) == share
        assert float(step.said["discriminator_class_accuracy"]) == 1.0


def test_two_optimisers_of_their_own():
    recipe = FAAT(ATTACK, optimizer=Adam(3e-4))
    system, _, _ = ready(recipe, plain())
    made = recipe.optimizers(system, SGD(0.1))
    ids = {name: {id(p) for g in o.param_groups for p in g["params"]} for name, o in made.items()}
    assert ids["main"] == {id(p) for p in system.model.parameters()}
    assert ids["discriminator"] == {id(p) for p in system.discriminator.parameters()}
    assert made["discriminator"].param_groups[0]["lr"] == 3e-4
    assert FAAT().optimizer == Adam(1e-4, (0.9, 0.99))


def test_each_update_moves_its_own_part_in_the_trainer():
    seen = []

    class Watched(FAAT):
        def updates(self, system, batch, step):
            states = lambda: [[p.clone() for p in m.parameters()] for m in (system.model, system.discriminator)]  # noqa: E731
            before = states()
            for update in FAAT.updates(self, system, batch, step):
                yield update
                after = states()
                seen.append([any(not torch.equal(a, b) for a, b in zip(x, y)) for x, y in zip(before, after)])
                before = after

    trainer = Trainer(epochs=1, batch=8, optimizer=SGD(0.05), accelerator="cpu")
    fitted = trainer.fit(Watched(ATTACK), cnn(), images())
    assert seen == [[False, True], [True, False]] * 3
    row = fitted.history[-1]
    assert {"loss_discriminator", "loss_domain", "loss_adversarial", "domain_accuracy_given_class"} <= row.keys()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"weights": (0, 1, -1, 0)}, "weights"),
        ({"weights": (0, 0, 0, 0)}, "weights"),
        ({"weights": (1, 2)}, "weights"),
        ({"smoothing": 0.5}, "smoothing"),
        ({"move": "none"}, "move"),
        ({"discriminator": "transformer"}, "discriminator"),
        ({"variant": "class0"}, "variant"),
    ],
)
def test_bad_settings_are_refused(settings, said):
    with pytest.raises(BadInput, match=said):
        FAAT(**settings)


def test_models_that_the_discriminator_cannot_read_are_refused():
    small = nn.Sequential(nn.Conv2d(1, 4, 3, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    with pytest.raises(BadInput, match=r'maps of 2x2; .* Use "mlp"'):
        ready(FAAT(ATTACK), small)
    ready(FAAT(ATTACK, discriminator="mlp"), small)
    with pytest.raises(BadInput, match="1 class"):
        ready(FAAT(ATTACK), nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 1)))
