"""What scoring a benchmark costs over the bare work, and accuracy by severity on a CIFAR-10-C made here.

Cost: a tree of JPEG files (crops of scikit-learn's two photographs) scored on an untrained ResNet-18 at 224 pixels, against
a loop that decodes and forwards the same batches and keeps nothing; medians of processor time (all threads) and wall time
in rounds that alternate. Accuracy: the 15 corruptions at 5 severities of the first 1,000 CIFAR-10 test images, pretrained
networks of the data folder; Spearman's correlation of accuracy with severity, for each kind the mean over networks.

    WITHSTAND_DATA=... python benchmarks/shift.py [--quick]
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.stats import spearmanr
from sklearn.datasets import load_sample_images
from torchvision.models import resnet18
from torchvision.transforms import CenterCrop, Compose, Resize, ToTensor

import withstand as ws
from withstand.corruptions import make_corrupted
from withstand.data.folders import wnids
from withstand.data.load import data_root
from withstand.files import write_json
from withstand.models import as_target
from withstand.protocols import Space

sys.path.insert(0, str(Path(__file__).parent))
from pretrained import NETWORKS

RESULTS = Path(__file__).parent / "results" / "shift.json"
SHOWN = ("cifar10_resnet20", "cifar10_cnn_a_adv2", "cifar10_resnet2b_adv", "cifar10_resnet4b_adv")
BLOCK = 32


def main(out: Path = RESULTS, quick: bool = False) -> dict[str, Any]:
    """Both parts. quick: little of each; nothing is written."""
    with tempfile.TemporaryDirectory() as folder:
        found = {"benchmark": "shift", "cost": cost(Path(folder), *((32, 1) if quick else (256, 5)))}
        found |= severity(Path(folder), 20 if quick else 1000, SHOWN[1:2] if quick else SHOWN)
    if not quick:
        write_json(out, found)
    return found


def cost(folder: Path, n: int, rounds: int) -> dict[str, Any]:
    """Seconds of both sides for n files, and their ratios."""
    files = list(tree(folder / "imagenet-val", n))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = resnet18().eval()
    target = as_target(model, "resnet18", Space((3, 224, 224), (0.0, 1.0), 1000))
    look = Compose([Resize(256), CenterCrop(224), ToTensor()])

    def bare() -> None:
        for start in range(0, n, BLOCK):
            images = [look(Image.open(file).convert("RGB")) for file in files[start : start + BLOCK]]
            with torch.no_grad():
                model(torch.stack(images)).argmax(1)

    def ours() -> None:
        ws.shift(target, "imagenet", root=folder, out=folder / "run", partial=True, block=BLOCK, workers=2, fresh=True)

    bare(), ours()
    seconds = [[clocked(side) for side in (bare, ours)] for _ in range(rounds)]
    medians = [[statistics.median(row[side][k] for row in seconds) for side in (0, 1)] for k in (0, 1)]
    (bare_cpu, our_cpu), (bare_wall, our_wall) = medians
    made = {
        "files": n,
        "network": "resnet18, 224 pixels",
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "bare_cpu_seconds": round(bare_cpu, 3),
        "withstand_cpu_seconds": round(our_cpu, 3),
        "cpu_ratio": round(our_cpu / bare_cpu, 3),
        "wall_ratio": round(our_wall / bare_wall, 3),
    }
    print(f"{n} files: {our_cpu:.2f} s of processor time, bare {bare_cpu:.2f} s: {our_cpu / bare_cpu:.3f}", flush=True)
    return made


def clocked(work: Callable[[], None]) -> tuple[float, float]:
    """(processor seconds of all threads, wall seconds)."""
    began = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - began[0], time.perf_counter() - began[1]


def tree(place: Path, n: int) -> Iterator[Path]:
    """n JPEG files of about 340 x 256 pixels in class folders."""
    photographs = load_sample_images().images
    generator = np.random.default_rng(0)
    for i in range(n):
        image = photographs[i % 2]
        top, left = (int(generator.integers(0, side - size)) for side, size in zip(image.shape, (256, 340)))
        folder = place / wnids()[i % 100]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[top : top + 256, left : left + 340]).save(folder / f"{i}.JPEG", quality=85)
        yield folder / f"{i}.JPEG"


def severity(folder: Path, n: int, names: tuple[str, ...]) -> dict[str, Any]:
    """Accuracy of every network under every kind, and its correlation with severity."""
    data = ws.load_data("cifar10", split="test", limit=n)
    began = time.process_time()
    make_corrupted("cifar10-c", data, folder / "CIFAR-10-C")
    made = time.process_time() - began
    models = {
        name: ws.load_model(f"zoo:{NETWORKS[name]}", weights=data_root() / "weights" / f"{name}.pth") for name in names
    }
    began = time.process_time()
    found = ws.shift(models, "cifar10-c", root=folder, out=folder / "scored", partial=True)
    scored = time.process_time() - began
    cells = {(c["model"], c["corruption"], c["severity"]): c["value"] for c in found["cells"]}
    kinds = list(dict.fromkeys(c["corruption"] for c in found["cells"]))
    rho = {name: {kind: spearman([cells[name, kind, s] for s in range(1, 6)]) for kind in kinds} for name in models}
    table = [
        {
            "corruption": kind,
            "spearman": round(statistics.mean(rho[name][kind] for name in models), 3),
            **{name: [round(cells[name, kind, s], 3) for s in range(1, 6)] for name in models},
        }
        for kind in kinds
    ]
    means = {r["model"]: round(r["value"], 4) for r in found["results"] if r["metric"] == "mean_accuracy"}
    for row in table:
        print(f"{row['corruption']:20}{row['spearman']:8.3f}  {row[names[0]]}", flush=True)
    print(means, f"made in {made:.0f} s, scored in {scored:.0f} s of processor time", flush=True)
    return {
        "images": n,
        "mean_accuracy": means,
        "seconds_to_make": round(made, 1),
        "seconds_to_score": round(scored, 1),
        "by_severity": table,
    }


def spearman(accuracies: list[float]) -> float:
    """With severities 1..5; 0 where all accuracies are equal."""
    return 0.0 if len(set(accuracies)) == 1 else float(spearmanr(range(5), accuracies).statistic)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    main(quick=parser.parse_args().quick)
