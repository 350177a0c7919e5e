"""`withstand transfer` as a user runs it."""

import json

import pytest

from withstand.cli.values import listed, spread

OTHER = """
import torch
from net import centres

def blurred():
    model = centres()
    with torch.no_grad():
        model[1].weight.mul_(1 + 0.3 * torch.sin(torch.arange(640.0)).view(10, 64))
    return model
"""


def test_transfer_prints_and_writes_the_matrix_and_continues(withstand, home):
    (home / "other.py").write_text(OTHER)
    arguments = (
        "transfer",
        *("--surrogates", "c=net.py:centres", "--targets", "b=other.py:blurred", "c"),
        *("--data", "digits", "--limit", "60", "--attacks", "mi", "di(steps=3)"),
        *("--threat", "linf(0.15)", "--device", "cpu", "--out", str(home / "run")),
    )
    done = withstand(*arguments)
    assert done.code == 0, done.err
    assert "| attack | c * | b | mean of others |" in done.out
    assert "| di(steps=3) |" in done.out
    found = json.loads(withstand(*arguments, "--json").out)
    assert found == json.loads((home / "run" / "transfer.json").read_text())
    rates = {(c["attack"], c["target"]): c["success"] for c in found["cells"]}
    assert rates["mi", "c"] > 0.2
    assert (home / "run" / "index.html").is_file()


def test_transfer_refuses_targets_of_other_classes(withstand, home):
    done = withstand(
        *("transfer", "--surrogates", "c=net.py:centres", "--targets", "w=net.py:wrong_classes"),
        *("--data", "digits", "--limit", "20", "--out", str(home / "run")),
    )
    assert done.code == 2
    assert "classes" in done.err
    assert not (home / "run").exists()


def test_several_values_can_be_written_in_any_way(withstand, home):
    common = (
        "transfer",
        "--surrogates",
        "c=net.py:centres",
        "--data",
        "digits",
        "--limit",
        "10",
        "--threat",
        "linf(0.1)",
    )
    ways = (
        ("--targets", "c", "g=net.py:guess", "--attacks", "mi(steps=1)", "ni(steps=1)"),
        ("--targets=c", "g=net.py:guess", "--attacks", "mi(steps=1),ni(steps=1)"),
        ("--targets", "c", "--targets", "g=net.py:guess", "--attacks", "mi(steps=1)", "--attacks=ni(steps=1)"),
    )
    found = [withstand(*common, *way, "--out", home / f"run{i}", "--json") for i, way in enumerate(ways)]
    assert all(done.code == 0 for done in found), found
    cells = [json.loads(done.out)["cells"] for done in found]
    assert cells[0] == cells[1] == cells[2]
    assert [(c["attack"], c["target"]) for c in cells[0]] == [
        (a, t) for a in ("mi(steps=1)", "ni(steps=1)") for t in ("c", "g")
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--attacks", "mi", "nii"), "Did you mean ni"),
        (("--attacks", "mi,nii"), "Did you mean ni"),
        (("--attacks", "square"), "attacks that follow gradients"),
        (("--attacks", "mi", "mi"), "each attack once"),
        (("--targets", "c", "no=net.py:series"), "no does not fit digits: the model fails on inputs [4, 1, 8, 8]"),
        (("--targets", "elsewhere"), "the NAME of a surrogate: c"),
        (("--threat", "linf"), "a threat with a radius"),
    ],
)
def test_wrong_usage_is_refused_before_work(withstand, home, arguments, said):
    common = (
        "transfer",
        "--surrogates",
        "c=net.py:centres",
        "--data",
        "digits",
        "--limit",
        "10",
        "--out",
        home / "run",
    )
    done = withstand(*common, *(() if "--targets" in arguments else ("--targets", "c")), *arguments)
    assert done.code == 2
    assert said in done.err
    assert not (home / "run").exists()


def test_values_go_to_the_option_before_them():
    given = ["--a", "x", "y", "--b", "z", "--a=1", "2", "--c", "--a"]
    assert spread(given, {"--a"}) == ["--a", "x", "--a", "y", "--b", "z", "--a=1", "--a", "2", "--c", "--a"]
    assert listed(["a,b", "c(d, e=1),f", "g:h=1,i=2,j", "k=[1,2],l"]) == [
        "a", "b", "c(d, e=1)", "f", "g:h=1,i=2", "j", "k=[1,2]", "l",
    ]  # fmt: skip
