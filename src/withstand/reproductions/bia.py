"""BIA on small grey images: a generator learns on MNIST digits and is judged on classifiers of clothing and of letters.

The source is a small VGG-like network, the layer its first max-pool, after two of its four convolutions; generators of 16
channels and two blocks learn with the published optimiser for a few hundred steps (the paper: 80,000 on ImageNet). The
judges are networks of up to three architectures, one of them the source's, trained separately on Fashion-MNIST (clothing),
notMNIST (letters) and MNIST (the source's own domain, without its architecture); an image's row is the share of a domain's
networks that have it right. Beside BIA and its variants: random signs of size eps; CDA with the same generator; PGD and DI
on the source's logits and PGD on BIA's own cosine, which search anew for each image and, having no labels, go away from
what the source says.

The source takes images in [0, 1] without a normalisation, where the published ones have one. Random normalisation then shows
it inputs unlike those that it has learned, so that the verdicts on the variants with it say little about the method. There
is one eps, and DIM is the only other attack of those that the paper compares with.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from withstand.attacks import DI, PGD, Generated
from withstand.attacks.generative.bia import PUBLISHED
from withstand.data import load_data
from withstand.data.images import Images
from withstand.models.taps import Tap, see
from withstand.protocols import Claim, Seen
from withstand.random import Rows, derive
from withstand.registry import parse
from withstand.reproductions.arms import fresh, right
from withstand.threats import Linf
from withstand.training import Adam, Trainer

SYSTEM = "bia"

SOURCE, LAYER, EPS = ("mnist", "cnn_28"), "4", 0.2
JUDGES = {
    "mnist": ("mnist_cnn", "mnist_bn_cnn"),
    "fashion-mnist": ("mnist_cnn", "mnist_bn_cnn", "cnn_28"),
    "notmnist": ("mnist_cnn", "mnist_bn_cnn", "cnn_28"),
}
_OWN = f"eps={EPS}, ngf=16, blocks=2"
GENERATORS = {
    "cda": f"cda({_OWN})",
    "bia": f"bia({LAYER!r}, {_OWN})",
    "bia_rn": f"bia({LAYER!r}, rn=True, {_OWN})",
    "bia_da": f"bia({LAYER!r}, da=True, {_OWN})",
    "bia_rn_da": f"bia({LAYER!r}, rn=True, da=True, {_OWN})",
    "bia_residual": f"bia({LAYER!r}, parameterisation='residual', {_OWN})",
}
SCALES: dict[str, dict[str, Any]] = {
    "smoke": {"train": 300, "epochs": 2, "images": 64, "passes": 1, "test": 30},
    "cpu": {"train": 6000, "epochs": 4, "images": 2000, "passes": 3, "test": 500},
    "gpu": {"train": 16000, "epochs": 8, "images": 16000, "passes": 5, "test": 1000, "accelerator": "cuda"},
}

_PAPER = "Zhang et al., 2022, arXiv 2201.11528, abstract: both variants narrow the gap between domains"
_CONTROL = "our control; not in the paper"
_LATER = "Zhang et al., 2022, arXiv 2201.11528; CDA beside it as measured anew by the authors of SCGA"


def _claim(statement: str, first: str, last: str, metric: str = "accuracy", source: str = _CONTROL) -> Claim:
    return Claim(statement, source, (first, last), metric, "lower", SCALES)


CLAIMS = [
    _claim("Learned on digits, BIA breaks classifiers of clothing more than random signs do",
           "fashion-mnist / random_signs", "fashion-mnist / bia"),
    _claim("... classifiers of letters", "notmnist / random_signs", "notmnist / bia"),
    _claim("... other classifiers of digits", "mnist / random_signs", "mnist / bia"),
    _claim("... and turns the source's own features further", "source / random_signs", "source / bia", "cosine"),
    _claim("It breaks classifiers of other domains more than CDA does", "other domains / cda", "other domains / bia",
           source=_LATER),
    _claim("... than PGD on the source's logits does", "other domains / pgd_logits", "other domains / bia"),
    _claim("... than PGD on its own loss does, which searches anew for each image", "other domains / pgd_features",
           "other domains / bia"),
    _claim("Random normalisation, on a source without one of its own, breaks them more",
           "other domains / bia", "other domains / bia_rn", source=_PAPER),
    _claim("Domain-agnostic attention breaks them more", "other domains / bia", "other domains / bia_da", source=_PAPER),
    _claim("Both together break them more", "other domains / bia", "other domains / bia_rn_da", source=_PAPER),
]  # fmt: skip


def measure(scale: str, seed: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """Train source, judges and generators, and judge; see the package for the rows."""
    s = SCALES[scale]
    progress(f"source: {' '.join(SOURCE)}")
    source = network(*SOURCE, s, seed, "source")
    learn = _part(SOURCE[0], "train", s["images"], derive(seed, "images"))
    trainer = Trainer(**{**PUBLISHED, "epochs": s["passes"], "accelerator": s.get("accelerator", "cpu")})
    points = plain(source)
    for arm, recipe in GENERATORS.items():
        progress(f"{arm}: training")
        fitted = trainer.fit(parse(recipe, "recipe"), source, learn, seed=derive(seed, arm))
        points[arm] = Generated(Linf(EPS), fitted.last)
    stands: dict[tuple[str, str], Tensor] = {}
    rows = []
    for domain, networks in JUDGES.items():
        test = _part(domain, "test", s["test"], 0).batch(range(s["test"]))
        assert test.y is not None
        x, y = test.x, test.y
        moved = {arm: attack(source, x, seed=seed) for arm, attack in points.items()}
        progress(f"{domain}: judges")
        judges = [network(domain, name, s, seed, "judge") for name in networks]
        for arm, z in {"clean": x, "random_signs": signs(x, seed), **moved}.items():
            stands[domain, arm] = torch.stack([right(judge, z, y) for judge in judges]).double().mean(0)
            rows.append(_row(f"{domain} / {arm}", "accuracy", stands[domain, arm]))
            if domain == SOURCE[0] and arm != "clean":
                rows.append(_row(f"source / {arm}", "cosine", cosine(source, x, z)))
    for arm in ("clean", "random_signs", *points):
        others = [stands[domain, arm] for domain in JUDGES if domain != SOURCE[0]]
        rows.append(_row(f"other domains / {arm}", "accuracy", torch.cat(others)))
    return {"rows": rows}


def plain(source: nn.Module) -> dict[str, Any]:
    """Attacks that search for each image anew, on the source; without labels."""
    last: dict[str, Any] = {"keep": "last", "active": False}
    return {
        "pgd_logits": PGD(Linf(EPS), **last),
        "di_logits": DI(Linf(EPS)),
        "pgd_features": PGD(Linf(EPS), objective=Turned(), **last),
    }


class Turned:
    """Minus the cosine between the layer's answers to the point and to the clean image."""

    reads = (LAYER,)
    coupled = False
    criterion = None

    def begin(self, clean: Seen, y: Tensor, rows: Rows) -> dict[str, Tensor]:
        return {"clean": clean.features[LAYER].flatten(1)}

    def __call__(self, seen: Seen, y: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        return -F.cosine_similarity(seen.features[LAYER].flatten(1), state["clean"], dim=1)


def signs(x: Tensor, seed: int) -> Tensor:
    """A random corner of the set around each image."""
    return (x + EPS * Rows.count(seed, len(x)).signs(tuple(x.shape[1:]), "signs")).clamp(0, 1)


@torch.no_grad()
def cosine(source: nn.Module, x: Tensor, z: Tensor) -> Tensor:
    """Between the layer's answers to points and clean images, [N]."""
    return F.cosine_similarity(*(see(source, part, Tap(LAYER))[1].flatten(1) for part in (x, z)), dim=1)


def network(domain: str, name: str, s: Mapping[str, Any], seed: int, role: str) -> nn.Module:
    """A network trained on a domain."""
    trainer = Trainer(epochs=s["epochs"], batch=64, optimizer=Adam(2e-3), schedule="cosine",
                      accelerator=s.get("accelerator", "cpu"))  # fmt: skip
    own = derive(seed, role)
    fitted = trainer.fit("standard", fresh(name, 10, own), _part(domain, "train", s["train"], own), seed=own)
    return fitted.last.eval().cpu()


def _part(domain: str, split: str, most: int, seed: int) -> Images:
    """Images of a domain; of notMNIST, which has no split of its own, the last quarter is the test part."""
    if domain != "notmnist":
        return load_data(domain, split=split, limit=most, seed=seed)
    data = load_data(domain)
    order, cut = torch.randperm(len(data), generator=torch.Generator().manual_seed(0)).numpy(), len(data) * 3 // 4
    return data.subset(order[:cut][:most] if split == "train" else order[cut:][:most])


def _row(arm: str, metric: str, examples: Tensor) -> dict[str, Any]:
    return {"arm": arm, "metric": metric, "examples": [round(v, 4) for v in examples.tolist()]}
