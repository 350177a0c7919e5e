"""BIA on small grey images: a generator learns on MNIST digits and is judged on classifiers of clothing and of letters.

The source is a small VGG-like network, the layer its first max-pool, after two of its four convolutions; generators of 16
channels and two blocks learn with the published optimiser for a few hundred steps (the paper: 80,000 on ImageNet). The
judges are networks of up to three architectures, one of them the source's, trained separately on Fashion-MNIST (clothing),
notMNIST (letters) and MNIST (the source's own domain, without its architecture); an image's row is the share of a domain's
networks that have it right. Beside BIA and its variants: random signs of size eps; CDA with the same generator; PGD and DI
on the source's logits and PGD on BIA's own cosine, which search anew for each image and, having no labels, go away from
what the source says.

All is done from two sources: one takes images as they are; in front of the other ("normalised") lies MNIST's mean and
deviation, as ImageNet's lie in front of the published ones, and random normalisation takes their place. There is one eps,
and DIM is the only other attack of those that the paper compares with.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from withstand.attacks import DI, PGD, Generated
from withstand.attacks.generative.bia import PUBLISHED
from withstand.attacks.generative.source import Source
from withstand.data import load_data
from withstand.data.images import Images
from withstand.models.target import Normalised
from withstand.protocols import Claim, Seen
from withstand.random import Rows, derive
from withstand.registry import parse
from withstand.reproductions.arms import fresh, right
from withstand.threats import Linf
from withstand.training import Adam, Trainer

SYSTEM = "bia"

SOURCE, LAYER, EPS = ("mnist", "cnn_28"), "4", 0.2
KINDS: dict[str, tuple[tuple[float], tuple[float]] | None] = {"": None, "normalised": ((0.1307,), (0.3081,))}
"""The sources, and the mean and standard deviation that their inputs are brought to: those of MNIST."""
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


def _claims(kind: str) -> list[Claim]:
    """From the source that takes images as they are (""), or from the one behind its normalisation."""
    own = f"{kind} / " if kind else ""

    def claim(statement: str, first: str, last: str, source: str = _CONTROL, metric: str = "accuracy") -> Claim:
        said = f"{statement} ({kind} source)" if kind else statement
        return Claim(said, source, (first, f"{own}{last}"), metric, "lower", SCALES)

    return [
        claim("Learned on digits, BIA breaks classifiers of clothing more than random signs do",
              "fashion-mnist / random_signs", "fashion-mnist / bia"),
        claim("... classifiers of letters", "notmnist / random_signs", "notmnist / bia"),
        claim("... other classifiers of digits", "mnist / random_signs", "mnist / bia"),
        claim("... and turns the source's own features further", f"{own}source / random_signs", "source / bia",
              metric="cosine"),
        claim("It breaks classifiers of other domains more than CDA does", f"{own}other domains / cda",
              "other domains / bia", _LATER),
        claim("... than PGD on the source's logits does", f"{own}other domains / pgd_logits", "other domains / bia"),
        claim("... than PGD on its own loss does, which searches anew for each image", f"{own}other domains / pgd_features",
              "other domains / bia"),
        claim("Random normalisation breaks them more", f"{own}other domains / bia", "other domains / bia_rn", _PAPER),
        claim("Domain-agnostic attention breaks them more", f"{own}other domains / bia", "other domains / bia_da", _PAPER),
        claim("Both together break them more", f"{own}other domains / bia", "other domains / bia_rn_da", _PAPER),
    ]  # fmt: skip


CLAIMS = [claim for kind in KINDS for claim in _claims(kind)]


def measure(scale: str, seed: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """Train sources, judges and generators, and judge; see the package for the rows."""
    s = SCALES[scale]
    learn = _part(SOURCE[0], "train", s["images"], derive(seed, "images"))
    trainer = Trainer(**{**PUBLISHED, "epochs": s["passes"], "accelerator": s.get("accelerator", "cpu")})
    sources, points = {}, {}
    for kind, normal in KINDS.items():
        own = f"{kind} / " if kind else ""
        progress(f"{own}source: {' '.join(SOURCE)}")
        sources[own] = source = network(*SOURCE, s, seed, "source", normal)
        points |= {(own, arm): attack for arm, attack in plain(source).items()}
        for arm, recipe in GENERATORS.items():
            progress(f"{own}{arm}: training")
            fitted = trainer.fit(parse(recipe, "recipe"), source, learn, seed=derive(seed, arm))
            points[own, arm] = Generated(Linf(EPS), fitted.last)
    stands: dict[tuple[str, str, str], Tensor] = {}
    rows = []
    for domain, networks in JUDGES.items():
        test = _part(domain, "test", s["test"], 0).batch(range(s["test"]))
        assert test.y is not None
        x, y = test.x, test.y
        moved = {("", "clean"): x, ("", "random_signs"): signs(x, seed)}
        moved |= {(own, arm): attack(sources[own], x, seed=seed) for (own, arm), attack in points.items()}
        progress(f"{domain}: judges")
        judges = [network(domain, name, s, seed, "judge") for name in networks]
        for (own, arm), z in moved.items():
            stands[domain, own, arm] = torch.stack([right(judge, z, y) for judge in judges]).double().mean(0)
            rows.append(_row(f"{own}{domain} / {arm}", "accuracy", stands[domain, own, arm]))
            if domain == SOURCE[0] and arm != "clean":
                asked = sources if arm == "random_signs" else [own]
                rows += [_row(f"{kind}source / {arm}", "cosine", cosine(sources[kind], x, z)) for kind in asked]
    for own, arm in [("", "clean"), ("", "random_signs"), *points]:
        others = [stands[domain, own, arm] for domain in JUDGES if domain != SOURCE[0]]
        rows.append(_row(f"{own}other domains / {arm}", "accuracy", torch.cat(others)))
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
    held = Source(source)
    return F.cosine_similarity(*(held.features(part, LAYER).flatten(1) for part in (x, z)), dim=1)


def network(
    domain: str, name: str, s: Mapping[str, Any], seed: int, role: str, normal: tuple[Any, Any] | None = None
) -> nn.Module:
    """A network trained on a domain, behind a normalisation (mean, standard deviation) if there is one."""
    trainer = Trainer(epochs=s["epochs"], batch=64, optimizer=Adam(2e-3), schedule="cosine",
                      accelerator=s.get("accelerator", "cpu"))  # fmt: skip
    own = derive(seed, role)
    bare = fresh(name, 10, own)
    model = bare if normal is None else Normalised(bare, *normal)
    fitted = trainer.fit("standard", model, _part(domain, "train", s["train"], own), seed=own)
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
