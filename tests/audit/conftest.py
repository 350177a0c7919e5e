"""Small trained models on digits, checks run as the engine runs them, and small audits for the run folder."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import withstand as ws
from withstand.audit.check import Check, Table
from withstand.audit.store import as_table
from withstand.data import from_arrays
from withstand.models import as_target
from withstand.models.record import TrainingRecord
from withstand.models.target import TorchTarget
from withstand.protocols import Batch, Context, Findings, Row, Space
from withstand.registry import parse
from withstand.training.basic import fit


@dataclass
class Arrays:
    """A data set in memory."""

    x: Tensor
    y: Tensor
    name: str = "arrays"
    classes: tuple[str, ...] = tuple("0123456789")
    ids: Tensor = field(default=None)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        self.ids = torch.arange(len(self.x)) if self.ids is None else self.ids

    @property
    def space(self) -> Space:
        return Space(tuple(self.x.shape[1:]), (0.0, 1.0), len(self.classes))

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, positions: Sequence[int]) -> Batch:
        at = torch.as_tensor(list(positions))
        return Batch(self.x[at], self.y[at], self.ids[at])

    def fingerprint(self) -> str:
        return hashlib.sha256(self.x.numpy().tobytes()).hexdigest()


@dataclass
class Done:
    """What a check found, and what it cost."""

    rows: list[Row]
    table: Table
    findings: Findings
    ctx: Context

    def metric(self, name: str, **condition: Any) -> Any:
        found = [
            m
            for m in self.findings.metrics
            if m.name == name and all(m.condition.get(k) == v for k, v in condition.items())
        ]
        assert len(found) == 1, [(m.name, m.condition) for m in self.findings.metrics]
        return found[0]


RECORD = TrainingRecord(
    [
        {"epoch": 1, "accuracy": 0.5, "robust_accuracy": 0.25, "train_accuracy_adversarial": 0.3},
        {"epoch": 2, "train_accuracy_adversarial": 0.6},
        {"epoch": 3, "accuracy": 0.8, "robust_accuracy": 0.75, "train_accuracy_adversarial": 0.7},
        {"epoch": 4, "accuracy": 0.9, "robust_accuracy": 0.55, "train_accuracy_adversarial": 0.9},
    ],
    "pgd_at()",
    "pgd(linf(0.1))",
    learned=200,
    held=20,
)


@pytest.fixture
def record() -> TrainingRecord:
    """Of a made-up training that overfits."""
    return RECORD


@pytest.fixture(scope="session")
def arrays() -> type[Arrays]:
    return Arrays


@pytest.fixture(scope="session")
def digits() -> Arrays:
    """500 digits that the models have not seen."""
    x, y = _digits()
    return Arrays(x[1297:], y[1297:], "digits")


@pytest.fixture(scope="session")
def digits64(digits: Arrays) -> Arrays:
    return Arrays(digits.x.double(), digits.y, "digits64")


@pytest.fixture(scope="session")
def plain() -> TorchTarget:
    return _trained(None)


@pytest.fixture(scope="session")
def hardened() -> TorchTarget:
    return _trained("pgd(linf(0.15), steps=4)")


@pytest.fixture(scope="session")
def plain64(plain: TorchTarget) -> TorchTarget:
    import copy

    target = TorchTarget(copy.deepcopy(plain.model).double(), "plain64", plain.space)
    target.record = RECORD
    return target


@pytest.fixture(scope="session")
def noise() -> Arrays:
    """Unfamiliar images: noise of another shape, in colour."""
    x = torch.rand(60, 3, 12, 10, generator=torch.Generator().manual_seed(5))
    return Arrays(x, torch.zeros(60, dtype=torch.long), "noise", ("?",))


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Done]:
    """Run a check shard by shard as the engine does, and reduce its rows."""

    def go(
        check: Check | str,
        target: Any,
        data: Any,
        given: dict[str, Any] | None = None,
        shard: int = 128,
        others: dict[str, Table] | None = None,
        seed: int = 0,
        shuffle: bool = False,
    ) -> Done:
        check = parse(check, "check") if isinstance(check, str) else check
        given, made = given or {}, []
        root = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        side = root / "side" / "model" / "check"
        total = Context(seed, folder=side, root=root, classes=data.classes)
        artefact = check.prepare(target, data, given, total)
        examples = check.examples_of(data, given)
        n = min(len(examples), check.examples or len(examples)) if check.own_rows else 0
        order = torch.randperm(n, generator=torch.Generator().manual_seed(9)).tolist() if shuffle else list(range(n))
        for number, start in enumerate(range(0, n, shard)):
            folder = side / f"{number:06d}"
            folder.mkdir(parents=True)
            ctx = Context(seed, folder=folder, root=root, cost=total.cost)
            made += list(check.rows(target, examples.batch(order[start : start + shard]), given, artefact, ctx))
        table = Table(as_table(made))
        return Done(made, table, check.reduce(table, others or {}, total), total)

    return go


def _digits() -> tuple[Tensor, Tensor]:
    found = load_digits()
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
    x = torch.tensor(found.images, dtype=torch.float32)[:, None] / 16  # type: ignore[attr-defined]
    return x[order], torch.tensor(found.target, dtype=torch.long)[order]  # type: ignore[attr-defined]


def _trained(attack: str | None) -> TorchTarget:
    x, y = _digits()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Flatten(),
            nn.Linear(256, 32), nn.ReLU(), nn.Linear(32, 10),
        )  # fmt: skip
    fit(net, (x[:1297], y[:1297]), 6 if attack is None else 8, attack, lr=5e-3)
    target = as_target(net, "hardened" if attack else "plain", Space((1, 8, 8), (0.0, 1.0), 10))
    assert isinstance(target, TorchTarget)
    return target


CHECKS = ("clean", "robust(linf(0.1), attack=pgd(steps=3))")


def small_audit(out: Path, examples: int = 300, checks: Any = CHECKS, **options: Any) -> ws.Scorecard:
    """Two linear models on noise with labels that the first one mostly gets right."""
    generator = torch.Generator().manual_seed(0)
    models = {}
    for name in ("first", "second"):
        layer = nn.Linear(64, 10)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        models[name] = nn.Sequential(nn.Flatten(), layer)
    x = torch.rand(examples, 1, 8, 8, generator=generator)
    y = models["first"](x).argmax(1)
    y[::7] = (y[::7] + 1) % 10
    return ws.audit(models, from_arrays(x, y, classes=10), checks=checks, out=out, **options)


def rows_of(folder: Path) -> dict[str, pa.Table]:
    """Every file of rows, by its place in the run folder."""
    files = sorted((folder / "rows").rglob("*.parquet"))
    return {
        str(f.relative_to(folder)): pq.ParquetFile(f).read().drop(["run"]).replace_schema_metadata(None) for f in files
    }


@pytest.fixture
def audit_small() -> Callable[..., ws.Scorecard]:
    return small_audit


@pytest.fixture
def rows() -> Callable[[Path], dict[str, pa.Table]]:
    return rows_of
