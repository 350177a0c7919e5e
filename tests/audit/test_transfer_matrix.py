"""The transfer matrix against one made by hand, and what it promises."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import withstand as ws
from withstand.audit.craft import towards
from withstand.audit.transfer import ssim, transfer
from withstand.errors import BadInput
from withstand.metrics import wilson
from withstand.random import Rows, derive

A = ws.attacks
X = (Rows.count(0, 150).uniform((3, 8, 8), "x") * 255).round() / 255


class Net(nn.Module):
    """A linear part that all share and a part of their own, so that points transfer in part."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.shared = nn.Linear(192, 4, bias=False)
            torch.manual_seed(seed)
            self.own = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))

    def forward(self, x):
        return 10 * self.shared(x.flatten(1) - 0.5) + self.own(x - 0.5)


@pytest.fixture(scope="module")
def models():
    return {name: Net(seed).eval() for seed, name in enumerate("abc")}


@pytest.fixture(scope="module")
def labels(models):
    y = models["a"](X).argmax(1)
    y[::10] = (y[::10] + 1) % 4
    return y


@pytest.fixture(scope="module")
def found(models, labels, tmp_path_factory):
    out = tmp_path_factory.mktemp("matrix") / "run"
    b_c = {k: models[k] for k in "bc"}
    made = transfer({"a": models["a"]}, b_c, (X, labels), ["mi", "pgd"], out=out, threat="linf(0.05)", device="cpu")
    return made, out


def test_every_cell_is_the_share_of_commonly_right_images_that_are_fooled(found, models, labels):
    made, _ = found
    with torch.no_grad():
        right = torch.stack([m(X).argmax(1) == labels for m in models.values()]).all(0)
    assert made["kept"] == int(right.sum()) < len(X)
    assert made["kept"] > 30
    fooled = dict.fromkeys(models, 0)
    linf = []
    for start in (0, 128):
        ids = torch.arange(start, min(start + 128, 150))
        ids = ids[right[ids]]
        attack = A.MI(ws.Linf(0.05))
        z = attack(models["a"], X[ids], labels[ids], seed=derive(0, "mi"), ids=ids)
        z = towards(z, X[ids])
        linf.append((z - X[ids]).abs().flatten(1).amax(1))
        for name, model in models.items():
            fooled[name] += int((model(z).argmax(1) != labels[ids]).sum())
    cells = {c["target"]: c for c in made["cells"] if c["attack"] == "mi"}
    assert {t: round(c["success"] * made["kept"]) for t, c in cells.items()} == fooled
    assert 0 < fooled["b"] < made["kept"]
    assert {t for t, c in cells.items() if c["white_box"]} == {"a"}
    for target, cell in cells.items():
        assert (cell["low"], cell["high"]) == wilson(fooled[target], made["kept"])
    run = made["runs"][0]
    assert run["linf"] == pytest.approx(float(torch.cat(linf).mean()), abs=1e-6)
    assert run["passes"] == 20
    assert 0 < run["ssim"] < 1


def test_files_say_the_same(found):
    made, out = found
    assert json.loads((out / "transfer.json").read_text())["cells"] == made["cells"]
    text = (out / "transfer.md").read_text()
    rate = f"{100 * made['cells'][0]['success']:.1f}"
    assert rate in text
    assert "| a * |" in text
    page = (out / "index.html").read_text()
    assert page.count("<svg") == 2
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")
    assert rate in page


def test_a_second_call_does_nothing_again_and_a_lost_piece_is_redone(found, models, labels, monkeypatch):
    made, out = found
    arguments = ({"a": models["a"]}, {k: models[k] for k in "bc"}, (X, labels), ["mi", "pgd"])
    calls = []
    real = A.PGD.run
    monkeypatch.setattr(A.PGD, "run", lambda self, *a, **k: calls.append(self) or real(self, *a, **k))
    again = transfer(*arguments, out=out, threat="linf(0.05)", device="cpu")
    assert not calls
    assert again["cells"] == made["cells"]
    pieces = sorted(out.rglob("*.parquet"))
    assert len(pieces) == 4
    pieces[0].unlink()
    assert transfer(*arguments, out=out, threat="linf(0.05)", device="cpu")["cells"] == made["cells"]
    assert len(calls) == 1
    with pytest.raises(BadInput):
        transfer(*arguments, out=out, threat="linf(0.06)", device="cpu")


def test_a_target_that_is_the_surrogate_is_marked_white_box(models, labels, tmp_path):
    both = {k: models[k] for k in "ab"}
    made = transfer(both, both, (X, labels), ["mi"], out=tmp_path / "r", threat="linf(0.05)", device="cpu", seeds=2)
    pairs = {(c["surrogate"], c["target"]): c["white_box"] for c in made["cells"]}
    assert pairs == {("a", "a"): True, ("a", "b"): False, ("b", "b"): True, ("b", "a"): False}
    assert len({c["n"] for c in made["cells"]}) == 1
    assert {c["interval"] for c in made["cells"]} == {"bootstrap"}
    assert made["seeds"] == 2


def test_structural_similarity_is_that_of_its_authors(models):
    z = (X + 0.1 * Rows.count(3, 150).normal((3, 8, 8), "n")).clamp(0, 1)
    assert torch.allclose(ssim(X, X), torch.ones(150, dtype=torch.float64))
    mine = ssim(X[:3], z[:3])
    for n in range(3):
        values = []
        line = np.exp(-((np.arange(7) - 3) ** 2) / (2 * 1.5**2))
        w = np.outer(line, line) / np.outer(line, line).sum()
        for c in range(3):
            for i in range(2):
                for j in range(2):
                    a, b = (v[n, c, i : i + 7, j : j + 7].double().numpy() for v in (X, z))
                    ma, mb = (w * a).sum(), (w * b).sum()
                    va, vb = (w * (a - ma) ** 2).sum(), (w * (b - mb) ** 2).sum()
                    both = (w * (a - ma) * (b - mb)).sum()
                    c1, c2 = 1e-4, 9e-4
                    values.append((2 * ma * mb + c1) * (2 * both + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2)))
        assert float(mine[n]) == pytest.approx(np.mean(values), rel=1e-9)


@pytest.mark.peers
def test_structural_similarity_agrees_with_skimage():
    metrics = pytest.importorskip("skimage.metrics")
    x = Rows.count(0, 2).uniform((3, 32, 32), "x", dtype=torch.float64)
    z = (x + 0.1 * Rows.count(3, 2).normal((3, 32, 32), "n", dtype=torch.float64)).clamp(0, 1)
    for mine, a, b in zip(ssim(x, z), x, z):
        settings = {"gaussian_weights": True, "use_sample_covariance": False, "data_range": 1, "channel_axis": 0}
        _, full = metrics.structural_similarity(a.numpy(), b.numpy(), full=True, **settings)
        assert float(mine) == pytest.approx(float(full[:, 5:-5, 5:-5].mean()), rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"attacks": []}, "attacks"),
        ({"attacks": ["mi", "mi"]}, "twice"),
        ({"attacks": ["square"]}, "gradients"),
        ({"attacks": ["no_such"]}, "no_such"),
        ({"seeds": 0}, "seeds"),
        ({"engine": "cloud"}, "engine"),
        ({"threat": "linf()"}, "radius"),
        ({"targets": {}}, "models"),
        ({"targets": {"five": 5}}, "classes"),
        ({"data": "wrong"}, "gets right"),
    ],
)
def test_what_does_not_fit_is_refused(changes, said, models, labels, tmp_path):
    settings = {"surrogates": {"a": models["a"]}, "targets": {"b": models["b"]}, "data": (X, labels)}
    settings |= {"attacks": ["mi"], "out": tmp_path / "r", "device": "cpu"}
    if changes.get("targets"):
        changes = {"targets": {"five": nn.Sequential(nn.Flatten(), nn.Linear(192, 5))}}
    if changes.get("data"):
        changes = {"data": (X, (models["a"](X).argmax(1) + 1) % 4)}
    with pytest.raises(BadInput, match=said):
        transfer(**(settings | changes))
