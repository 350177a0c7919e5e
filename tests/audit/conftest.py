"""Small trained models on digits, and checks run as the engine runs them."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from withstand.audit.check import Check, Table
from withstand.audit.store import as_table
from withstand.models import as_target
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

    return TorchTarget(copy.deepcopy(plain.model).double(), "plain64", plain.space)


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
