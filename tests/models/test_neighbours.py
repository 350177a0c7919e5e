"""Classifiers by the nearest neighbours in hidden layers."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

import withstand as ws
from withstand.attacks.engine.outputs import see as seen_by_attacks
from withstand.data import from_arrays
from withstand.errors import BadInput
from withstand.models import DeepKNN, HiddenKNN, TorchTarget, as_target, frozen, knn_classifier, knn_of

LAYERS = ["1", "3"]


def net(dropout: float = 0.0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Flatten(),
            nn.Linear(16, 12),
            nn.Dropout(dropout),
            nn.Sequential(nn.ReLU(), nn.Linear(12, 6)),
            nn.Linear(6, 3),
        )


def examples(n: int = 40, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 1, 4, 4, generator=generator), torch.randint(0, 3, (n,), generator=generator)


def knn(k: int = 5, layers=LAYERS, kind=HiddenKNN, **options) -> HiddenKNN:
    return kind(net(), layers, *examples(), k=k, classes=3, **options)


def features(layer: str, x: torch.Tensor) -> torch.Tensor:
    parts = net()
    return parts[:2](x) if layer == "1" else parts[:4](x)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_votes_are_those_of_scikit_learn(metric) -> None:
    x, (x_ref, y_ref) = examples(25, 1)[0], examples()
    votes = knn(metric=metric).votes(x)
    for layer in LAYERS:
        peer = KNeighborsClassifier(5, algorithm="brute", metric="euclidean" if metric == "l2" else metric)
        peer.fit(features(layer, x_ref).detach().numpy(), y_ref.numpy())
        expected = torch.from_numpy(peer.predict_proba(features(layer, x).detach().numpy())).float()
        assert torch.allclose(votes[layer], expected)
        assert torch.allclose(votes[layer].sum(1), torch.ones(25))
        assert torch.equal((votes[layer] * 5).round() / 5, votes[layer])


def test_one_neighbour_is_one_hot_and_all_of_them_are_the_prior() -> None:
    x, y_ref = examples(10, 1)[0], examples()[1]
    assert set(knn(1).votes(x)["1"].unique().tolist()) == {0.0, 1.0}
    prior = torch.bincount(y_ref, minlength=3) / 40
    assert torch.allclose(knn(40).votes(x)["3"], prior.expand(10, 3))


def test_scores_are_the_logarithm_of_the_pooled_shares() -> None:
    x, made = examples(10, 1)[0], knn()
    shares = torch.stack(list(made.votes(x).values())).mean(0)
    assert torch.allclose(made(x).softmax(1), shares, atol=1e-5)
    assert torch.equal(made.predict(x), shares.argmax(1))


def test_tied_classes_go_to_the_smallest_index() -> None:
    made = knn()
    counts = torch.tensor([[[0.0, 2, 2], [1, 1, 1]], [[1.0, 2, 2], [2, 2, 2]]])
    assert made.scores(counts).argmax(1).tolist() == [1, 0]


def test_votes_have_no_gradient_but_features_have() -> None:
    made, x = knn(), examples(6, 1)[0].requires_grad_()
    assert not made(x).requires_grad
    with pytest.raises(BadInput, match="an output without a gradient"):
        ws.attacks.PGD()(made, x.detach())
    with pytest.raises(BadInput, match="access to decision, features, neighbours, scores only"):
        ws.attacks.PGD()(as_target(made), x.detach())
    for model in (made, as_target(made), made.target("t")):
        seen = seen_by_attacks(model, x, ("features.0", ">features.1", "backbone", "ballots.1"))
        assert torch.equal(seen.features.pop("ballots.1"), made.votes(x)["3"])
        assert torch.allclose(seen.features["features.0"], F.normalize(features("1", x), dim=1))
        assert torch.allclose(seen.features[">features.1"], features("3", x))
        assert torch.allclose(seen.features["backbone"], net()(x))
        for h in seen.features.values():
            assert torch.autograd.grad(h.square().sum(), x, retain_graph=True)[0].any()


def test_a_zero_activation_is_no_nan() -> None:
    made = HiddenKNN(
        nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(4, 2)), ["1"], torch.rand(5, 4), torch.arange(5) % 2
    )
    assert torch.isfinite(made(torch.zeros(2, 4))).all()


def test_the_backbone_is_a_copy_in_eval_mode_whatever_happens() -> None:
    given = net(0.5).train()
    made = HiddenKNN(given, LAYERS, *examples(), k=5, classes=3)
    assert all(part.training for part in given.modules())
    assert all(p.requires_grad for p in given.parameters())
    x = examples(8, 1)[0]
    made.train()
    assert not any(part.training for part in made.backbone.modules())
    with frozen(made, "train"):
        assert torch.equal(made(x), made(x))
    assert not any(p.requires_grad for p in made.parameters())
    with torch.no_grad():
        given[1].weight.zero_()
    assert made.backbone.model[1].weight.any()


def test_logits_can_be_a_layer_and_wrappers_are_seen_through() -> None:
    wrapped = TorchTarget(ws.models.Normalised(net(), (0.0,), (1.0,)), "n")
    x = examples(7, 1)[0]
    made = HiddenKNN(wrapped, ["3", "logits"], *examples(), k=5, classes=3)
    assert torch.equal(made.votes(x)["3"], knn().votes(x)["3"])
    peer = KNeighborsClassifier(5, algorithm="brute", metric="cosine").fit(net()(examples()[0]).detach(), examples()[1])
    assert torch.allclose(made.votes(x)["logits"].double(), torch.from_numpy(peer.predict_proba(net()(x).detach())))


def test_references_are_the_nearest_of_every_class() -> None:
    made, x, (x_ref, y_ref) = knn(), examples(4, 1)[0], examples()
    found, labels = made.references("3", x, 2)
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    h, bank = F.normalize(features("3", x), dim=1), F.normalize(features("3", x_ref), dim=1)
    for i in range(4):
        for c in range(3):
            own = bank[y_ref == c]
            expected = own[(own @ h[i]).argsort(descending=True)[:2]]
            assert torch.allclose(found[i, 2 * c : 2 * c + 2], expected, atol=1e-6)
    assert not found.requires_grad


def test_an_example_of_the_references_can_be_left_out() -> None:
    made, (x_ref, y_ref) = knn(1), examples()
    assert made.positions(torch.cat([x_ref[[7, 3]], examples(1, 1)[0]])).tolist() == [7, 3, -1]
    own = made.positions(x_ref)
    assert torch.equal(made.predict(x_ref), y_ref)
    assert (made.votes(x_ref, own)["1"].argmax(1) != y_ref).any()
    with_self, _ = made.references("1", x_ref, 2)
    apart, labels = made.references("1", x_ref, 1, own)
    for i, y in enumerate(y_ref.tolist()):
        for c in range(3):
            at = int((labels == c).nonzero())
            assert torch.equal(apart[i, at], with_self[i, 2 * c + (c == y)])


def test_p_values_conform_with_the_calibration() -> None:
    calibration = examples(20, 2)
    deep = knn(4, kind=DeepKNN, calibration=calibration)
    assert torch.equal(deep.predict(examples(9, 1)[0]), deep.p_values(examples(9, 1)[0]).argmax(1))
    shallow = knn(4)

    def strange(x: torch.Tensor) -> torch.Tensor:
        return sum(4 - 4 * v for v in shallow.votes(x).values())  # type: ignore[return-value]

    known = [float(strange(calibration[0])[i, y]) for i, y in enumerate(calibration[1].tolist())]
    x = examples(9, 1)[0]
    expected = [[sum(a <= b for b in known) / 20 for a in row] for row in strange(x).tolist()]
    assert torch.allclose(deep.p_values(x), torch.tensor(expected))
    assert torch.allclose(deep.credibility(x), torch.tensor(expected).amax(1))
    assert torch.allclose(deep(x).exp(), torch.tensor(expected).clamp_min(1e-6))


def test_more_votes_never_lower_a_p_value_and_agreement_has_p_one() -> None:
    deep = knn(4, kind=DeepKNN, calibration=examples(20, 2))
    counts = torch.randint(0, 4, (2, 50, 3), generator=torch.Generator().manual_seed(0)).float()
    before = deep.scores(counts)
    for layer in range(2):
        more = counts.clone()
        more[layer, :, 1] += 1
        assert (deep.scores(more)[:, 1] >= before[:, 1]).all()
    agreed = torch.tensor([0.0, 4, 0]).expand(2, 1, 3)
    assert deep.scores(agreed)[0, 1] == 0


def test_a_classifier_of_a_data_set_is_a_target() -> None:
    x, y = examples()
    data = from_arrays(x, y, classes=3)
    target = knn_classifier(net(), data, LAYERS, k=3)
    assert target.space.classes == 3
    assert target.space.shape == (1, 4, 4)
    assert torch.equal(target(x), knn(3)(x))
    assert knn_of(target) is knn_of(target.model) is target.model
    few = knn_classifier(net(), data, LAYERS, k=3, per_class=4, seed=1).model
    assert few.labels.bincount().tolist() == [4, 4, 4]
    again = knn_classifier(net(), data, LAYERS, k=3, per_class=4, seed=1).model
    assert torch.equal(few.contents, again.contents)
    assert not torch.equal(few.contents, knn_classifier(net(), data, LAYERS, k=3, per_class=4, seed=2).model.contents)
    calibrated = knn_classifier(net(), data, LAYERS, k=3, calibration=examples(10, 2))
    assert isinstance(calibrated.model, DeepKNN)


def test_fingerprints_tell_references_layers_and_k_apart() -> None:
    prints = {
        knn().target().fingerprint(),
        knn(4).target().fingerprint(),
        knn(layers=["3", "1"]).target().fingerprint(),
        knn(metric="l2").target().fingerprint(),
        HiddenKNN(net(), LAYERS, examples()[0], (examples()[1] + 1) % 3, k=5, classes=3).target().fingerprint(),
        HiddenKNN(net(), LAYERS, *examples(seed=3), k=5, classes=3).target().fingerprint(),
    }
    assert len(prints) == 6
    assert knn().target().fingerprint() == copy.deepcopy(knn()).target().fingerprint()


@pytest.mark.parametrize("calibrated", [False, True])
def test_a_saved_classifier_comes_back_as_a_model(tmp_path, calibrated) -> None:
    train, test = ws.load_data("digits", split="train", limit=200), ws.load_data("digits", limit=30)
    base = ws.load_model("zoo:digits_cnn", pretrained=False)
    target = knn_classifier(base, train, ["5", "8"], k=5, calibration=ws.load_data("digits") if calibrated else None)
    target.model.save(tmp_path)
    back = ws.load_model(f"artefact:{tmp_path}")
    x = test.batch(range(30)).x
    assert torch.equal(back(x), target(x))
    assert back.fingerprint() == target.fingerprint()
    assert back.space == target.space
    assert back.name == "knn(zoo:digits_cnn)"
    described = json.loads((tmp_path / "artefact.json").read_text())
    del described["knn"]["layers"]
    (tmp_path / "artefact.json").write_text(json.dumps(described))
    with pytest.raises(BadInput, match="damaged"):
        ws.load_model(f"artefact:{tmp_path}")


def test_p_values_of_votes_alone_are_refused_by_the_name_of_what_has_them() -> None:
    plain = knn()
    for ask in (plain.p_values, plain.credibility):
        with pytest.raises(BadInput, match=r"allowed: a DeepKNN.*calibration"):
            ask(examples(2, 1)[0])


def test_what_makes_no_classifier_is_refused(tmp_path) -> None:
    x, y = examples()
    blind = net()
    with torch.no_grad():
        blind[1].weight[0, 0] = float("nan")
    for make, said in [
        (lambda: knn(41), "k: got 41; allowed: 1 to 40"),
        (lambda: knn(0), "k: got 0"),
        (lambda: knn(layers=["layer9"]), "there is no 'layer9'"),
        (lambda: knn(layers=[]), "layers"),
        (lambda: knn(layers="3"), "layers"),
        (lambda: knn(layers=["3", "3"]), "different"),
        (lambda: knn(metric="dot"), "metric"),
        (lambda: HiddenKNN(net(), LAYERS, x, y, classes=2), "labels below 2"),
        (lambda: HiddenKNN(net(), LAYERS, x, y[:5]), "x_ref"),
        (lambda: HiddenKNN(net(), LAYERS, x, y.float()), "x_ref"),
        (lambda: HiddenKNN(net(), LAYERS, x, y - 1), "x_ref"),
        (lambda: HiddenKNN(net(), LAYERS, x[:0], y[:0]), "x_ref"),
        (lambda: HiddenKNN(blind, LAYERS, x, y), "NaN"),
        (lambda: knn(kind=DeepKNN, calibration=(x[:0], y[:0])), "calibration"),
        (lambda: knn(kind=DeepKNN, calibration=examples(4)), "calibration: got 4 examples that are references"),
        (lambda: knn(kind=DeepKNN, calibration=(examples(4, 1)[0], torch.tensor([0, 1, 2, 3]))), "labels below 3"),
        (lambda: knn().references("2", x, 1), "there is no '2'"),
        (lambda: knn().references("3", x, 40), "per_class: got 40; allowed: 1 to"),
        (lambda: HiddenKNN(net(), LAYERS, x, y, classes=4).references("3", x, 1), "class 3 has"),
        (lambda: knn_of(net()), "a kNN classifier"),
        (lambda: knn().save(tmp_path), "a model that load_model made"),
        (lambda: knn_classifier(net(), from_arrays(x, None), LAYERS), "without labels"),
        (lambda: knn_classifier(net(), from_arrays(x, y, classes=3), LAYERS, per_class=40), "per_class"),
    ]:
        with pytest.raises(BadInput, match=said):
            make()
