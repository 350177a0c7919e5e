"""From images to an encoder, to a probe, to an audit, on the command line."""

import json

import pytest


def test_an_encoder_is_trained_probed_and_audited(withstand, home):
    few = ("--data", "digits", "--limit", "120", "--epochs", "1", "--batch", "40", "--validation", "0")
    views = "views=[crop_flip(1, flip=False), intensity, add_noise(0.1)]"
    done = withstand("harden", "zoo:digits_cnn", *few, "--recipe", f"contrastive('afnc', {views})", "--out", "encoder")
    assert done.code == 0, done.err
    done = withstand("harden", "artefact:encoder", *few, "--recipe", "linear_probe", "--out", "probe")
    assert done.code == 0, done.err
    held = json.loads((home / "probe" / "artefact.json").read_text())
    assert [text.split("(")[0] for text in held["wraps"]] == ["contrastive", "linear_probe"]
    attack = ("--attack", "pgd:steps=2,eps=0.05", "--data", "digits", "--limit", "20", "--out", "found")
    refused = withstand("harden", "artefact:encoder", *few, "--recipe", "standard", "--out", "tuned")
    assert refused.code == 2
    assert "which does embedding; allowed: a classifier. The recipe linear_probe" in refused.err
    refused = withstand("attack", "artefact:encoder", *attack)
    assert refused.code == 2
    assert "which does embedding; allowed: a model that does classification" in refused.err
    done = withstand("attack", "artefact:probe", *attack)
    assert done.code == 0, done.err
    done = withstand(
        "audit", "artefact:probe", "--data", "digits", "--limit", "20", "--checks", "clean", "--out", "run"
    )
    assert done.code in (0, 1), done.err


@pytest.mark.parametrize("verb", [("harden", "net.py:centres"), ("fit-attack", "bia", "net.py:centres")])
def test_a_folder_of_something_else_is_no_place_for_a_training(withstand, home, verb):
    (home / "photos").mkdir()
    (home / "photos" / "cat.png").touch()
    done = withstand(*verb, "--data", "digits", "--limit", "40", "--epochs", "1", "--out", "photos")
    assert done.code == 2
    assert "photos, which holds cat.png and no training" in done.err
    assert [p.name for p in (home / "photos").iterdir()] == ["cat.png"]
