"""`card.require`: what was measured is held against a number; what was not is an error, never a pass."""

import pytest

from withstand.audit.requirements import Requirement
from withstand.audit.scorecard import CheckResult, Scorecard
from withstand.errors import BadInput, NotMet
from withstand.protocols import Metric

EPS = 8 / 255


@pytest.fixture
def card():
    def result(model, value):
        at = {"attack": "pgd", "threat": "linf", "eps": EPS}
        metrics = [
            Metric("robust_accuracy", value, condition=at),
            Metric("robust_accuracy", value - 0.1, condition={**at, "eps": 2 * EPS}),
            Metric("ece", 0.05, better="lower"),
        ]
        return CheckResult(model, "robust", "", "", metrics=metrics)

    return Scorecard(
        "run", models={"org/before": {}, "after": {}}, results=[result("org/before", 0.2), result("after", 0.5)]
    )


@pytest.mark.parametrize(
    ("text", "met"),
    [
        ("after/robust_accuracy@linf:8/255=0.5", True),
        ("after/robust_accuracy@linf(8/255)=0.5", True),
        ("after/robust_accuracy@linf:eps=8/255=50%", True),
        ("after/robust_accuracy@linf:8/255=0.51", False),
        ("org/before/robust_accuracy@linf:8/255=0.2", True),
        ("robust_accuracy@linf:8/255=0.3", False),
        ("after/robust_accuracy=0.45", False),  # every radius must meet it
        ("after/robust_accuracy@pgd@linf:16/255=0.4", True),
        ("ece=0.05", True),
        ("ece=0.04", False),
    ],
)
def test_a_requirement_is_met_or_not(card, text, met):
    assert (card.unmet(text) == []) is met
    if not met:
        with pytest.raises(NotMet, match=r"under|above"):
            card.require(text)


@pytest.mark.parametrize(
    "text",
    ["robust_accuracy@linf:4/255=0.1", "robust_accuracy@l2:8/255=0.1", "clean_accuracy=0.1", "robust_accuracy@fog=0"],
)
def test_what_was_not_measured_is_an_error(card, text):
    with pytest.raises(BadInput, match="measured"):
        card.require(text)


def test_a_model_without_the_number_is_an_error_unless_another_is_named(card):
    card.models["third"] = {}
    with pytest.raises(BadInput, match="not measured for third"):
        card.require("ece=0.1")
    card.require("after/ece=0.1")


@pytest.mark.parametrize("text", ["", "ece", "=1", "@linf:8/255=1", "ece=", "ece=nan", "a@linf(evil())=1"])
def test_what_cannot_be_read_is_refused(text):
    with pytest.raises(BadInput):
        Requirement.read(text)
