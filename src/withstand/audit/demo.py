"""The embedded default: two small networks for scikit-learn's digits, one trained plainly, one adversarially."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save

from withstand.data import load_data
from withstand.files import write_atomic
from withstand.models import load_model
from withstand.models.threads import suited_threads
from withstand.protocols import Target
from withstand.training.basic import fit

TRAININGS: dict[str, str | None] = {"plain": None, "adversarial": "pgd(linf(0.15), steps=5)"}
EPOCHS = 15


def demo_models(folder: str | Path, announce: Callable[[str], None] = lambda text: None) -> dict[str, Target]:
    """The two models, trained in seconds at the first call and read from FOLDER/models afterwards.

    Keeps torch to one thread from then on: for networks this small more of them only wait for each other.
    """
    torch.set_num_threads(1)
    made: dict[str, Target] = {}
    for name, attack in TRAININGS.items():
        path = Path(folder) / "models" / f"{name}.safetensors"
        if not path.is_file():
            announce(f"training the {name} network on scikit-learn's digits")
            network = load_model("zoo:digits_cnn", pretrained=False).module
            train = load_data("digits", split="train")
            batch = train.batch(range(len(train)))
            assert network is not None
            assert batch.y is not None
            with suited_threads(network, batch.x[:1]):
                fit(network, (batch.x, batch.y), epochs=EPOCHS, attack=attack)
            own = network.get_submodule("model")
            write_atomic(path, save(own.state_dict()))
        made[name] = load_model("zoo:digits_cnn", weights=path, name=name)
    return made
