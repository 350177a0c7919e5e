"""`withstand index` as a user runs it."""

import json

import numpy as np
import pytest
from PIL import Image

NETS = """
import torch
from torch import nn
from net import centres

def hashed():
    return nn.Sequential(centres(), nn.Tanh())

def other():
    model = centres()
    with torch.no_grad():
        model[1].weight += 1e-3
    return model
"""


@pytest.fixture
def built(withstand, home):
    (home / "nets.py").write_text(NETS)
    done = withstand(
        *("index", "build", "net.py:centres", "--task", "embedding", "--data", "digits", "--limit", "200"),
        *("--out", str(home / "shelf"), "--device", "cpu"),
    )
    assert done.code == 0, done.err
    assert "200 items of digits, flat, by net.py:centres" in done.err
    return home / "shelf"


def test_what_was_built_is_asked_with_a_data_set_and_with_files(withstand, home, built):
    asked = ("index", "query", str(built), "net.py:centres", "--task", "embedding")
    done = withstand(*asked, "--data", "digits", "--split", "train", "--limit", "20", "-k", "3", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert len(found) == 20
    assert all(len(answer["items"]) == 3 for answer in found)
    assert all(a["items"][0]["distance"] <= a["items"][1]["distance"] <= a["items"][2]["distance"] for a in found)
    own = [a for a in found if a["items"][0]["distance"] < 1e-6]  # those of the index itself
    assert own
    assert all(a["query"] == f"digits #{a['items'][0]['id']}" for a in own)
    Image.fromarray(np.full((20, 20), 128, np.uint8)).save(home / "grey.png")
    done = withstand(*asked, str(home / "grey.png"), "-k", "2")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert len(lines) == 3
    assert "grey.png" in lines[1]
    assert "distance" in lines[0]


def test_pictures_of_another_shape_are_brought_to_that_of_the_index_or_refused(withstand, home, built):
    (home / "photos").mkdir()
    Image.fromarray(np.full((20, 24, 3), 128, np.uint8)).save(home / "photos" / "a.png")
    net = ("net.py:centres", "--task", "embedding", "--data", str(home / "photos"))
    done = withstand("index", "query", str(built), *net, "-k", "2")
    assert done.code == 0, done.err
    assert "brought to 1 x 8 x 8" in done.err
    assert len(done.out.splitlines()) == 3
    done = withstand("index", "build", *net, "--out", str(home / "other"))
    assert done.code == 2
    assert "net.py:centres fails on inputs [1, 3, 20, 24]" in done.err
    assert not (home / "other").exists()


def test_codes_have_a_binary_index(withstand, home, built):
    made = withstand(
        *("index", "build", "nets.py:hashed", "--task", "hashing", "--data", "digits", "--limit", "50"),
        *("--out", str(home / "codes")),
    )
    assert made.code == 0, made.err
    assert "binary" in made.err
    done = withstand(
        *("index", "query", str(home / "codes"), "nets.py:hashed", "--task", "hashing", "--data", "digits"),
        *("--limit", "2", "-k", "1"),
    )
    assert done.code == 0, done.err
    assert "bits" in done.out


def test_a_classifier_is_searched_by_a_layer(withstand, home, built):
    common = ("net.py:centres", "--layer", "0", "--data", "digits", "--limit", "30")
    made = withstand("index", "build", *common, "--kind", "flat", "--out", str(home / "pixels"))
    assert made.code == 0, made.err
    assert withstand("index", "query", str(home / "pixels"), *common).code == 0
    done = withstand("index", "query", str(home / "pixels"), "net.py:centres", "--data", "digits")
    assert done.code == 2
    assert "fingerprint" in done.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("{shelf}", "nets.py:other", "--task", "embedding", "--data", "digits"), "Vectors of other weights"),
        (("{shelf}", "net.py:centres", "--task", "embedding"), "one of the two"),
        (("{shelf}", "net.py:centres", "--task", "embedding", "none.png"), "a file"),
        (("{shelf}", "net.py:centres", "--task", "embedding", "--data", "digits", "-k", "201"), "1 to 200"),
        (("nowhere", "net.py:centres", "--data", "digits"), "withstand index build"),
        (("{shelf}", "net.py:centres", "--task", "ranking", "--data", "digits"), "ranking"),
    ],
)
def test_wrong_use_is_refused(withstand, built, arguments, said):
    done = withstand("index", "query", *(a.format(shelf=built) for a in arguments))
    assert done.code == 2
    assert said in done.err


def test_an_audit_of_a_search_from_the_command_line(withstand, home, built):
    done = withstand(
        *("audit", "net.py:centres", "--task", "retrieval", "--data", "digits", "--limit", "60", "--device", "cpu"),
        *("--preset", "quick", "--out", str(home / "run"), "--given", "gallery=digits", "--format", "json"),
    )
    assert done.code == 0, done.err
    card = json.loads(done.out)
    assert [r["check"] for r in card["results"]] == ["embedding"]
    assert card["results"][0]["status"] == "done"
    assert next(m for m in card["results"][0]["metrics"] if m["name"] == "pi_ratio")["n"] > 1000
