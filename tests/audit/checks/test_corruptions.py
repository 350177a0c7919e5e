"""mCE and relative mCE against the definition, image by image."""

import numpy as np
import pytest

from withstand.corruptions import corruption_names, reported_name
from withstand.corruptions.scores import ALEXNET, ALEXNET_CLEAN
from withstand.errors import BadInput
from withstand.registry import parse

N = 12
KINDS = [reported_name(kind) for kind in corruption_names("common")]


@pytest.fixture(scope="module")
def answers():
    """Which cells a model and a reference have right: {(kind, severity): [bool] * N}, clean first."""
    draws = np.random.default_rng(0)

    def model(clean, slope):
        chance = {("none", 0): clean} | {
            (k, s): clean - slope * s * (1 + i / 15) for i, k in enumerate(KINDS) for s in range(1, 6)
        }
        return {cell: draws.random(N) < p for cell, p in chance.items()}

    return model(0.9, 0.05), model(0.7, 0.04)


def reduced(check, own, reference=None):
    from withstand.audit.check import Table
    from withstand.audit.store import as_table
    from withstand.protocols import Context, Row

    rows = []
    for of, cells in ((None, own), ("reference", reference or {})):
        for (kind, severity), right in cells.items():
            condition = {"corruption": kind, "severity": severity} | ({"of": of} if of else {})
            for i in np.random.default_rng(severity).permutation(N):  # in any order
                outcome, value = (None, float(right[i])) if of else (bool(right[i]), None)
                rows.append(Row("image", int(i), condition, outcome, value))
    return parse(check, "check").reduce(Table(as_table(rows)), {}, Context())


def metric(found, name, **condition):
    (one,) = [m for m in found.metrics if m.name == name and all(m.condition.get(k) == v for k, v in condition.items())]
    return one


def error(cells, kind, severity):
    return 1 - np.mean(cells[kind, severity])


def test_mce_is_the_mean_of_ratios_of_summed_errors(answers):
    own, reference = answers
    found = reduced("corruptions()", own, reference)
    ratios, relative = [], []
    for kind in KINDS:
        mine = sum(error(own, kind, s) for s in range(1, 6))
        theirs = sum(error(reference, kind, s) for s in range(1, 6))
        ratios.append(mine / theirs)
        relative.append((mine - 5 * error(own, "none", 0)) / (theirs - 5 * error(reference, "none", 0)))
    assert metric(found, "mce").value == pytest.approx(100 * np.mean(ratios))
    assert metric(found, "relative_mce").value == pytest.approx(100 * np.mean(relative))
    assert metric(found, "mce").condition["reference"] == "given"
    assert metric(found, "mce").low < metric(found, "mce").value < metric(found, "mce").high


def test_alexnets_errors_are_those_of_the_table(answers):
    own, _ = answers
    found = reduced("corruptions(reference='alexnet')", own)
    ratios, relative = [], []
    for kind in KINDS:
        mine, theirs = np.mean([error(own, kind, s) for s in range(1, 6)]), ALEXNET[kind.rstrip("*")]
        ratios.append(mine / theirs)
        relative.append((mine - error(own, "none", 0)) / (theirs - ALEXNET_CLEAN))
    assert metric(found, "mce").value == pytest.approx(100 * np.mean(ratios))
    assert metric(found, "relative_mce").value == pytest.approx(100 * np.mean(relative))


def test_accuracies_are_means_over_the_common_kinds(answers):
    own, _ = answers
    found = reduced("corruptions()", own)
    expected = np.mean([np.mean(own[k, s]) for k in KINDS for s in range(1, 6)])
    assert metric(found, "corruption_accuracy").value == pytest.approx(expected)
    assert metric(found, "accuracy", corruption="contrast").value == pytest.approx(
        np.mean([np.mean(own["contrast", s]) for s in range(1, 6)])
    )
    figure = found.figures[0].data
    assert figure["values"][KINDS.index("fog")][2] == pytest.approx(np.mean(own["fog", 3]))
    assert not any(m.name == "mce" for m in found.metrics)  # nothing to divide by


def test_some_severities_make_no_mce(answers):
    own, reference = ({k: v for k, v in cells.items() if k[1] in (0, 2)} for cells in answers)
    found = reduced("corruptions(severities=(2,))", own, reference)
    assert not any("mce" in m.name for m in found.metrics)
    assert metric(found, "corruption_accuracy").condition == {"severity": 2}


def test_a_reference_that_some_kind_does_no_harm_gives_no_mce(answers):
    own, reference = answers
    perfect = reference | {("fog", s): np.ones(N, bool) for s in range(1, 6)}
    assert not any(m.name == "mce" for m in reduced("corruptions()", own, perfect).metrics)


def test_rows_are_what_the_model_says_of_the_corrupted_images(run, plain, digits, arrays):
    from withstand.corruptions import corrupt

    x, y = digits.x[:8], digits.y[:8]
    done = run("corruptions(severities=(4,))", plain, arrays(x, y, "few"), {"reference": plain}, seed=3)
    changed = corrupt(x, "pixelate", 4, seed=3, preset="cifar")
    right = (plain(changed).argmax(1) == y).tolist()
    own = [r.outcome for r in done.rows if r.condition == {"corruption": "pixelate", "severity": 4}]
    assert own == right
    theirs = [r.value for r in done.rows if r.condition == {"corruption": "pixelate", "severity": 4, "of": "reference"}]
    assert theirs == [float(v) for v in right]


@pytest.mark.parametrize(
    "text", ["corruptions(severities=())", "corruptions(severities=(0,))", "corruptions(severities=(2, 1))"]
)
def test_bad_severities_are_refused(text):
    with pytest.raises(BadInput, match="severities"):
        parse(text, "check")
