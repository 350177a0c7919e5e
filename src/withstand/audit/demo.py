"""The embedded default: two small networks for scikit-learn's digits, one trained plainly, one adversarially."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import nn

from withstand.data import load_data
from withstand.files import write_atomic
from withstand.models import TorchTarget
from withstand.protocols import Space, Target
from withstand.random import derive
from withstand.training.basic import fit

TRAININGS: dict[str, str | None] = {"plain": None, "adversarial": "pgd(linf(0.15), steps=5)"}


def demo_models(folder: str | Path, announce: Callable[[str], None] = lambda text: None) -> dict[str, Target]:
    """The two models, trained in seconds at the first call and read from FOLDER/models afterwards."""
    made: dict[str, Target] = {}
    for name, attack in TRAININGS.items():
        path = Path(folder) / "models" / f"{name}.safetensors"
        network = digits_cnn()
        if path.is_file():
            network.load_state_dict(load_file(path))
        else:
            announce(f"training the {name} network on scikit-learn's digits")
            train = load_data("digits", split="train")
            batch = train.batch(range(len(train)))
            assert batch.y is not None
            fit(network, (batch.x, batch.y), epochs=15, attack=attack)
            write_atomic(path, save(network.state_dict()))
        made[name] = TorchTarget(network.eval(), name, Space((1, 8, 8), (0.0, 1.0), 10))
    return made


def digits_cnn(seed: int = 0) -> nn.Module:
    """Two convolutions and two linear layers: images [N, 1, 8, 8] -> logits [N, 10]; 44,000 parameters."""
    with torch.random.fork_rng([]):
        torch.manual_seed(derive(seed, "digits_cnn") & 0x7FFFFFFF)
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10),
        )  # fmt: skip
