"""`withstand transfer` as a user runs it."""

import json

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
        *("--surrogates", "c=net.py:centres", "--targets", "b=other.py:blurred", "--targets", "c"),
        *("--data", "digits", "--limit", "60", "--attacks", "mi", "--attacks", "di(steps=3)"),
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
