"""The benchmarks by name: where they lie, what is in them, how they are shown and scored."""

from dataclasses import dataclass
from typing import Literal

from withstand.data.catalogue import plain
from withstand.data.shift.classes import IMAGENET_A, IMAGENET_R
from withstand.data.shift.view import Part
from withstand.errors import unknown

Layout = Literal["wnid", "index", "objectnet", "arrays", "edits"]


@dataclass(frozen=True)
class Benchmark:
    """One test set.

    folders: names that it has under the root, the usual one first. layout: what its class folders are called: WordNet ids,
    numbers 0..999, or ObjectNet's names; "arrays": .npy files; "edits": flat folders and labels.txt. images: how many the
    whole set has (each cell, where it is made of cells); None where copies differ. each: images of every class, where that
    is a rule. subset: the labels that it holds, None = all. part: of each photograph. corrupted: it has a cell for every
    kind and severity.
    """

    name: str
    summary: str
    folders: tuple[str, ...]
    layout: Layout = "wnid"
    images: int | None = None
    each: int | None = None
    subset: tuple[int, ...] | None = None
    part: Part = "centre"
    corrupted: bool = False
    logits: int = 1000
    aliases: tuple[str, ...] = ()


BENCHMARKS = (
    Benchmark(
        "imagenet", "ImageNet's validation part", ("imagenet-val", "imagenet/val", "val", "imagenet"),
        images=50_000, each=50, aliases=("imagenet-val", "val", "imagenet-1k"),
    ),
    Benchmark(
        "imagenet-v2", "new photographs, gathered like ImageNet's",
        ("imagenetv2", "imagenet-v2", "imagenetv2-matched-frequency", "imagenetv2-matched-frequency-format-val"),
        "index", 10_000, 10, aliases=("imagenetv2", "v2"),
    ),
    Benchmark(
        "imagenet-a", "photographs that a ResNet-50 got wrong, 200 classes", ("imagenet-a",),
        images=7_500, subset=IMAGENET_A, aliases=("a",),
    ),
    Benchmark(
        "imagenet-r", "renditions: art, cartoons, toys, 200 classes", ("imagenet-r",),
        images=30_000, subset=IMAGENET_R, aliases=("r",),
    ),
    Benchmark(
        "imagenet-sketch", "black and white sketches", ("imagenet-sketch", "sketch"),
        images=50_889, aliases=("sketch",),
    ),
    Benchmark(
        "stylized", "the validation part in the style of paintings",
        ("imagenet-style", "imagenet-stylized", "stylized-imagenet", "imagenet-style/val", "stylized"),
        images=50_000, each=50, part="whole", aliases=("imagenet-style", "stylized-imagenet", "imagenet-stylized"),
    ),
    Benchmark(
        "objectnet", "objects in odd places and poses, 113 of its 313 classes", ("ObjectNet/images", "objectnet-1.0/images"),
        "objectnet", part="inside", aliases=(),
    ),
    Benchmark(
        "imagenet-c", "the validation part under 15 corruptions at 5 severities", ("imagenet-c", "ImageNet-C"),
        images=50_000, each=50, part="whole", corrupted=True, aliases=("c",),
    ),
    Benchmark(
        "cifar10-c", "CIFAR-10's test part under 15 corruptions", ("CIFAR-10-C", "cifar10-c", "cifar-10-c"),
        "arrays", 10_000, part="whole", corrupted=True, logits=10, aliases=("cifar-10-c",),
    ),
    Benchmark(
        "cifar100-c", "CIFAR-100's test part under 15 corruptions", ("CIFAR-100-C", "cifar100-c", "cifar-100-c"),
        "arrays", 10_000, part="whole", corrupted=True, logits=100, aliases=("cifar-100-c",),
    ),
    Benchmark(
        "imagenet-e", "objects resized, moved and turned, backgrounds changed: eleven edits and their sources",
        ("imagenet-e",), "edits", 4_352, aliases=("e",),
    ),
)  # fmt: skip
"""Counts: the data sets' own pages and papers; ObjectNet's is left open, since its copies differ."""


def benchmark(name: str) -> Benchmark:
    """The benchmark with this name or alias. Raises: BadInput with the nearest names."""
    for entry in BENCHMARKS:
        if plain(name) in (entry.name, *entry.aliases):
            return entry
    raise unknown("benchmark", name, (n for e in BENCHMARKS for n in (e.name, *e.aliases) if len(n) > 1))
