"""Learning from half of the classes and searching the other half, from the command line."""

import json

import pytest

pytest.importorskip("pytorch_metric_learning")
HALF = ("--data", "digits", "--limit", "60")


def test_an_embedding_learns_from_the_classes_seen_and_is_judged_on_the_others(withstand, home):
    done = withstand(
        *("harden", "zoo:digits_cnn", *HALF, "--split", "seen", "--recipe", "metric(dim=4)", "--epochs", "1"),
        *(
            "--batch",
            "16",
            "--out",
            str(home / "made"),
            "--accelerator",
            "cpu",
            "--validation",
            "0",
            "--audit",
            "quick",
        ),
    )
    assert done.code == 0, done.err
    model = f"artefact:{home / 'made'}"
    cards = [json.loads((home / "made" / "audit" / "scorecard.json").read_text())]
    done = withstand(
        *(
            "audit",
            model,
            "--task",
            "retrieval",
            *HALF,
            "--split",
            "unseen",
            "--device",
            "cpu",
            "--checks",
            "embedding()",
        ),
        *("--out", str(home / "run"), "--format", "json"),
    )
    assert done.code == 0, done.err
    cards.append(json.loads(done.out))
    assert [card["data"]["classes"] for card in cards] == [[*"56789"]] * 2
    done = withstand("index", "build", model, *HALF, "--split", "unseen", "--out", str(home / "shelf"))
    assert done.code == 0, done.err
    assert "60 items" in done.err
