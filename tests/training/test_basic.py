import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import withstand as ws
from withstand.errors import BadInput
from withstand.training.basic import fit


def data(n=96):
    rows = ws.Rows.count(0, n)
    x = rows.uniform((1, 4, 4), "x")
    return x, (x[:, 0, 0, 0] + x[:, 0, 1, 1] > 1).long()


def net(p=0.0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 32), nn.ReLU(), nn.Dropout(p), nn.Linear(32, 2))


def same(a, b):
    return all(torch.equal(v, w) for v, w in zip(a.state_dict().values(), b.state_dict().values()))


def test_it_learns_and_leaves_the_model_in_eval_mode():
    x, y = data()
    model = fit(net(), (x, y), 60, lr=1e-2)
    assert (model(x).argmax(1) == y).float().mean() > 0.95
    assert not model.training


@pytest.mark.parametrize("attack", [None, "pgd(linf(0.1), steps=2)"])
def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_generator(attack):
    first = fit(net(0.3), data(), 2, attack, seed=1)
    torch.rand(3)
    state = torch.get_rng_state()
    again = fit(net(0.3), data(), 2, attack, seed=1)
    assert same(first, again)
    assert torch.equal(state, torch.get_rng_state())
    assert not same(first, fit(net(0.3), data(), 2, attack, seed=2))


def test_it_trains_in_train_mode_whatever_the_model_came_in():
    assert not same(fit(net(0.5).eval(), data(), 1), fit(net(0.0).eval(), data(), 1))
    assert same(fit(net(0.5).eval(), data(), 1), fit(net(0.5).train(), data(), 1))


def test_an_attack_of_radius_zero_is_plain_training():
    plain = fit(net(), data(), 2)
    assert same(plain, fit(net(), data(), 2, "pgd(linf(0.0), steps=2)"))
    assert not same(plain, fit(net(), data(), 2, "pgd(linf(0.1), steps=2)"))


def test_one_step_is_adam_on_the_attacked_batch_with_smoothed_labels():
    x, y = data(16)
    trained = fit(net(), (x, y), 1, "fgsm(linf(0.1))", smoothing=0.5, batch=16)
    model = net()
    rows = torch.randperm(16, generator=torch.Generator().manual_seed(ws.random.derive(0, "order", 0)))
    attacked = ws.attacks.FGSM(ws.Linf(0.1), keep="last", active=False)(copy.deepcopy(model), x[rows], y[rows])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    soft = 0.5 * F.one_hot(y[rows], 2) + 0.25
    (-(soft * model(attacked).log_softmax(1)).sum(1)).mean().backward()
    optimizer.step()
    for a, b in zip(trained.parameters(), model.parameters()):
        assert torch.allclose(a, b, atol=2e-5)


def test_progress_counts_epochs():
    seen = []
    fit(net(), data(), 3, progress=seen.append)
    assert seen == [1, 2, 3]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"epochs": 0}, "epochs"),
        ({"batch": 0}, "batch"),
        ({"smoothing": 1.5}, "smoothing"),
        ({"lr": 0.0}, "lr"),
        ({"attack": "pgdd"}, "pgd"),
        ({"data": (torch.zeros(3, 16), torch.zeros(2).long())}, "labels"),
    ],
)
def test_bad_settings_are_refused(settings, said):
    with pytest.raises(BadInput, match=said):
        fit(**{"model": net(), "data": data(), "epochs": 1, **settings})
