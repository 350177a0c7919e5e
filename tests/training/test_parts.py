"""Schedules, averages, augmentations and logs against closed forms and naive references."""

import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from tests.training.conftest import Points, net
from withstand.hardening.standard import Standard
from withstand.protocols import Batch
from withstand.random import Rows
from withstand.registry import parse
from withstand.training import Step, Trainer
from withstand.training.augment import crop_flip, pairs
from withstand.training.averaging import EMA, SWA, Average
from withstand.training.logs import as_csv, logger


def a_step(n: int, at: int = 0) -> Step:
    return Step(step=at, steps=10, epoch=0, epochs=1, seed=3, rows=Rows.count(5, n))


@pytest.mark.parametrize(
    ("text", "points"),
    [
        ("constant", {0: 1, 0.5: 1}),
        ("cosine", {0: 1, 0.25: (1 + math.cos(math.pi / 4)) / 2, 0.5: 0.5, 1: 0}),
        ("cosine(warmup=0.2, last=0.1)", {0: 0, 0.1: 0.5, 0.2: 1, 0.6: 0.55, 1: 0.1}),
        ("cosine_arc", {0: 1, 0.5: math.cos(7 * math.pi / 32), 1: math.cos(7 * math.pi / 16)}),
        ("steps", {0.9: 1, 100 / 110: 0.1, 105 / 110: 0.01}),
        ("linear(after=0.6)", {0: 1, 0.6: 1, 0.8: 0.5, 1: 0}),
        ("one_cycle(peak=0.4)", {0: 0, 0.2: 0.5, 0.4: 1, 0.7: 0.5, 1: 0}),
    ],
)
def test_schedules(text, points):
    schedule = parse(text, "schedule")
    for progress, factor in points.items():
        assert schedule(progress) == pytest.approx(factor, abs=1e-12)


def drifting(steps: int):
    model = nn.Linear(1, 1, bias=False)
    model.register_buffer("count", torch.tensor(0))
    for t in range(1, steps + 1):
        with torch.no_grad():
            model.weight.fill_(float(t))
            model.count.fill_(t)
        yield t, model


def test_the_exponential_average_is_the_recursion():
    average, expected = None, None
    for t, model in drifting(30):
        if average is None:
            average, expected = Average(EMA(0.8), model), 1.0
            continue
        average.update(model, t, t / 30)
        d = min(0.8, (1 + t) / (10 + t))
        expected = d * expected + (1 - d) * t
    assert float(average.state["weight"]) == pytest.approx(expected, rel=1e-6)
    assert int(average.state["count"]) == 30


def test_the_stochastic_average_is_the_mean_of_the_last_part():
    average = None
    for t, model in drifting(20):
        average = average or Average(SWA(0.75), model)
        average.update(model, t, t / 20)
    assert float(average.state["weight"]) == pytest.approx(np.mean(range(15, 21)), rel=1e-6)


def test_the_average_is_worn_and_taken_off():
    (_, model), *_ = list(drifting(1))
    average = Average(EMA(), model)
    with torch.no_grad():
        model.weight.fill_(9.0)
    with average.worn_by(model):
        assert model.weight.item() == 1.0
    assert model.weight.item() == 9.0


def test_validation_sees_the_average():
    trainer = Trainer(epochs=1, batch=16, averaging="swa(0.0)", accelerator="cpu")
    seen = []

    class Watch(Standard):
        def updates(self, system, batch, step):
            yield from super().updates(system, batch, step)
            seen.append(system.model[0].weight.detach().clone())

    fitted = trainer.fit(Watch(), net(), Points())
    torch.testing.assert_close(fitted.last[0].weight.detach(), torch.stack(seen).mean(0))


@pytest.mark.parametrize("flip", [True, False])
def test_crops_and_flips_are_those_of_a_loop(flip):
    x = torch.rand(20, 2, 5, 7)
    step = a_step(20)
    found = crop_flip(x, step, 2, flip)
    draws = step.rows.integers((2,), 0, 5, "crop")
    mirrored = (step.rows.bits((1,), "flip") < 0).flatten() & flip
    padded = np.pad(x.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)))
    for i, (top, left) in enumerate(draws.tolist()):
        expected = padded[i, :, top : top + 5, left : left + 7]
        expected = expected[..., ::-1] if mirrored[i] else expected
        assert np.array_equal(found[i].numpy(), expected)
    assert set(draws.flatten().tolist()) == set(range(5))
    assert not flip or 3 < int(mirrored.sum()) < 17


def test_mixup_mixes_images_and_labels_alike():
    batch = Batch(torch.rand(6, 1, 2, 2), torch.tensor([0, 1, 2, 0, 1, 2]), torch.arange(6))
    step = a_step(6, at=4)
    mixed = parse("mixup(0.7)", "augmentation")(batch, step, 3)
    lam, order = pairs(6, 0.7, step, "mixup")
    assert 0 < lam < 1
    onehot = np.eye(3)[batch.y]
    np.testing.assert_allclose(mixed.x, lam * batch.x.numpy() + (1 - lam) * batch.x.numpy()[order], rtol=1e-6)
    np.testing.assert_allclose(mixed.y, lam * onehot + (1 - lam) * onehot[order], rtol=1e-6)


def test_the_share_of_mixup_follows_its_distribution():
    shares = np.array([pairs(2, 1.0, a_step(2, at=t), "m")[0] for t in range(2000)])
    assert abs(shares.mean() - 1 / 2) < 0.02
    assert abs(shares.var() - 1 / 12) < 0.01
    assert pairs(5, 0.0, a_step(5), "m")[0] == 1.0


def test_the_history_is_a_table_with_all_columns():
    text = as_csv([{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25, "accuracy": 1.0}])
    assert text == "epoch,loss,accuracy\n1,0.5,\n2,0.25,1.0\n"


def test_tensorboard_gets_the_numbers(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = logger("tensorboard", tmp_path)
    log(10, {"epoch": 1, "step": 10, "loss": 0.5})
    log(20, {"epoch": 2, "step": 20, "loss": 0.25})
    events = EventAccumulator(str(tmp_path)).Reload()
    assert events.Tags()["scalars"] == ["loss"]
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(10, 0.5), (20, 0.25)]


def test_an_unknown_logger_is_refused(tmp_path):
    from withstand.errors import BadInput

    with pytest.raises(BadInput, match="Did you mean tensorboard"):
        logger("tensorbord", tmp_path)


def test_mlflow_gets_the_numbers_of_every_epoch(monkeypatch, tmp_path):
    told = []
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(log_metrics=lambda row, step: told.append((step, row))))
    log = logger("mlflow", tmp_path)
    log(7, {"epoch": 1, "step": 7, "loss": 0.5, "accuracy": 1, "note": "text"})
    assert told == [(7, {"loss": 0.5, "accuracy": 1.0})]
