"""The ASK loss against closed forms, a naive reference and its limits."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from withstand.attacks.neighbours.soft_knn import ask_loss, similarity
from withstand.errors import BadInput
from withstand.random import Rows

KINDS, METRICS = ("class", "instance"), ("cosine", "l2")
REFERENCES = torch.tensor([[1.0, 0], [0, 2], [3, 0], [0, 1.5]], dtype=torch.float64)
LABELS = torch.tensor([0, 0, 1, 1])


def draws(n: int = 7, c: int = 3, k: int = 4, d: int = 5) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """h [n, d], y [n], references [c * k, d], labels: in float64."""
    normal = Rows.count(0, n + c * k).normal((d,), "features", dtype=torch.float64)
    return normal[:n], torch.arange(n) % c, normal[n:], torch.arange(c).repeat_interleave(k)


def naive(h, y, references, labels, tau, metric, kind, own=None):
    """One example after the other, as the formulas stand."""
    found = []
    for i in range(len(h)):
        refs = references if references.dim() == 2 else references[i]
        said = [int(c) for c in (labels if labels.dim() == 1 else labels[i])]
        pairs = [(refs[j], said[j]) for j in range(len(refs))] + ([(own[i], int(y[i]))] if own is not None else [])
        values: dict[int, list[float]] = {}
        for r, c in pairs:
            cosine = float(h[i] @ r / (h[i].norm() * r.norm()).clamp_min(1e-300))
            s = cosine if metric == "cosine" else -float((h[i] - r).norm())
            values.setdefault(c, []).append(s / tau)
        if kind == "instance":
            sums = {c: sum(math.exp(v) for v in vs) for c, vs in values.items()}
            found.append(-math.log(sums[int(y[i])] / sum(sums.values()) + 1e-6))
        else:
            logits = {c: sum(vs) / len(vs) for c, vs in values.items()}
            found.append(math.log(sum(math.exp(v) for v in logits.values())) - logits[int(y[i])])
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize(
    ("tau", "kind", "value"),
    [(1.0, "instance", 0.433306), (1.0, "class", 0.386871), (0.5, "instance", 0.292789), (0.5, "class", 0.201413)],
)
def test_four_references_in_the_plane(tau, kind, value):
    found = ask_loss(torch.zeros(1, 2).double(), torch.tensor([0]), REFERENCES, LABELS, tau, "l2", kind, floor=0)
    assert found.item() == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("own", [False, True])
def test_it_is_the_formula(metric, kind, own):
    h, y, references, labels = draws()
    mine = h.flip(0) if own else None
    for refs in (references, references.expand(len(h), -1, -1) + 0.1 * h[:, None]):
        found = ask_loss(h, y, refs, labels, 0.3, metric, kind, mine)
        torch.testing.assert_close(found, naive(h, y, refs, labels, 0.3, metric, kind, mine))


@pytest.mark.parametrize("kind", KINDS)
def test_every_example_may_have_references_and_labels_of_its_own(kind):
    h, y, references, labels = draws(n=4)
    orders = [torch.roll(torch.arange(len(labels)), i) for i in range(4)]
    refs, said = torch.stack([references[o] for o in orders]), torch.stack([labels[o] for o in orders])
    shared = ask_loss(h, y, references, labels, 0.3, kind=kind)
    torch.testing.assert_close(ask_loss(h, y, refs, said, 0.3, kind=kind), shared)


@pytest.mark.parametrize("metric", METRICS)
def test_with_one_reference_of_each_class_both_forms_are_one(metric):
    h, y, references, labels = draws(k=1)
    one, other = (ask_loss(h, y, references, labels, 0.3, metric, kind, floor=0) for kind in KINDS)
    torch.testing.assert_close(one, other)
    floored = ask_loss(h, y, references, labels, 0.3, metric, "instance")
    assert ((one - floored).abs() <= 1e-6 * one.exp()).all()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_high_temperature_knows_nothing(metric, kind):
    h, y, references, labels = draws()
    found = ask_loss(h, y, references, labels, 1e6, metric, kind)
    torch.testing.assert_close(found, torch.full_like(found, math.log(3)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("metric", METRICS)
def test_a_low_temperature_decides_as_the_nearest_neighbour(metric):
    h, _, references, labels = draws(n=50)
    s = similarity(h, references, metric)
    nearest = labels[s.argmax(1)]
    losses = torch.stack(
        [ask_loss(h, torch.full((50,), c), references, labels, 1e-3, metric, "instance") for c in range(3)]
    )
    assert torch.equal(losses.argmin(0), nearest)
    y = torch.arange(50) % 3
    found = ask_loss(h, y, references, labels, 1e-4, metric, "instance", floor=0)
    best = torch.stack([s[:, labels == c].amax(1) for c in range(3)], 1)
    gap = best.amax(1) - best.gather(1, y[:, None])[:, 0]
    torch.testing.assert_close(found * 1e-4, gap, rtol=0, atol=1e-3)  # 0 where y is nearest, else (gap) / tau
    assert found[nearest == y].max() < 0.7


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", KINDS)
def test_equal_references_say_nothing(metric, kind):
    h, y, references, labels = draws()
    h.requires_grad_(True)
    found = ask_loss(h, y, references[:1].expand(len(labels), -1), labels, 0.1, metric, kind)
    torch.testing.assert_close(found.detach(), torch.full((7,), math.log(3)).double(), rtol=0, atol=1e-5)
    (gradient,) = torch.autograd.grad(found.sum(), h)
    assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_references_and_the_names_of_classes_do_not_matter(metric, kind):
    h, y, references, labels = draws()
    found = ask_loss(h, y, references, labels, 0.2, metric, kind)
    order = torch.tensor([5, 0, 11, 3, 8, 1, 10, 2, 9, 4, 7, 6])
    torch.testing.assert_close(ask_loss(h, y, references[order], labels[order], 0.2, metric, kind), found)
    name = torch.tensor([2, 0, 1])
    torch.testing.assert_close(ask_loss(h, name[y], references, name[labels], 0.2, metric, kind), found)


@pytest.mark.parametrize("kind", KINDS)
def test_cosines_do_not_see_lengths(kind):
    h, y, references, labels = draws()
    found = ask_loss(h, y, references, labels, 0.2, kind=kind)
    torch.testing.assert_close(ask_loss(h * torch.arange(1, 8)[:, None], y, references, labels, 0.2, kind=kind), found)
    assert not torch.allclose(
        ask_loss(3 * h, y, references, labels, 0.2, "l2", kind), ask_loss(h, y, references, labels, 0.2, "l2", kind)
    )


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_features_and_references(metric, kind):
    h, y, references, labels = draws()
    h, own = h.requires_grad_(True), h.detach().flip(0).requires_grad_(True)
    references.requires_grad_(True)
    each = references.detach().expand(7, -1, -1).clone().requires_grad_(True)

    def loss(h: Tensor, r: Tensor, own: Tensor) -> Tensor:
        return ask_loss(h, y, r, labels, 0.3, metric, kind, own)

    assert torch.autograd.gradcheck(loss, (h, references, own))
    assert torch.autograd.gradcheck(loss, (h, each, own))


@pytest.mark.parametrize("kind", KINDS)
def test_the_way_out_is_seen_from_deep_inside_a_class(kind):
    """1 - p_y rounds to 0 here, and with it the part of the gradient that leads away from the own class."""
    references = torch.tensor([[1.0, 0.0, 0.3], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
    h = torch.tensor([[1.0, 0.1, 0.0]], requires_grad=True)
    loss = ask_loss(h, torch.tensor([0]), references, torch.arange(3), 0.02, kind=kind, floor=0)
    (gradient,) = torch.autograd.grad(loss.sum(), h)
    own, next_, _ = F.cosine_similarity(h, references)
    (expected,) = torch.autograd.grad(next_ - own, h)
    torch.testing.assert_close(F.normalize(gradient * 1e18), F.normalize(expected), rtol=0, atol=1e-4)


@pytest.mark.parametrize("metric", METRICS)
def test_features_on_a_reference_or_at_zero_have_finite_gradients(metric):
    _, _, references, labels = draws()
    h = torch.stack([references[0], torch.zeros(5).double()]).requires_grad_(True)
    (gradient,) = torch.autograd.grad(ask_loss(h, torch.tensor([0, 1]), references, labels, 0.1, metric).sum(), h)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() < 1e3


def test_half_precision_around_it_costs_no_accuracy():
    h, y, references, labels = (t.float() if t.is_floating_point() else t for t in draws())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = ask_loss(h, y, references, labels, 0.01)
    torch.testing.assert_close(found, ask_loss(h, y, references, labels, 0.01))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tau": 0.0}, "tau"),
        ({"tau": -1.0}, "tau"),
        ({"metric": "dot"}, "metric"),
        ({"kind": "sample"}, "kind"),
        ({"h": torch.zeros(7)}, r"flatten"),
        ({"references": torch.zeros(12, 4)}, r"\[M, 5\]"),
        ({"references": torch.zeros(6, 12, 5)}, r"\[7, M, 5\]"),
        ({"labels": torch.zeros(3, dtype=torch.long)}, "labels"),
        ({"labels": torch.tensor([0, 0, 0, 0, 2, 2, 2, 2, 2, 2, 2, 2])}, "every class"),
        ({"labels": torch.zeros(12, dtype=torch.long)}, "two classes"),
        ({"y": torch.full((7,), 3)}, "0 to 2"),
        ({"y": torch.full((7,), -1)}, "0 to 2"),
        ({"y": torch.zeros(7)}, "class indices"),
        ({"self_feature": torch.zeros(6, 5)}, "self_feature"),
    ],
)
def test_bad_input_is_refused(change, said):
    given = dict(zip(("h", "y", "references", "labels"), draws())) | change
    with pytest.raises(BadInput, match=said):
        ask_loss(**given)
