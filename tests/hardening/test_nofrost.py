import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.hardening.conftest import cnn, images
from tests.hardening.steps import batch_of, crafted, step_of, system_of
from tests.training.conftest import same
from withstand.attacks import PGD
from withstand.errors import BadInput
from withstand.hardening.nofrost import NoFrost
from withstand.hardening.pgd_at import PGDAT
from withstand.hardening.standard import Standard
from withstand.models import count_passes
from withstand.random import Rows, derive
from withstand.threats import Linf
from withstand.training import SGD, Trainer
from withstand.training.recipe import System

ATTACK = "pgd(linf(0.1), steps=2)"


def test_the_loss_is_the_weighted_mixture():
    recipe = NoFrost(attack=ATTACK, mix=0.3)
    system, step, batch = crafted(recipe, norm=False)
    clean, adversarial = (F.cross_entropy(system(x), batch.y) for x in (batch.x, batch.extra["adversarial"]))
    torch.testing.assert_close(recipe.loss(system, batch, step), 0.7 * clean + 0.3 * adversarial)
    assert adversarial > clean


def test_the_defaults_are_the_published_ones():
    assert NoFrost().attack == PGD(Linf(8 / 255), steps=10, step=1 / 8, random_start=True)  # steps of 1/255
    assert NoFrost().attack.objective == PGD().objective
    assert (NoFrost().mix, NoFrost().domains) == (0.5, ())


def test_labels_are_smoothed_in_the_loss_and_hard_in_the_attack():
    recipe = NoFrost(attack="pgd(linf(0.1), steps=2, step=0.5)", mix=0.3)
    system, step, batch = system_of(recipe, norm=False, dropout=True), step_of(smoothing=0.3), batch_of()
    hard = batch.y
    batch.y = 0.7 * F.one_hot(hard, 3) + 0.1
    crafted = recipe.craft(system, batch, step)
    rows = Rows(derive(derive(step.rows.seed, "attack"), "pgd"), step.rows.ids)
    x, z = batch.x, Linf(0.1).random_start(batch.x, rows, "pgd", 0, (0.0, 1.0))
    system.eval()
    for _ in range(2):
        z.requires_grad_(True)
        (g,) = torch.autograd.grad(F.cross_entropy(system(z), hard, reduction="sum"), z)
        z = (z.detach() + 0.05 * g.sign()).clamp(x - 0.1, x + 0.1).clamp(0, 1)
    torch.testing.assert_close(crafted.extra["adversarial"], z, rtol=0, atol=1e-6)
    clean, adversarial = (F.cross_entropy(system(u), batch.y, label_smoothing=0.3) for u in (x, z))
    torch.testing.assert_close(recipe.loss(system, crafted, step), 0.7 * clean + 0.3 * adversarial)
    torch.testing.assert_close(step.said["loss_clean"], clean.detach())
    torch.testing.assert_close(step.said["loss_adversarial"], adversarial.detach())
    system.model[9].bias.data -= system(x).detach().mean(0)  # now the network tells classes apart
    crafted.y, crafted.extra["adversarial"] = system(x).argmax(1), x.flip(0)
    recipe.loss(system, crafted, step)
    assert step.said["train_accuracy_clean"] == 1
    assert step.said["train_accuracy_adversarial"] < 1


@pytest.mark.parametrize(("mix", "relative"), [(0.0, Standard()), (1.0, PGDAT(attack=ATTACK))])
def test_at_its_ends_it_is_plain_and_adversarial_training(mix, relative):
    def trained(recipe):
        model = cnn(norm=False)
        model[8].p = 0.0
        return Trainer(epochs=2, batch=8, optimizer=SGD(0.05), accelerator="cpu").fit(recipe, model, images()).last

    for a, b in zip(trained(NoFrost(attack=ATTACK, mix=mix)).parameters(), trained(relative).parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_without_a_mixture_nothing_is_attacked():
    system = system_of(NoFrost(attack=ATTACK, mix=0.0), norm=False)
    with count_passes(system.model) as passes:
        NoFrost(attack=ATTACK, mix=0.0).craft(system, batch_of(), step_of())
    assert passes.forward_calls == 0


def test_domains_count_alike():
    recipe = NoFrost(attack=ATTACK, domains=("crop_flip(1)", "crop_flip(2)"))
    system, step, batch = crafted(recipe, norm=False)
    streams = [batch.x, batch.extra["adversarial"], batch.extra["domain_0"], batch.extra["domain_1"]]
    expected = sum(F.cross_entropy(system(x), batch.y) for x in streams) / 4
    torch.testing.assert_close(recipe.loss(system, batch, step), expected)
    twice = NoFrost(attack=ATTACK, domains=("crop_flip(2)", "crop_flip(2)", "mixup(1.0)"))
    system, step, batch = crafted(twice, norm=False)
    assert not torch.equal(batch.extra["domain_0"], batch.extra["domain_1"])  # each stream has draws of its own
    streams = [batch.x, batch.extra["adversarial"], *(batch.extra[f"domain_{i}"] for i in range(3))]
    labels = [*[batch.y] * 4, batch.extra["domain_2_labels"]]  # and a stream that mixes its labels
    assert labels[4].shape == (12, 3)
    expected = sum(F.cross_entropy(system(x), y) for x, y in zip(streams, labels)) / 5
    torch.testing.assert_close(twice.loss(system, batch, step), expected)


def test_the_network_of_the_zoo_couples_no_examples():
    from withstand.models.zoo.table import find

    torch.manual_seed(0)
    net = find("digits_nf").build(10).double().train()
    x = torch.rand(6, 1, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(net(x), torch.cat([net(x[:2]), net(x[2:])]), rtol=0, atol=1e-12)
    assert not list(net.buffers())


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm2d(8),
        nn.GroupNorm(2, 8),
        nn.LayerNorm(8),
        nn.InstanceNorm2d(8),
        nn.RMSNorm(8),
        nn.LocalResponseNorm(2),
    ],
)
def test_networks_with_normalisation_are_refused_by_name(layer):
    model = cnn(norm=False)
    model[1] = layer
    with pytest.raises(BadInput, match=rf"1 \({type(layer).__name__}\).*zoo:nf_resnet18"):
        Trainer(epochs=1, accelerator="cpu").fit(NoFrost(attack=ATTACK), model, images())


def test_bad_settings_are_refused():
    with pytest.raises(BadInput, match="mix"):
        NoFrost(mix=1.5)
    with pytest.raises(BadInput, match="domains"):
        NoFrost(mix=0.0, domains="crop_flip(1)")


def test_adaptive_clipping_bounds_every_unit_but_the_last_layers():
    class Steep(Standard):
        def loss(self, system, batch, step):
            return 1e6 * super().loss(system, batch, step)

    model = cnn(norm=False)
    plain = SGD(1.0, momentum=0.0, weight_decay=0.0)
    settings = {"epochs": 1, "batch": 24, "optimizer": plain, "schedule": "constant", "accelerator": "cpu"}
    moved = Trainer(**settings, agc=0.01).fit(Steep(), model, images()).last
    for name, before in model.named_parameters():
        change = (moved.get_parameter(name) - before).detach()
        units = (change, before) if before.dim() == 1 else (change.flatten(1), before.flatten(1))
        sizes = [u.norm(dim=-1) for u in units]
        bound = 0.01 * sizes[1].clamp_min(1e-3)
        assert bool((sizes[0] <= bound * 1.001).all()) == (not name.startswith("9"))
    assert not same(moved, model)


class Headed(Standard):
    """A recipe with a linear layer beside the model, whose loss is scaled."""

    def setup(self, model, data, rows):
        return System(copy.deepcopy(model), head=nn.Linear(2, 2))

    def loss(self, system, batch, step):
        return 1024 * super().loss(system, batch, step)


def test_adaptive_clipping_leaves_the_classifiers_last_layer_out_whatever_stands_beside_it():
    model = cnn(norm=False)
    plain = SGD(1.0, momentum=0.0, weight_decay=0.0)
    settings = {"epochs": 1, "batch": 24, "optimizer": plain, "schedule": "constant", "accelerator": "cpu"}
    moved = Trainer(**settings, agc=0.01).fit(Headed(), model, images()).last
    change = (moved[9].weight - model[9].weight).norm(dim=1)
    assert (change > 0.02 * model[9].weight.norm(dim=1)).any()


def test_adaptive_clipping_sees_gradients_without_the_scale_of_half_precision(monkeypatch):
    from lightning_fabric.plugins.precision import Precision

    def unscaled(self, optimizer):
        for group in optimizer.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.grad /= 1024

    def trained(recipe):
        settings = {"epochs": 1, "batch": 24, "optimizer": SGD(0.1), "accelerator": "cpu"}
        return Trainer(**settings, agc=0.01).fit(recipe, cnn(norm=False), images()).last

    plain = trained(Standard())
    monkeypatch.setattr(Precision, "unscale_gradients", unscaled)
    assert same(trained(Headed()), plain)
