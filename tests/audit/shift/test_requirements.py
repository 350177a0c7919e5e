"""What `--fail-under` asks of the results."""

import pytest

from withstand.audit.shift.scores import check_requirement, misses
from withstand.errors import BadInput

FOUND = {
    "results": [
        {"model": "m", "benchmark": "imagenet-a", "metric": "top1", "value": 0.2, "better": "higher"},
        {"model": "n", "benchmark": "imagenet-a", "metric": "top1", "value": 0.1, "better": "higher"},
        {"model": "m", "benchmark": "imagenet-c", "metric": "mce", "value": 70.0, "better": "lower"},
    ]
}


@pytest.mark.parametrize(
    ("requirement", "missed"),
    [
        ("imagenet-a=0.15", ["n"]),
        ("m/imagenet-a=0.15", []),
        ("imagenet-a:top1=0.3", ["m", "n"]),
        ("imagenet-c:mce=70", []),
        ("imagenet-c:mce=69", ["m"]),
    ],
)
def test_requirements_say_which_results_are_worse(requirement, missed):
    assert [text.split(" of ")[1][0] for text in misses(FOUND, requirement)] == missed


@pytest.mark.parametrize(
    "requirement",
    [
        "imagenet-a",
        "imagenet-a=x",
        "imagenet-a=nan",
        "imagenet-a=inf",
        "imagenet-b=1",
        "q/imagenet-a=1",
        "imagenet-c=1",
    ],
)
def test_requirements_that_nothing_answers_are_refused(requirement):
    with pytest.raises(BadInput, match="This run has imagenet-a:top1"):
        misses(FOUND, requirement)


@pytest.mark.parametrize(
    ("requirement", "said"),
    [
        ("imagenet-a", "This run has imagenet-a, imagenet-c"),
        ("imagenet-a=nan", "This run has"),
        ("imagenet-r=1", "This run has"),
        ("imagenet-c:mse=70", "This run has"),
        ("q/imagenet-a=1", "The models are m, n"),
    ],
)
def test_requirements_that_no_run_can_answer_are_refused_beforehand(requirement, said):
    for good in ("imagenet-a=0.15", "n/imagenet-c:mce=70"):
        check_requirement(good, ["m", "n"], ["imagenet-a", "imagenet-c"])
    with pytest.raises(BadInput, match=said):
        check_requirement(requirement, ["m", "n"], ["imagenet-a", "imagenet-c"])
