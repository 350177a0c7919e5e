"""A search engine behind an address, over a real index: stolen, audited and attacked by the commands alone."""

import gc
import json

import numpy as np
import pytest
import torch

import withstand as ws
from tests.models.search_engine import Engine
from withstand.models import ImageIndex


@pytest.fixture(scope="module")
def index():
    pytest.importorskip("faiss")
    gallery = ws.load_data("digits", split="train").batch(range(300)).x
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 16), torch.nn.Tanh())
    for i, weight in enumerate(network.parameters()):
        weight.data = 0.3 * ws.Rows.count(i, 1).normal(tuple(weight.shape), "weights")[0]
    return ImageIndex(network, gallery, k=5, backend="faiss")


@pytest.fixture
def engine(index, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    made = Engine(lambda images: {"ids": index(torch.tensor(images))}, index.gallery)
    yield made
    made.server.shutdown()
    made.server.server_close()


DATA = ("--data", "digits", "--limit", "12", "--channels", "1")


def test_steal_audit_and_attack(withstand, engine, index, tmp_path):
    victim = f"steal(victim='{engine.url}', images='{engine.images}', queries=80, steps=150)"
    done = withstand("fit-attack", victim, "zoo:digits_cnn", *DATA, "--epochs", "2", "--out", tmp_path / "stolen")
    assert done.code == 0, done.err
    assert sum(engine.asked) == 80

    attack = f"qair(queries=40, images='{engine.images}')"
    audit = (
        "audit", engine.url, "--task", "retrieval", *DATA, "--checks", f"retrieval(linf(0.3), attack={attack})",
        "--given", f"substitute=artefact:{tmp_path / 'stolen'}", "--out", tmp_path / "run", "--log", tmp_path / "log",
    )  # fmt: skip
    before = sum(engine.asked)
    done = withstand(*audit)
    assert done.code == 0, done.err
    card = json.loads((tmp_path / "run" / "scorecard.json").read_text())
    (result,) = card["results"]
    numbers = {m["name"]: m["value"] for m in result["metrics"]}
    assert numbers["stealing_queries"] == 80
    assert 0 < numbers["lists_replaced"] <= 1
    assert numbers["mean_queries_all"] <= 40
    spent = sum(engine.asked) - before
    assert spent <= 12 * 40
    again = [str(tmp_path / "again") if a == tmp_path / "run" else a for a in audit]
    assert withstand(*again).code == 0
    assert sum(engine.asked) == before + spent  # the log answers all of it

    made = f"qair(linf(0.3), queries=40, images='{engine.images}', substitute='artefact:{tmp_path / 'stolen'}')"
    done = withstand("attack", engine.url, *DATA, "--attack", made, "--out", tmp_path / "adv.npz")
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "adv.json").read_text())
    x = ws.load_data("digits", limit=12, seed=0).batch(range(12)).x
    x_adv = torch.from_numpy(np.load(tmp_path / "adv.npz")["x"])
    apart = sum(not set(a) & set(b) for a, b in zip(index(x), index(x_adv)))
    assert found["success"]["value"] == apart / 12 > 0


def test_an_engine_that_fails_half_way_is_gone_on_with(withstand, engine, tmp_path):
    sound, left = engine.answer, [8]

    def frail(images):
        left[0] -= 1
        return sound(images) if left[0] >= 0 else (403, {"detail": "quota"})

    engine.answer = frail
    command = (
        "audit", engine.url, "--task", "retrieval", *DATA, "--checks", "retrieval(linf(0.3), attack=qair(queries=30))",
        "--out", tmp_path / "run", "--log", tmp_path / "log",
    )  # fmt: skip
    done = withstand(*command)
    assert done.code == 2
    assert "quota" in done.err
    assert "Its answers so far are kept" in done.err
    answered = sum(engine.asked[:8])
    engine.answer, engine.asked[:] = sound, []
    gc.collect()  # the log is let go by the first command, which would be another process
    assert withstand(*command).code == 0
    lines = (tmp_path / "log").read_text().splitlines()
    assert answered + sum(engine.asked) == len(lines) - 1 == len({json.loads(line)["q"] for line in lines[1:]})


def test_what_does_not_fit_is_said(withstand, tmp_path):
    done = withstand("audit", "net.onnx", "--task", "retrieval", *DATA, "--out", tmp_path / "run")
    assert done.code == 2
    assert "task: got 'embedding'" in done.err
    done = withstand("audit", "http://a/b", "--task", "retreival", *DATA)
    assert "Did you mean retrieval" in done.err
    done = withstand("audit", "zoo:digits_cnn", *DATA, "--log", tmp_path / "log")
    assert "--log: got" in done.err
