"""Corruptions per second: withstand beside the package `imagecorruptions`, on the same photographs in one run.

Both get the ImageNet severities, which are the only ones that the peer has, at 224 and at 32 pixels; for each severity
the best of several alternating rounds counts. The peer takes one image at a time, withstand the whole batch.
Run: WITHSTAND_DATA=... python benchmarks/corruptions.py [OUT.json]
"""

import io
import json
import os
import platform
import sys
import time
import zipfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from withstand.corruptions import corrupt, corruption_names
from withstand.errors import bad, missing_extra

ROUNDS = 5
PHOTOS, THUMBS = 16, 128
WITHOUT_DRAWS = {"defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression", "saturate"}


def main(out: Path) -> dict:
    """Measure, print the table, write it to `out` as JSON and return it."""
    peer = _peer()
    sizes = {}
    for size, images in ((224, _photos()), (32, _thumbs())):
        kinds = {name: _compare(peer, name, images) for name in corruption_names("all")}
        sizes[str(size)] = {"images": len(images), "kinds": kinds, "total": _total(kinds)}
        _print(size, kinds, sizes[str(size)]["total"])
    found = {
        "benchmark": "corruptions",
        "versions": {
            p: version(p) for p in ("withstand", "imagecorruptions", "torch", "numpy", "pillow", "scikit-image")
        },
        "opencv": cv2.__version__,
        "python": platform.python_version(),
        "threads": {"cpus": os.cpu_count(), "torch": torch.get_num_threads(), "opencv": cv2.getNumThreads()},
        "rounds": ROUNDS,
        "sizes": sizes,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def _compare(peer: Callable[[np.ndarray, str, int], np.ndarray], name: str, images: Tensor) -> dict:
    """Images per second of both (severities pooled), and why the peer fails where it does."""
    arrays = list(images.permute(0, 2, 3, 1).contiguous().numpy())

    def ours(severity: int) -> Tensor:
        return corrupt(images, name, severity, preset="imagenet")

    def theirs(severity: int) -> np.ndarray:
        return np.stack([peer(array, name, severity) for array in arrays])

    np.random.seed(0)  # noqa: NPY002  (the peer draws from the global generator)
    failure, largest, seconds = "", 0, np.zeros((2, 2))  # (ours, theirs) x (wall, processor)
    for severity in range(1, 6):
        made = ours(severity)  # also fills caches
        try:
            other = theirs(severity)
        except (TypeError, AttributeError, ValueError) as error:
            failure = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        else:
            largest = max(largest, int(np.abs(made.permute(0, 2, 3, 1).numpy().astype(int) - other).max()))
        sides = (ours,) if failure else (ours, theirs)
        times = [[_seconds(side, severity) for side in sides] for _ in range(ROUNDS)]
        seconds[: len(sides)] += np.min(times, 0)
    speed = {"ours": round(5 * len(images) / seconds[0, 0], 1)}
    if failure:
        return speed | {"theirs": None, "failure": failure}
    ratio, work = seconds[1] / seconds[0]
    speed |= {
        "theirs": round(5 * len(images) / seconds[1, 0], 1),
        "ratio": round(ratio, 2),
        "cpu_ratio": round(work, 2),
    }
    speed["ms"] = (seconds / (5 * len(images)) * 1000).round(4).tolist()
    return speed | ({"largest_difference": largest} if name in WITHOUT_DRAWS else {})


def _seconds(work: Callable[[int], object], severity: int) -> tuple[float, float]:
    """Wall time, and processor time of all threads, which other programs on the machine do not stretch."""
    start = time.perf_counter(), time.process_time()
    work(severity)
    return time.perf_counter() - start[0], time.process_time() - start[1]


def _total(kinds: dict[str, dict]) -> dict:
    """Milliseconds per image summed over the kinds that the peer can run."""
    both = [k for k in kinds.values() if k["theirs"]]
    (ours, our_cpu), (theirs, their_cpu) = np.sum([k["ms"] for k in both], 0).tolist()
    return {
        "kinds": len(both),
        "ours_ms": round(ours, 2),
        "theirs_ms": round(theirs, 2),
        "ratio": round(theirs / ours, 2),
        "cpu_ratio": round(their_cpu / our_cpu, 2),
    }


def _print(size: int, kinds: dict[str, dict], total: dict) -> None:
    print(f"\n{size} pixels: images per second (five severities pooled)")
    print(f"{'':20}{'withstand':>12}{'imagecorruptions':>18}{'ratio':>8}  largest difference in levels")
    for name, k in kinds.items():
        right = (
            f"{k['theirs']:18.1f}{k['ratio']:8.2f}  {k.get('largest_difference', '')}" if k["theirs"] else k["failure"]
        )
        print(f"{name:20}{k['ours']:12.1f}{'' if k['theirs'] else '  fails: '}{right}")
    print(
        f"sum over the {total['kinds']} kinds that both run: {total['ours_ms']} ms an image, "
        f"peer {total['theirs_ms']} ms: {total['ratio']} times faster ({total['cpu_ratio']} in processor time)"
    )


def _peer() -> Callable[[np.ndarray, str, int], np.ndarray]:
    try:
        import imagecorruptions
    except ImportError as error:  # it also needs pkg_resources, i.e. setuptools < 81
        raise missing_extra(f"imagecorruptions ({error})", "peers", "The benchmark of corruptions") from None
    return lambda image, name, severity: imagecorruptions.corrupt(image, corruption_name=name, severity=severity)


def _archive(name: str) -> zipfile.ZipFile:
    path = Path(os.environ.get("WITHSTAND_DATA", "data")) / "vision" / name
    if not path.is_file():
        raise bad("WITHSTAND_DATA", f"no vision/{name} there", "the folder of the data sets")
    return zipfile.ZipFile(path)


def _photos() -> Tensor:
    """The first photographs of the ImageNet samples, cropped to a square and resized: [N, 3, 224, 224]."""
    with _archive("imagenet_samples.zip") as archive:
        names = sorted(n for n in archive.namelist() if n.lower().endswith((".jpg", ".jpeg")))[:PHOTOS]
        made = []
        for name in names:
            photo = Image.open(io.BytesIO(archive.read(name))).convert("RGB")
            side = min(photo.size)
            left, top = (photo.width - side) // 2, (photo.height - side) // 2
            made.append(np.asarray(photo.crop((left, top, left + side, top + side)).resize((224, 224))))
    return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2).contiguous()


def _thumbs() -> Tensor:
    """The first CIFAR-10 test images: [N, 3, 32, 32]."""
    with _archive("cifar10_test.zip") as archive:
        strip = min(n for n in archive.namelist() if n.endswith(".webp"))
        pixels = np.asarray(Image.open(io.BytesIO(archive.read(strip))).convert("RGB"))
    return torch.from_numpy(pixels.reshape(-1, 32, 32, 3)[:THUMBS].copy()).permute(0, 3, 1, 2).contiguous()


if __name__ == "__main__":
    default = Path(__file__).parent / "results" / "corruptions.json"
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else default)
