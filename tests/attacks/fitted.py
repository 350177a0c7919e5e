"""Untrained generators in folders, for tests of attacks that are written as text."""

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

import torch

from withstand.attacks.generative import AIGAN, BIA
from withstand.models.artefact import keep_part
from withstand.protocols import Space
from withstand.training.checkpoints import save_weights


@cache
def generator(classes: int = 0) -> str:
    """The text of a generator for images [N, 1, H, W], conditional where there are classes."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    recipe = AIGAN(attack="pgd(linf(0.3))", ngf=4, blocks=1) if classes else BIA(ngf=4, blocks=1)
    space = Space((1, 8, 8), (0.0, 1.0), classes or None)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_weights(Path(folder) / "last.safetensors", recipe.deploy(None, space))
    keep_part(folder, "generator", space, "untrained", "last.safetensors", recipe, {})
    return f"artefact:{folder}"


def attacks(classes: int) -> dict[str, str]:
    """The attacks that need a generator, with one, judged by the model."""
    more = "keep='best', active=True"
    return {
        "generated": f"generated(linf(0.1), generator='{generator()}', {more})",
        "targeted_generated": f"targeted_generated(linf(0.1), generator='{generator(classes)}', {more})",
    }
