"""What a check cannot do does not stop the others; what the world does stops the run, which goes on later."""

import os
import signal
import time

import pytest
import torch

import withstand as ws
from withstand.audit import Check
from withstand.errors import BadInput, Unavailable
from withstand.protocols import Findings, Row


class Counting(Check):
    """Rows that count themselves."""

    def rows(self, target, shard, given, artefact, ctx):
        for id_ in shard.ids.tolist():
            yield Row("image", id_, {}, True, float(id_))

    def reduce(self, rows, others, ctx):
        return Findings([rows.share("counted")])


def raising(error):
    """A check whose second shard raises."""

    @ws.component("check", "raising")
    class Raising(Counting):
        """Raises."""

        def rows(self, target, shard, given, artefact, ctx):
            if int(shard.ids[0]) > 0:
                raise error
            yield from super().rows(target, shard, given, artefact, ctx)

    return Raising()


@pytest.mark.parametrize(
    ("error", "reason"),
    [(BadInput("no such thing"), "no such thing"), (RuntimeError("shapes differ"), "RuntimeError: shapes differ")],
)
def test_a_check_that_fails_is_reported_and_the_others_run(tmp_path, audit_small, error, reason):
    card = audit_small(tmp_path / "run", checks=[raising(error), "clean"])
    assert {(r.check, r.status, r.reason) for r in card.results} == {
        ("raising", "failed", reason),
        ("clean", "done", ""),
    }
    assert card.complete


def test_a_failed_check_is_tried_again(tmp_path, audit_small):
    there = tmp_path / "there"

    @ws.component("check", "fickle")
    class Fickle(Counting):
        """Works once something is there."""

        def rows(self, target, shard, given, artefact, ctx):
            if not there.exists():
                raise BadInput("not there")
            yield from super().rows(target, shard, given, artefact, ctx)

    assert {r.status for r in audit_small(tmp_path / "run", checks=[Fickle()]).results} == {"failed"}
    there.touch()
    assert {r.status for r in audit_small(tmp_path / "run", checks=[Fickle()]).results} == {"done"}


@pytest.mark.parametrize("error", [Unavailable("endpoint gone"), OSError(5, "Input/output error"), MemoryError("full")])
def test_an_outage_stops_the_run_and_keeps_what_is_done(tmp_path, audit_small, rows, error):
    with pytest.raises(Unavailable, match=r"endpoint gone|same command continues"):
        audit_small(tmp_path / "run", checks=[raising(error), "clean"])
    assert len(rows(tmp_path / "run")) == 1


def test_an_unknown_engine_is_refused_before_any_work(tmp_path, audit_small):
    with pytest.raises(BadInput, match="engine: there is no 'rai'"):
        audit_small(tmp_path / "run", engine="rai")
    assert not (tmp_path / "run").exists()


def test_progress_adds_up_to_all_examples(tmp_path, audit_small):
    seen = {}
    audit_small(tmp_path / "run", report=lambda model, check, done, total: seen.update({(model, check): (done, total)}))
    assert set(seen.values()) == {(300, 300)}
    assert len(seen) == 4


def test_a_sample_of_a_check_keeps_the_share_of_each_class(tmp_path):
    x = torch.rand(200, 1, 8, 8)
    y = torch.arange(200) // 20  # in the order of the classes, as an image folder is
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    ws.audit(model, (x, y), checks=["clean(examples=50)"], out=tmp_path / "run")
    labels = next(iter(_labels(tmp_path / "run")))
    assert [labels.count(c) for c in range(10)] == [5] * 10


def _labels(folder):
    import pyarrow.parquet as pq

    for path in folder.rglob("*.parquet"):
        table = pq.ParquetFile(path).read().to_pylist()
        yield [row["label"] for row in table if row["outcome"] is not None]


@pytest.fixture(scope="module")
def cluster():
    ray = pytest.importorskip("ray", reason="needs the extra `cluster`")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


@pytest.mark.slow
def test_ray_finds_the_same_rows_as_one_process(tmp_path, cluster, audit_small, rows):
    audit_small(tmp_path / "local" / "run")
    card = audit_small(tmp_path / "ray" / "run", engine="ray")
    assert card.complete
    assert rows(tmp_path / "ray" / "run") == rows(tmp_path / "local" / "run")


@pytest.mark.slow
def test_a_worker_killed_half_way_costs_its_shard_only(tmp_path, cluster, audit_small, rows):
    marks = tmp_path / "marks"
    marks.mkdir()

    @ws.component("check", "dying")
    class Dying(Counting):
        """Kills its worker at the first try of the second shard."""

        def rows(self, target, shard, given, artefact, ctx):
            first = int(shard.ids[0])
            (marks / f"{target.name}-{first}-{time.time_ns()}").touch()
            if first == 128 and len(list(marks.glob(f"{target.name}-128-*"))) == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            yield from super().rows(target, shard, given, artefact, ctx)

    card = audit_small(tmp_path / "run", checks=[Dying()], engine="ray")
    assert [r.reason for r in card.results] == ["", ""]
    assert len(rows(tmp_path / "run")) == 6
    tries = [p.name.split("-")[1] for p in marks.iterdir()]
    assert {first: tries.count(first) for first in tries} == {"0": 2, "128": 3, "256": 2}  # of two models
