"""The loop: what it does in a step, what it keeps, and how it comes back."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.training.conftest import Points, net, same
from withstand.errors import BadInput, Diverged, Unavailable
from withstand.hardening.standard import Standard
from withstand.protocols import Update
from withstand.training import SGD, Recipe, Step, System, Trainer
from withstand.training import checkpoints as saved

QUICK = {
    "epochs": 2,
    "batch": 16,
    "optimizer": SGD(0.1, weight_decay=0.01),
    "schedule": "constant",
    "accelerator": "cpu",
}


def test_a_step_is_that_of_a_bare_loop(points):
    model = net()
    fitted = Trainer(**QUICK).fit(Standard(), model, points)
    from withstand.training.feed import order

    bare = net()
    optimizer = torch.optim.SGD(bare.parameters(), 0.1, 0.9, weight_decay=0.01)
    for epoch in range(2):
        for rows in order(points, 16, epoch, 0).split(16):
            batch = points.batch(rows.tolist())
            optimizer.zero_grad()
            F.cross_entropy(bare(batch.x), batch.y).backward()
            optimizer.step()
    assert same(fitted.last, bare)
    assert same(model, net())  # the given model stays as it is
    assert fitted.steps == 6
    assert [row["epoch"] for row in fitted.history] == [1, 2]


def test_what_is_left_over_at_the_end_of_an_epoch_is_passed_over():
    seen = []

    class Watch(Standard):
        def craft(self, system, batch, step):
            seen.append(batch.ids.tolist())
            return batch

    Trainer(**QUICK | {"batch": 20}).fit(Watch(), net(), Points(48))
    assert [len(ids) for ids in seen] == [20] * 4
    assert set(seen[0]).isdisjoint(seen[1])
    assert seen[0] + seen[1] != seen[2] + seen[3]


def test_accumulated_parts_make_the_step_of_the_whole_batch(points):
    whole = Trainer(**QUICK).fit(Standard(), net(), points).last
    parts = Trainer(**QUICK, accumulate=4).fit(Standard(), net(), points).last
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_batch_that_cannot_be_cut_evenly_is_refused(points):
    with pytest.raises(BadInput, match="batch: got 16 examples for 1 processes x 3 accumulated parts"):
        Trainer(**QUICK, accumulate=3).fit(Standard(), net(), points)


def test_the_norm_of_the_gradient_is_clipped(points):
    class Steep(Standard):
        def loss(self, system, batch, step):
            return 1e4 * super().loss(system, batch, step)

    plain = SGD(1.0, momentum=0, weight_decay=0)
    moved = (
        Trainer(**QUICK | {"optimizer": plain, "epochs": 1, "batch": 48}, clip_norm=0.5)
        .fit(Steep(), net(), points)
        .last
    )
    change = torch.cat(
        [(a - b).detach().flatten() for a, b in zip(moved.parameters(), net().parameters(), strict=True)]
    )
    assert float(change.norm()) == pytest.approx(0.5, rel=1e-4)


def test_the_schedule_multiplies_the_learning_rate(points):
    fitted = Trainer(**QUICK | {"schedule": "steps(at=(0.5,), factor=0.1)"}).fit(Standard(), net(), points)
    assert [row["lr"] for row in fitted.history] == [0.1, pytest.approx(0.01)]


def test_labels_are_smoothed_as_torch_does(points):
    smooth = Trainer(**QUICK | {"epochs": 1, "batch": 48}, label_smoothing=0.3).fit(Standard(), net(), points)
    batch = points.batch(range(48))
    expected = F.cross_entropy(net()(batch.x), batch.y, label_smoothing=0.3)
    assert smooth.history[0]["loss"] == pytest.approx(expected.item(), rel=1e-5)


class Duel(Recipe):
    """A model and a critic with optimisers of their own, in turns."""

    def setup(self, model, data, rows):
        return System(super().setup(model, data, rows).model, critic=nn.Linear(2, 1))

    def optimizers(self, system, main):
        return {"main": main(system.model.parameters()), "critic": torch.optim.SGD(system.critic.parameters(), 0.5)}

    def updates(self, system, batch, step):
        z = system(batch.x)
        before = [p.detach().clone() for p in system.parameters()]
        yield Update(lambda: system.critic(z.detach()).mean(), "critic")
        after = list(system.parameters())
        assert all(torch.equal(a, b) for a, b in zip(before[:-2], after[:-2], strict=True))
        assert not torch.equal(before[-1], after[-1])
        frozen = []

        def fool():
            frozen.append(not any(p.requires_grad for p in system.critic.parameters()))
            return -system.critic(system(batch.x)).mean()

        critic = [p.detach().clone() for p in system.critic.parameters()]
        yield Update(fool, freeze=[system.critic], before_step=lambda: frozen.append("between"))
        assert frozen == [True, "between"]
        assert all(torch.equal(a, b) for a, b in zip(critic, system.critic.parameters(), strict=True))
        assert all(p.requires_grad for p in system.critic.parameters())


def test_a_recipe_may_have_several_updates_and_optimisers_and_needs_no_labels():
    fitted = Trainer(**QUICK).fit(Duel(), net(), Points(labels=False))
    assert {"loss", "loss_critic"} <= fitted.history[0].keys()
    assert not same(fitted.last, net())


def test_what_a_recipe_says_is_averaged_over_the_epoch(points):
    class Says(Standard):
        def loss(self, system, batch, step):
            step.say("count", step.step)
            return super().loss(system, batch, step)

    history = Trainer(**QUICK).fit(Says(), net(), points).history
    assert [row["count"] for row in history] == [1.0, 4.0]


class Judge:
    """An attack that lets through what it was told, one answer for each validation."""

    keep = "best"

    def __init__(self, *stand):
        self.stand = list(stand)

    def run(self, model, x, y, **_):
        stands = self.stand.pop(0)
        return type("Found", (), {"success": torch.arange(len(x)) >= stands})


def test_the_best_epoch_by_validation_is_returned_and_patience_ends(points, tmp_path):
    trainer = Trainer(**QUICK | {"epochs": 6}, patience=2)
    fitted = trainer.fit(Standard(), net(), points, points, Judge(1, 3, 2, 3, 9), out=tmp_path)
    assert fitted.best_epoch == 2
    assert [row["robust_accuracy"] for row in fitted.history] == [1 / 48, 3 / 48, 2 / 48, 3 / 48]
    assert fitted.stopped == "no better validation for 2 validations"
    assert fitted.overfitting_gap == 0
    two = Trainer(**QUICK | {"schedule": "constant"}).fit(Standard(), net(), points).last
    assert same(fitted.model, two)
    assert not same(fitted.last, two)
    from safetensors.torch import load_file

    assert torch.equal(load_file(tmp_path / "best.safetensors")["0.weight"], two[0].weight)


def test_the_gap_of_robust_overfitting_is_from_the_best_to_the_last(points):
    trainer = Trainer(**QUICK | {"epochs": 3})
    assert trainer.fit(Standard(), net(), points, points, Judge(1, 9, 3)).overfitting_gap == 6 / 48
    assert trainer.fit(Standard(), net(), points, points).overfitting_gap is None


def test_validation_counts_what_is_right_and_what_stands(points):
    from withstand.training.validate import validate

    model = net().eval()
    batch = points.batch(range(48))
    right = int((model(batch.x).argmax(1) == batch.y).sum())
    found = validate(model, points, Judge(5), "cpu", 0)
    assert found == {"accuracy": right / 48, "robust_accuracy": 5 / 48}


# Coming back ----------------------------------------------------------------------------------------------------------

HARD = """
import sys, time
from tests.training.conftest import Points, net
from withstand.hardening.standard import Standard
from withstand.training import Adam, Trainer

class Slow(Standard):
    def craft(self, system, batch, step):
        time.sleep(0.02)
        print(step.step, flush=True)
        return batch

trainer = Trainer(epochs=6, batch=8, optimizer=Adam(0.02), schedule="cosine", averaging="ema(0.9)", augment=(),
                  accelerator="cpu", checkpoint_seconds=0)
trainer.fit(Slow(), net(dropout=0.3, norm=True), Points(), Points(16), out=sys.argv[1])
"""


def test_a_killed_training_ends_in_the_same_weights(tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(["src", ".", os.environ.get("PYTHONPATH", "")])}
    root = Path(__file__).parents[2]

    def start(folder):
        command = [sys.executable, "-c", HARD, str(folder)]
        return subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.PIPE, text=True)

    for stop in (3, 20):  # within the first epoch, and later
        process = start(tmp_path / "killed")
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= stop:
                os.kill(process.pid, signal.SIGKILL)
                break
        process.wait()
        process.stdout.close()
    last = start(tmp_path / "killed")
    steps = last.communicate()[0].split()
    assert 15 < int(steps[0]) <= 21  # it went on, and did not begin again
    assert start(tmp_path / "whole").wait() == 0
    for name in ("last", "best"):
        killed, whole = ((tmp_path / run / f"{name}.safetensors").read_bytes() for run in ("killed", "whole"))
        assert killed == whole


def test_a_finished_training_is_read_back(points, tmp_path):
    first = Trainer(**QUICK).fit(Standard(), net(), points, points, out=tmp_path)
    began = time.perf_counter()
    again = Trainer(**QUICK).fit(Standard(), net(), points, points, out=tmp_path)
    assert same(first.model, again.model)
    assert again.history == first.history
    assert time.perf_counter() - began < 30


def test_another_training_in_the_folder_is_refused_with_what_differs(points, tmp_path):
    Trainer(**QUICK).fit(Standard(), net(), points, out=tmp_path)
    with pytest.raises(BadInput, match=r"another training \(trainer.batch: was 16, is 8\)"):
        Trainer(**QUICK | {"batch": 8}).fit(Standard(), net(), points, out=tmp_path)
    with pytest.raises(BadInput, match=r"model: was live:Sequential:\w+, is live:Sequential:\w+"):
        Trainer(**QUICK).fit(Standard(), net(1), points, out=tmp_path)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(points, tmp_path):
    whole = Trainer(**QUICK).fit(Standard(), net(), points, out=tmp_path / "a").last
    Trainer(**QUICK).fit(Standard(), net(), points, out=tmp_path / "b")
    newest = sorted((tmp_path / "b" / "checkpoints").glob("step-*"))[-1] / "state.safetensors"
    data = bytearray(newest.read_bytes())
    data[-1] ^= 1
    newest.write_bytes(data)
    with pytest.warns(UserWarning, match="damaged .its checksum does not fit.; going on from the one before"):
        again = Trainer(**QUICK).fit(Standard(), net(), points, out=tmp_path / "b").last
    assert same(whole, again)


class Breaks(Standard):
    def loss(self, system, batch, step):
        return super().loss(system, batch, step) * (float("nan") if step.step == 4 else 1)


def test_a_loss_that_is_no_number_stops_the_training_and_keeps_the_last_checkpoint(points, tmp_path):
    with pytest.raises(Diverged, match=r"nan at step 5 of 6 \(epoch 2\).*last good checkpoint stays"):
        Trainer(**QUICK).fit(Breaks(), net(), points, out=tmp_path)
    state = saved.load(tmp_path / "checkpoints", pytest.fail)
    assert state["step"] == 3
    assert all(torch.isfinite(t).all() for t in state["system"].values())


def test_weights_that_are_no_numbers_are_neither_attacked_nor_judged_nor_saved(points, tmp_path):
    from withstand.hardening.pgd_at import PGDAT

    class Explodes(PGDAT):
        def updates(self, system, batch, step):
            yield from super().updates(system, batch, step)
            if step.step == at:
                with torch.no_grad():
                    system.model[0].weight.fill_(float("nan"))

    recipe = Explodes(attack="pgd(l2(0.3), steps=1)")
    for at, said in ((3, r"at step 4 of 6 \(epoch 2\)"), (2, r"at step 3 of 6 \(epoch 1\)")):
        folder = tmp_path / str(at)
        with pytest.raises(Diverged, match=f"model.0.weight holds NaN or infinite values {said}"):
            Trainer(**QUICK).fit(recipe, net(), points, points, out=folder)
        state = saved.load(folder / "checkpoints", pytest.fail)
        assert state is None if at == 2 else state["step"] == 3


def test_a_training_that_fails_at_once_leaves_the_folder_free(points, tmp_path):
    class Refuses(Standard):
        def craft(self, system, batch, step):
            raise BadInput("threat: does not fit")

    with pytest.raises(BadInput, match="does not fit"):
        Trainer(**QUICK).fit(Refuses(), net(), points, out=tmp_path)
    Trainer(**QUICK).fit(Standard(), net(), points, out=tmp_path)


def test_a_full_disk_is_said_and_leaves_the_checkpoint_before(points, tmp_path, monkeypatch):
    from withstand.training import checkpoints

    real, calls = checkpoints.write_atomic, []

    def fills(path, content):
        calls.append(path)
        if len(calls) > 3:  # the second checkpoint finds no room for its second file
            raise Unavailable("cannot write: No space left on device")
        return real(path, content)

    monkeypatch.setattr(checkpoints, "write_atomic", fills)
    with pytest.raises(Unavailable, match="No space left"):
        Trainer(**QUICK).fit(Standard(), net(), points, out=tmp_path)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-000000003"]


def test_two_trainings_in_one_folder_are_refused(points, tmp_path):
    from withstand.files import lock

    with lock(tmp_path), pytest.raises(Unavailable, match="another process"):
        Trainer(**QUICK).fit(Standard(), net(), points, out=tmp_path)


def test_too_little_memory_is_said_with_advice(points):
    class Big(Standard):
        def loss(self, system, batch, step):
            raise torch.OutOfMemoryError("tried to allocate 5 GiB")

    with pytest.raises(Unavailable, match=r"ran out of memory \(tried to allocate 5 GiB\).*accumulate=2"):
        Trainer(**QUICK).fit(Big(), net(), points)


def test_states_are_packed_and_unpacked_as_they_were():
    tree = {"a": torch.arange(3), 7: [torch.ones(2, 2), None, {"b": (1.5, "text")}], "c": True}
    packed, tensors = saved.pack(tree)
    again = saved.unpack(json.loads(json.dumps(packed)), tensors)
    assert torch.equal(again["a"], tree["a"])
    assert torch.equal(again[7][0], tree[7][0])
    assert again[7][1:] == [None, {"b": (1.5, "text")}]
    assert list(again) == ["a", 7, "c"]


def test_steps_say_where_they_stand():
    from withstand.random import Rows

    step = Step(step=30, steps=40, epoch=3, epochs=4, seed=1, rows=Rows.count(0, 4))
    assert step.progress == 0.75
    assert torch.equal(torch.rand(3, generator=step.generator("a")), torch.rand(3, generator=step.generator("a")))
    assert not torch.equal(torch.rand(3, generator=step.generator("a")), torch.rand(3, generator=step.generator("b")))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"epochs": 0}, "epochs: got 0"),
        ({"label_smoothing": 1.5}, "label_smoothing: got 1.5"),
        ({"optimizer": "sgd(-1)"}, "lr: got -1"),
        ({"optimizer": "sdg"}, "Did you mean sgd"),
        ({"schedule": "cosine(warmup=1)"}, "warmup in"),
        ({"averaging": "ema(1.5)"}, "decay: got 1.5"),
        ({"clip_norm": 0.0}, "clip_norm: got 0.0"),
        ({"augment": "crop_flip(-1)"}, "padding: got -1"),
        ({"compile": "inductr"}, "Did you mean inductor"),
    ],
)
def test_bad_settings_are_refused(settings, said):
    with pytest.raises(BadInput, match=said):
        Trainer(**settings)


def test_compiled_parts_learn_the_same_and_are_shipped_as_they_were_given(points):
    recipe = "pgd_at(attack=pgd(l2(0.3), steps=2))"
    plain, compiled = (
        Trainer(epochs=2, batch=16, optimizer=SGD(0.1), accelerator="cpu", compile=backend).fit(recipe, net(), points)
        for backend in (None, "aot_eager")
    )
    assert same(plain.last, compiled.last)
    assert compiled.last._compiled_call_impl is None


class Rectified(nn.Linear):
    def forward(self, x):
        return torch.relu(super().forward(x))


def test_what_cannot_be_compiled_is_said(points):
    trainer = Trainer(epochs=1, batch=16, accelerator="cpu", compile="relu_compile_error_TESTING_ONLY")
    with pytest.raises(Unavailable, match="Leave it out"):
        trainer.fit(Standard(), Rectified(2, 2), points)
