"""From images to an encoder, to a probe, to an audit, on the command line."""

import json


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
    refused = withstand("attack", "artefact:encoder", *attack)
    assert refused.code == 2
    assert "which does embedding; allowed: a model that does classification" in refused.err
    done = withstand("attack", "artefact:probe", *attack)
    assert done.code == 0, done.err
    done = withstand(
        "audit", "artefact:probe", "--data", "digits", "--limit", "20", "--checks", "clean", "--out", "run"
    )
    assert done.code in (0, 1), done.err
