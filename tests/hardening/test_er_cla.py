"""The embedding regularised classifier."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.hardening.by_hand import gradients, plain, ready
from tests.hardening.conftest import images
from tests.training.conftest import same
from withstand.data import load_data
from withstand.errors import BadInput
from withstand.hardening.er_cla import ERCLA, encoder
from withstand.hardening.harden import harden
from withstand.models import load_model
from withstand.models.target import Logits
from withstand.protocols import Space
from withstand.random import Rows
from withstand.threats import Linf
from withstand.training import Adam

SMALL = {"attack": "pgd(linf(0.1), steps=2)", "codes": 3, "width": 16}


def naive_critic(net, z):
    """log sigmoid of a network of four hidden layers."""
    layers = [m for m in net if isinstance(m, nn.Linear)]
    assert len(layers) == 5
    for layer in layers[:-1]:
        z = (z @ layer.weight.T + layer.bias).clamp(min=0)
    return -torch.log1p(torch.exp(-(z @ layers[-1].weight.T + layers[-1].bias)))


def test_the_critic_tells_normal_numbers_from_codes():
    recipe = ERCLA(**SMALL, sigma=2.0)
    system, batch, step = ready(recipe, plain())
    system.model.eval()
    loss = next(recipe.updates(system, batch, step)).loss()
    noise = 2.0 * torch.stack(
        [step.rows.take(torch.tensor([i])).normal((3,), "er_cla", dtype=torch.float64)[0] for i in range(24)]
    )
    code = system.model.model
    both = [naive_critic(system.critic, code(x)).mean() for x in (batch.x, batch.extra["adversarial"])]
    torch.testing.assert_close(loss, naive_critic(system.critic, noise).mean() - sum(both) / 2)


def test_each_update_leaves_the_other_side_alone():
    recipe = ERCLA(**SMALL)
    system, batch, step = ready(recipe, plain())
    critic, main = recipe.updates(system, batch, step)
    assert (critic.opt, main.opt, list(main.freeze)) == ("critic", "main", [system.critic])
    loss = critic.loss()
    assert all(not g.any() for g in gradients(loss, system.model))
    assert any(g.any() for g in gradients(loss, system.critic))


def test_encoder_and_classifier_learn_labels_and_the_encoder_to_fool_the_critic():
    recipe = ERCLA(**SMALL, weight=0.7)
    system, batch, step = ready(recipe, plain())
    _, main = recipe.updates(system, batch, step)
    system.model.eval()
    loss = main.loss()
    halves = []
    for x in (batch.x, batch.extra["adversarial"]):
        z = system.model.model(x)
        halves.append(
            F.cross_entropy(system.model.classifier(z), batch.y) + 0.7 * naive_critic(system.critic, z).mean()
        )
    torch.testing.assert_close(loss, sum(halves) / 2)


def test_after_its_step_the_critic_is_clipped():
    recipe = ERCLA(**SMALL, clip=0.02)
    system, batch, step = ready(recipe, plain())
    updates = recipe.updates(system, batch, step)
    update = next(updates)
    update.loss().backward()
    torch.optim.SGD(system.critic.parameters(), 100.0).step()
    assert max(float(p.detach().abs().max()) for p in system.critic.parameters()) > 0.02
    next(updates)
    assert max(float(p.detach().abs().max()) for p in system.critic.parameters()) == 0.02


def test_the_classifier_and_the_critic_learn_more_slowly():
    recipe = ERCLA(**SMALL)
    system, _, _ = ready(recipe, plain())
    made = recipe.optimizers(system, Adam(0.1))
    assert [g["lr"] for g in made["main"].param_groups] == pytest.approx([0.1, 0.005])
    assert [g["lr"] for g in made["critic"].param_groups] == [0.05]
    sizes = [sum(p.numel() for p in g["params"]) for g in (*made["main"].param_groups, *made["critic"].param_groups)]
    assert sizes == [
        sum(p.numel() for p in m.parameters()) for m in (system.model.model, system.model.classifier, system.critic)
    ]


def test_without_the_critic_and_attacks_it_is_plain_training_of_encoder_and_classifier():
    recipe = ERCLA(**SMALL | {"weight": 0.0, "delay": 9})
    system, batch, step = ready(recipe, plain())
    assert not hasattr(system, "critic")
    model = copy.deepcopy(system.model)
    made = recipe.optimizers(system, Adam(0.01))
    assert list(made) == ["main"]
    slow = torch.optim.Adam(model.classifier.parameters(), 0.0005)
    fast = torch.optim.Adam(model.model.parameters(), 0.01)
    for _ in range(3):
        (update,) = recipe.updates(system, batch, step)
        for optimizer in (made["main"], slow, fast):
            optimizer.zero_grad()
        update.loss().backward()
        F.cross_entropy(model(batch.x), batch.y).backward()
        for optimizer in (made["main"], slow, fast):
            optimizer.step()
    assert same(system.model, model)


def test_attacks_begin_after_the_delay_and_leave_the_label_out():
    recipe = ERCLA(**SMALL, delay=3)
    system, batch, before = ready(recipe, plain(), step=2)
    assert "adversarial" not in batch.extra
    assert len(list(recipe.updates(system, batch, before))) == 2
    system, batch, after = ready(recipe, plain(), step=3)
    assert 0.05 < float((batch.extra["adversarial"] - batch.x).abs().max()) <= 0.1 + 1e-6
    other = copy.copy(batch)
    other.y = (batch.y + 1) % 3
    again = recipe.craft(system, other, after)
    assert torch.equal(again.extra["adversarial"], batch.extra["adversarial"])


def away(z):
    """Sliced Wasserstein distance of codes [N, D] from N(0, I), over 200 directions."""
    draws = torch.Generator().manual_seed(0)
    d = F.normalize(torch.randn(z.shape[1], 200, generator=draws), dim=0)
    quantiles = torch.distributions.Normal(0, 1).icdf((torch.arange(len(z)) + 0.5) / len(z))
    return float(((z @ d).sort(0).values - quantiles[:, None]).abs().mean())


def test_the_distance_is_nil_for_normal_numbers_and_grows_with_scale():
    z = torch.randn(2000, 2, generator=torch.Generator().manual_seed(1))
    assert away(z) < 0.06
    assert away(0.1 * z) > 0.6


def test_codes_of_digits_move_towards_the_normal_distribution():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    x = load_data("digits").batch(range(300)).x
    settings = {
        "epochs": 20,
        "batch": 64,
        "optimizer": Adam(3e-3, (0.0, 0.9)),
        "schedule": "cosine",
        "accelerator": "cpu",
    }
    found = {}
    for weight in (0.0, 0.3):
        recipe = ERCLA(codes=2, delay=99, weight=weight, clip=0.1, width=64)
        found[weight] = away(harden(net, "digits", recipe, validation=None, **settings).model.model(x).detach())
    assert found[0.3] < 0.5 * found[0.0]


def test_an_artefact_is_the_model_that_was_shipped(tmp_path):
    data = load_data("digits", split="train", limit=64, seed=0)
    model = load_model("zoo:digits_bn_cnn", mean=0.4, std=0.3, pretrained=False)
    after = harden(model, data, ERCLA(**SMALL), out=tmp_path, validation=0.25, epochs=2, batch=16, accelerator="cpu")
    read = load_model(f"artefact:{tmp_path}")
    x = load_data("digits").batch(range(8)).x
    assert torch.equal(read(x), after(x))
    assert read.fingerprint() == after.fingerprint()


class Named(nn.Module):
    """A network in timm's way, whose head is not what runs last."""

    def __init__(self):
        super().__init__()
        self.head, self.other = nn.Linear(64, 3), nn.Linear(64, 4)

    def get_classifier(self):
        return self.head

    def forward(self, x):
        return self.head(x.flatten(1)), self.other(x.flatten(1))


def test_the_head_is_found_wherever_it_is():
    model = Logits(Named(), 3)
    made = encoder(model, 5, torch.zeros(1, 1, 8, 8))
    assert made(torch.zeros(2, 1, 8, 8)).shape == (2, 5)
    assert model.model.head.out_features == 5
    assert model.model.other.out_features == 4
    assert encoder(nn.Linear(64, 3).double(), 5, torch.zeros(1, 64).double()).weight.dtype == torch.float64


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (nn.Sequential(nn.Conv2d(1, 3, 8), nn.Flatten()), "which ends in Conv2d"),
        (Logits(plain(), 3, "probabilities"), "returns probabilities"),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.Unflatten(1, (1, 3)), nn.Flatten(0)),
            "ends in a linear layer",
        ),
    ],
)
def test_other_networks_are_refused(model, said):
    with pytest.raises(BadInput, match=said):
        ERCLA(**SMALL).setup(model, images(), Rows.count(0, 24))


def test_a_space_without_shape_or_classes_is_refused():
    for space in (Space((1, 8, 8)), Space(None, classes=3), Space((1, None, None), classes=3)):
        with pytest.raises(BadInput, match="space"):
            ERCLA(**SMALL).deploy(plain(), space)


@pytest.mark.parametrize(
    "wrong",
    [
        {"codes": 0},
        {"width": 0},
        {"weight": -1.0},
        {"clip": 0.0},
        {"clip": float("inf")},
        {"sigma": 0.0},
        {"delay": -1},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(BadInput, match=next(iter(wrong))):
        ERCLA(**wrong)


def test_the_default_attack_is_that_of_the_review():
    assert ERCLA().attack.threat == Linf(0.03)
    assert ERCLA().attack.steps * ERCLA().attack.step * 0.03 == pytest.approx(0.2)
