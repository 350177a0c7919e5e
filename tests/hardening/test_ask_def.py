import copy

import pytest
import torch
import torch.nn.functional as F

from tests.hardening import by_hand
from tests.hardening.by_hand import gradients, plain, step_at
from tests.hardening.conftest import ATTACK, cnn, images
from tests.training.conftest import same
from withstand.attacks import PGD
from withstand.attacks.neighbours.soft_knn import ask_loss
from withstand.data import from_arrays
from withstand.errors import BadInput
from withstand.hardening.ask_def import ASKDef, Shelf, SoftVote
from withstand.hardening.pgd_at import PGDAT
from withstand.models.taps import Tap
from withstand.objectives import Margin
from withstand.protocols import Seen
from withstand.random import Rows, derive
from withstand.threats import Linf
from withstand.training import SGD, Trainer
from withstand.training.augment import Mixup

INNER = PGD(Linf(0.2), steps=3, step=1 / 4)
QUICK = {"epochs": 2, "batch": 8, "optimizer": SGD(0.05), "schedule": "cosine", "accelerator": "cpu"}


def ready(*given, **at):
    return by_hand.ready(*given, **at, dtype=torch.float32)  # as the data, from which references come


def recipe(**changes):
    return ASKDef(ATTACK, INNER, **{"per_class": 2, "tau": 0.1, "beta": 0.7} | changes)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_the_loss_is_the_sum_of_its_terms(metric):
    defence = recipe(metric=metric)
    system, batch, step = ready(defence, plain())
    twin = copy.deepcopy(system)
    loss = defence.loss(system, batch, step)
    body = twin.model[:-1]  # train mode, in the order of the recipe
    held, h = body(batch.extra["references"]), body(batch.extra["ask"])
    voted = ask_loss(h, batch.y, held, batch.extra["reference_labels"], 0.1, metric, "instance").mean()
    supervised = F.cross_entropy(twin.model(batch.extra["adversarial"]), batch.y)
    torch.testing.assert_close(loss, supervised + 0.7 * voted)
    torch.testing.assert_close(step.said["loss_ask"], voted)
    for a, b in zip(gradients(loss, system.model), gradients(supervised + 0.7 * voted, twin.model)):
        torch.testing.assert_close(a, b)
    assert same(system, twin)  # the statistics of batch norm, too


def test_the_gradient_flows_through_the_references():
    defence = recipe(beta=1.0)
    system, batch, step = ready(defence, plain(norm=False))
    found = gradients(defence.loss(system, batch, step), system.model)
    body = system.model[:-1]
    with torch.no_grad():
        held = body(batch.extra["references"])
    voted = ask_loss(body(batch.extra["ask"]), batch.y, held, batch.extra["reference_labels"], 0.1, kind="instance")
    supervised = F.cross_entropy(system.model(batch.extra["adversarial"]), batch.y)
    without = gradients(supervised + voted.mean(), system.model)
    assert not torch.allclose(found[0], without[0])


@pytest.mark.parametrize(("kind", "count"), [("both", 2), ("clean", 1), ("adversarial", 1)])
def test_references_carry_the_labels_of_their_images(kind, count):
    """In the official code the labels of nine in ten are another image's."""
    data = images()
    _, batch, _ = ready(recipe(references=kind), plain())
    references, labels = batch.extra["references"], batch.extra["reference_labels"]
    assert len(references) == len(labels) == 2 * 3 * count
    everything = data.batch(range(24))
    seen = set()
    for image, label in zip(references, labels):
        distance = (everything.x - image).abs().flatten(1).amax(1)
        nearest = int(distance.argmin())
        moved = distance[nearest] > 0
        assert distance[nearest] <= 0.1 + 1e-6  # the ball of the attack on the cross-entropy
        assert label == everything.y[nearest]
        seen.add((nearest, bool(moved)))
    assert len(seen) == len(references)  # none twice
    kinds = {"both": {False, True}, "clean": {False}, "adversarial": {True}}
    assert {moved for _, moved in seen} == kinds[kind]


def test_the_vote_is_attacked_in_its_own_ball_and_the_classifier_in_its_own():
    defence = recipe()
    system, batch, _ = ready(defence, plain(norm=False))
    body, labels = system.model[:-1], batch.extra["reference_labels"]

    def vote(x):
        return ask_loss(body(x), batch.y, body(batch.extra["references"]), labels, 0.1, kind="instance")

    assert (batch.extra["ask"] - batch.x).abs().max() == pytest.approx(0.2, abs=1e-6)
    assert (batch.extra["adversarial"] - batch.x).abs().max() == pytest.approx(0.1, abs=1e-6)
    assert vote(batch.extra["ask"]).mean() > vote(batch.x).mean()
    # ... and higher than what the attack on the classifier finds in a ball of the same size
    other = PGD(Linf(0.2), steps=3, step=1 / 4, keep="last", active=False)(system.model, batch.x, batch.y)
    assert vote(batch.extra["ask"]).mean() > vote(other).mean()


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_the_objective_inside_is_the_instance_wise_loss(metric):
    y, labels = torch.arange(5) % 3, torch.tensor([2, 0, 1, 1, 0, 2, 2])
    normal = Rows.count(0, 12).normal((4,), "features")
    h, held = normal[:5], normal[5:]
    vote = SoftVote(Tap("body"), held, labels, 3, 0.3, metric)
    seen = Seen(torch.zeros(5, 1), torch.zeros(5, 3), {"body": h.view(5, 2, 2)})
    torch.testing.assert_close(vote(seen, y, {}), ask_loss(h, y, held, labels, 0.3, metric, "instance"))


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_the_vote_is_attacked_as_the_sheet_says(metric):
    """Steps from a random start, in eval mode, on the instance-wise loss with the labels of the references."""
    system, batch, step = ready(recipe(metric=metric, tau=0.3), plain())
    body, x, labels = system.model.eval()[:-1], batch.x, batch.extra["reference_labels"]
    with torch.no_grad():
        held = body(batch.extra["references"])
    rows = Rows(derive(derive(step.rows.seed, "ask"), "pgd"), step.rows.ids)
    z = Linf(0.2).random_start(x, rows, "pgd", 0, (0.0, 1.0))
    for _ in range(3):
        z.requires_grad_(True)
        loss = ask_loss(body(z), batch.y, held, labels, 0.3, metric, "instance").sum()
        (gradient,) = torch.autograd.grad(loss, z)
        z = (x + (z.detach() + 0.05 * gradient.sign() - x).clamp(-0.2, 0.2)).clamp(0, 1)
    off = (batch.extra["ask"] - z).abs() > 1e-5  # a gradient of zero but for rounding may have either sign
    assert off.float().mean() < 0.01


def test_crafting_leaves_the_statistics_of_batch_norm_alone():
    for mode in ("eval", "train"):
        defence = recipe()
        inner = PGD(Linf(0.2), steps=3, step=1 / 4, mode=mode)
        defence = ASKDef(ATTACK, inner, per_class=2)
        system = defence.setup(cnn(), images(), None).train()
        before = copy.deepcopy(system)
        defence.craft(system, images().batch(range(24)), step_at())
        assert same(system, before)
        assert system.training


def test_without_its_weight_it_is_adversarial_training():
    one, two = (Trainer(**QUICK).fit(r, cnn(), images()).last for r in (ASKDef(ATTACK, beta=0.0), PGDAT(ATTACK)))
    assert same(one, two)


def test_references_are_new_in_every_step_and_the_same_on_every_process():
    one, two, other = (_drawn(rank, step) for rank, step in ((0, 3), (1, 3), (0, 4)))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def _drawn(rank, step):
    return ready(recipe(references="clean"), plain(), step=step, rank=rank)[1].extra["references"]


def test_references_are_augmented_where_it_is_asked_for():
    plain_ones = ready(recipe(references="clean"), plain())[1].extra["references"]
    flipped = ready(recipe(references="clean", augment="crop_flip(padding=0)"), plain())[1].extra["references"]
    mirrored = [bool(torch.equal(a, b.flip(-1))) for a, b in zip(flipped, plain_ones)]
    same_ = [bool(torch.equal(a, b)) for a, b in zip(flipped, plain_ones)]
    assert all(a or b for a, b in zip(mirrored, same_))
    assert not all(same_)


def test_copies_and_checkpoints_do_not_hold_the_data():
    defence, data = recipe(), images()
    system = defence.setup(cnn(), data, None)
    assert copy.deepcopy(system).shelf.data is data
    assert system.state_dict().keys() == {f"model.{name}" for name in cnn().state_dict()}


def test_labels_are_found_with_and_without_a_shortcut():
    class Plain:
        name, classes, space = "plain", images().classes, images().space

        def __len__(self):
            return 24

        def batch(self, positions):
            return images().batch(positions)

    drawn = [Shelf(data, 2).draw(5) for data in (images(), Plain())]
    assert torch.equal(drawn[0].x, drawn[1].x)
    assert drawn[0].y.tolist() == [0, 0, 1, 1, 2, 2]


def test_the_soft_vote_gets_better():
    """Its own objective, on what it was trained for: adversarial examples of the vote."""
    after = Trainer(**QUICK | {"epochs": 15}).fit(recipe(beta=1.0), cnn(), images())
    assert after.history[-1]["loss_ask"] < 0.8 * after.history[0]["loss_ask"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tau": 0.0}, "tau"),
        ({"metric": "dot"}, "metric"),
        ({"beta": -1.0}, "beta"),
        ({"per_class": 0}, "per_class"),
        ({"references": "none"}, "references"),
        ({"ask_attack": PGD(objective=Margin())}, "The recipe sets it"),
        ({"ask_attack": "gpga(linf(0.1), weight=0.0)"}, "takes an objective"),
    ],
)
def test_bad_settings_are_refused(settings, said):
    with pytest.raises(BadInput, match=said):
        ASKDef(**settings)


def test_what_does_not_fit_the_data_is_refused():
    fit = Trainer(**QUICK).fit
    with pytest.raises(BadInput, match="9 with 8 examples of the smallest of 3 classes"):
        fit(ASKDef(ATTACK, INNER, per_class=9), cnn(), images())
    with pytest.raises(BadInput, match="submodule"):
        fit(recipe(features="nowhere"), cnn(), images())
    with pytest.raises(BadInput, match="mixed labels"):
        Trainer(**QUICK, augment=Mixup()).fit(recipe(), cnn(), images())
    with pytest.raises(BadInput, match="leave labels alone"):
        fit(recipe(augment="mixup"), cnn(), images())
    x = images().batch(range(24)).x.numpy()
    with pytest.raises(BadInput, match="label"):
        fit(recipe(), cnn(), from_arrays(x, None, name="bare"))
