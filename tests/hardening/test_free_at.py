import pytest
import torch
import torch.nn.functional as F

from tests.hardening.conftest import cnn, images
from tests.hardening.steps import batch_of, by_hand, step_of, system_of
from tests.training.conftest import same
from withstand.errors import BadInput
from withstand.hardening.free_at import Carried, FreeAT
from withstand.hardening.harden import judge_of
from withstand.models import count_passes
from withstand.threats import L2, Linf
from withstand.training import EMA, SGD, Trainer

EPS = 0.1
QUICK = {"epochs": 2, "batch": 8, "optimizer": SGD(0.05), "accelerator": "cpu"}


def naive(model, optimizer, batches, replays, delta):
    """The published loop: one backward pass moves the weights and the perturbation."""
    for batch in batches:
        for _ in range(replays):
            point = (batch.x + delta).clamp(0, 1).requires_grad_(True)
            optimizer.zero_grad()
            F.cross_entropy(model(point), batch.y).backward()
            optimizer.step()
            delta = (delta + EPS * point.grad.sign()).clamp(-EPS, EPS)
    return delta


def test_it_is_the_published_loop_and_the_perturbation_is_carried_over():
    recipe = FreeAT(Linf(EPS), replays=3)
    system, other = system_of(recipe), system_of(recipe)
    ours, theirs = (torch.optim.SGD(s.model.parameters(), 0.1, 0.9) for s in (system, other))
    batches = [batch_of(), images().batch(range(12, 24))]
    for batch in batches:
        by_hand(recipe, system, ours, batch, step_of())
    delta = naive(other.model, theirs, batches, 3, torch.zeros_like(batches[0].x))
    assert same(system.model, other.model)
    assert torch.equal(system.carried.delta, delta)
    assert delta.abs().max() == EPS


def test_one_replay_from_zero_costs_one_pass_and_leaves_the_step_of_fgsm():
    recipe = FreeAT(Linf(EPS), replays=1)
    system, batch = system_of(recipe), batch_of()
    point = batch.x.clone().requires_grad_(True)
    F.cross_entropy(system_of(recipe).model(point), batch.y).backward()
    with count_passes(system.model) as passes:
        by_hand(recipe, system, torch.optim.SGD(system.model.parameters(), 0.1), batch, step_of())
    assert (passes.forward_calls, passes.backward_calls) == (1, 1)
    assert torch.equal(system.carried.delta, EPS * point.grad.sign())


def test_values_at_the_border_can_leave_it():
    carried = Carried().shaped(torch.ones(1, 2))
    carried.climb(torch.tensor([[1.0, -1.0]]), Linf(EPS))
    carried.climb(torch.tensor([[-1.0, -1.0]]), Linf(EPS))
    torch.testing.assert_close(carried.delta, torch.tensor([[0.0, -EPS]]))


def test_an_overflow_is_not_carried_on():
    carried = Carried().shaped(torch.ones(1, 2))
    carried.climb(torch.tensor([[torch.nan, 2.0]]), L2(0.5))
    torch.testing.assert_close(carried.delta, torch.tensor([[0.0, 0.5]]))


def test_other_threats_bind_the_perturbation_too():
    recipe = FreeAT(L2(0.5), replays=3)
    system = system_of(recipe)
    by_hand(recipe, system, torch.optim.SGD(system.model.parameters(), 0.1), batch_of(), step_of())
    length = system.carried.delta.flatten(1).norm(dim=1)
    assert (length <= 0.5 + 1e-6).all()
    assert (length > 0.1).all()


def test_the_perturbation_travels_with_the_state():
    system, fresh = system_of(FreeAT()), system_of(FreeAT())
    system.carried.delta = torch.rand(4, 1, 8, 8)
    fresh.load_state_dict(system.state_dict())
    assert torch.equal(fresh.carried.delta, system.carried.delta)
    assert fresh.carried.delta is not system.carried.delta
    assert fresh.carried.shaped(torch.zeros(4, 1, 8, 8)).delta.abs().sum() > 0
    assert fresh.carried.shaped(torch.zeros(3, 1, 8, 8)).delta.shape == (3, 1, 8, 8)
    assert fresh.carried.delta.abs().sum() == 0


def test_the_history_shows_the_mean_loss_of_the_replays():
    fitted = Trainer(**QUICK).fit(FreeAT(Linf(0.0), replays=4), cnn(), images())
    still = Trainer(**QUICK | {"optimizer": SGD(1e-9)}).fit(FreeAT(Linf(0.0), replays=4), cnn(), images())
    assert 0 < fitted.history[0]["loss"] < 2
    assert abs(still.history[0]["loss"] - still.history[1]["loss"]) < 0.3
    assert still.history[0]["loss"] < 2


def test_it_goes_together_with_averaged_weights():
    fitted = Trainer(**QUICK, averaging=EMA(0.5)).fit(FreeAT(Linf(EPS), replays=2), cnn(), images(), images())
    assert not same(fitted.last, Trainer(**QUICK).fit(FreeAT(Linf(EPS), replays=2), cnn(), images()).last)


def test_a_batch_in_parts_is_refused_before_an_update_is_made():
    with pytest.raises(BadInput, match=r"accumulate: got 2; allowed: 1 for this recipe.*free_at.*several updates"):
        Trainer(**QUICK, accumulate=2).fit(FreeAT(), cnn(), images())


def test_the_judge_knows_its_threat():
    assert judge_of("auto", FreeAT(Linf(EPS))).threat == Linf(EPS)


@pytest.mark.parametrize(("settings", "said"), [({"replays": 0}, "replays"), ({"threat": "linf()"}, "with a radius")])
def test_bad_settings_are_refused(settings, said):
    with pytest.raises(BadInput, match=said):
        FreeAT(**settings)
