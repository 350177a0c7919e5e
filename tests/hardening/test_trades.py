import pytest
import torch
import torch.nn.functional as F

from tests.hardening.conftest import cnn, images
from tests.hardening.steps import batch_of, crafted, gradients, step_of, system_of
from tests.training.conftest import same
from withstand.attacks import PGD
from withstand.errors import BadInput
from withstand.hardening.standard import Standard
from withstand.hardening.terms import divergence
from withstand.hardening.trades import TRADES
from withstand.models import count_passes
from withstand.registry import replace
from withstand.threats import Linf
from withstand.training import SGD, Trainer

SMALL = TRADES(attack="pgd(linf(0.1), steps=2, random_start=0.001, objective=kl())")


def test_the_loss_is_that_of_the_paper_over_the_batch():
    system, step, batch = crafted(SMALL, norm=False)
    p, q = system(batch.x).softmax(1), system(batch.extra["adversarial"]).softmax(1)
    kl = sum(p[i, k] * torch.log(p[i, k] / q[i, k]) for i in range(len(p)) for k in range(3)) / len(p)
    expected = -p[range(len(p)), batch.y].log().mean() + 6 * kl
    torch.testing.assert_close(SMALL.loss(system, batch, step), expected)
    assert kl > 0
    torch.testing.assert_close(step.said["loss_kl"], kl)


def test_the_attack_is_on_the_divergence_whatever_its_default():
    plain = TRADES(attack="pgd(linf(0.1), steps=2, random_start=0.001)")
    system, step, batch = crafted(SMALL)
    again = plain.craft(system, batch_of(), step)
    assert torch.equal(again.extra["adversarial"], batch.extra["adversarial"])
    with pytest.raises(BadInput, match="The recipe sets it"):
        TRADES(attack="pgd(linf(0.1), objective=margin())")


def test_gradients_flow_through_the_clean_prediction_too():
    z, q = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 0])

    def naive(z):
        p = torch.softmax(z, 1)
        return F.cross_entropy(z, y) + 6 * (p * (p.log() - torch.log_softmax(q, 1))).sum(1).mean()

    z.requires_grad_(True)
    (found,) = torch.autograd.grad(F.cross_entropy(z, y) + 6 * divergence(z, q).double().mean(), z)
    steps = torch.eye(12, dtype=torch.float64).reshape(12, 4, 3) * 1e-6
    differences = torch.stack([(naive(z + d) - naive(z - d)) / 2e-6 for d in steps]).reshape(4, 3)
    torch.testing.assert_close(found, differences, rtol=1e-4, atol=1e-5)
    detached = (z.softmax(1) - F.one_hot(y, 3)) / 4
    assert (found - detached).abs().max() > 1e-2


def test_an_adversary_that_does_nothing_adds_nothing():
    system, step, batch = crafted(SMALL, norm=False)
    batch.extra["adversarial"] = batch.x
    loss = SMALL.loss(system, batch, step)
    assert step.said["loss_kl"].abs() < 1e-7
    expected = gradients(system, F.cross_entropy(system(batch.x), batch.y))
    torch.testing.assert_close(gradients(system, loss), expected, rtol=1e-4, atol=1e-6)


def test_beta_zero_is_plain_training_where_no_batch_norm_sees_the_adversary():
    def trained(recipe):
        model = cnn(norm=False)
        model[8].p = 0.0
        return Trainer(epochs=2, batch=8, optimizer=SGD(0.05), accelerator="cpu").fit(recipe, model, images()).last

    assert same(trained(replace(SMALL, beta=0.0)), trained(Standard()))
    assert not same(trained(SMALL), trained(Standard()))


def test_the_attack_raises_the_divergence_from_the_clean_prediction_in_eval_mode():
    system = system_of(TRADES())
    for _ in range(3):
        system(batch_of().x)  # batch statistics and running ones differ
    step = step_of()
    batch = TRADES().craft(system, batch_of(), step)
    x, adversarial = batch.x, batch.extra["adversarial"]
    assert (adversarial - x).abs().max() <= 8 / 255 + 1e-6
    assert system.training
    system.eval()
    start = divergence(system(x), system(x + 0.001 * step.rows.normal(x.shape[1:], "any")))
    reached = divergence(system(x), system(adversarial))
    assert (reached > 10 * start).all()
    other = step.attack(PGD(Linf(8 / 255), steps=10, step=0.25, random_start=0.001), system.model, x, batch.y)
    assert not torch.equal(other, adversarial)  # the cross-entropy goes elsewhere


def test_a_step_costs_the_least_that_it_can():
    recipe, system, step = TRADES(), system_of(TRADES()), step_of()
    with count_passes(system.model) as passes:
        batch = recipe.craft(system, batch_of(), step)
        recipe.loss(system, batch, step).backward()
    assert passes.forward_calls == 1 + 10 + 2  # the clean prediction once, the steps, the two passes learned from
    assert passes.backward_calls == 10 + 2


@pytest.mark.parametrize("beta", [-1.0, float("inf"), float("nan")])
def test_bad_weights_are_refused(beta):
    with pytest.raises(BadInput, match="beta"):
        TRADES(beta=beta)
