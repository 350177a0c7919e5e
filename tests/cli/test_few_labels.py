"""Training from few labels, as the documentation says it on the command line."""

import shlex
from pathlib import Path

import pytest

from withstand.registry import parse


def test_the_command_for_imagenet_has_the_official_settings_and_runs_on_digits(withstand, tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "semi_supervised.md").read_text(encoding="utf-8")
    (command,) = (block for block in page.split("```") if "timm:resnet50" in block)
    _, verb, _, *words = shlex.split(command.split("$ ")[1].replace("\\\n", " "))
    words.remove("--scratch")
    given = dict(zip(words[::2], words[1::2], strict=True))
    recipe = parse(given["--recipe"], "recipe")
    assert (recipe.tau, recipe.lambda_u, recipe.variants, recipe.k_schedule) == (0.7, 10, 3, (0.5, 0.3, 0.2))
    assert parse(given["--sampler"], "sampler").mu == 5
    assert int(given["--batch"]) == 64 * (1 + 5)
    optimizer, schedule = parse(given["--optimizer"], "optimizer"), parse(given["--schedule"], "schedule")
    assert (optimizer.lr, optimizer.momentum, optimizer.weight_decay, optimizer.nesterov) == (0.02, 0.9, 1e-4, False)
    assert [schedule(e / int(given["--epochs"])) for e in (0, 5, 300)] == pytest.approx([0, 1, 0])
    small = {"--data": "digits", "--epochs": "1", "--batch": "24", "--out": str(tmp_path / "out"), "--limit": "60"}
    small |= {"--recipe": given["--recipe"].replace("labels=128", "labels=2"), "--precision": "32-true"}
    for left_out in ("--devices", "--strategy", "--size"):
        del given[left_out]
    words = [word for option in (given | small).items() for word in option]
    result = withstand(verb, "zoo:digits_cnn", *words, "--accelerator", "cpu")
    assert result.code == 0, result.err
    assert (tmp_path / "out" / "last.safetensors").is_file()
