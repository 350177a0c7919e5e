"""Contrastive encoders beside supervised ones: one network, the same augmentations and number of steps, a linear probe on
frozen features, attacked through its head.

How the paper finds false negatives could not be confirmed (see `withstand.representation.false_negatives`), nor any of
its tables: the claims are the abstract's, the numbers are this experiment's. Digits by a network without batch norm, and
clothes of Fashion-MNIST by one with it. That the paper's two adversarial contrastive methods are ACL and AdvCL could not be
confirmed either; AdvCL learns the clusters of the features of the SimCLR encoder beside it, of the same examples. Videos are
left out.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from withstand.attacks import PGD
from withstand.corruptions import corrupt
from withstand.data import load_data
from withstand.hardening.harden import Hardened, harden
from withstand.models.feature_encoder import Probe
from withstand.protocols import Claim, Dataset, Figure
from withstand.random import Rows, derive
from withstand.registry import parse, replace
from withstand.representation.clusters import with_clusters
from withstand.representation.measures import gap_closed, relative_drop, representation_measures, sensitivity
from withstand.representation.probe import linear_probe
from withstand.reproductions.arms import CORRUPTIONS, TRAINER, fresh, right, row
from withstand.threats import Linf
from withstand.training import Trainer

SYSTEM = "csl_robustness"

ARMS: dict[str, str] = {
    "sl_ce": "standard",
    "supcon": "contrastive('supcon', {contrast})",
    "simclr": "contrastive({contrast})",
    "simsiam": "simsiam({negative_free})",
    "fnc": "contrastive('fnc', analysis=True, {contrast})",
    "attraction": "contrastive('attraction', analysis=True, {contrast})",
    "afnc": "contrastive('afnc', analysis=True, {contrast})",
    "oracle": "contrastive('oracle', {contrast})",
}
"""Supervised ones, contrastive, without negatives, and what mends contrast: "afnc" is the adaptive removal, "fnc" the same
from the first step on; "supcon" and "oracle" know the labels."""
DEBIASED = {"debiased": "contrastive('debiased', {contrast})"}
ADVERSARIAL: dict[str, str] = {
    "adversarial / simclr": "contrastive({contrast})",
    "adversarial / acl": "acl(attack={attack}, {contrast})",
    "adversarial / acl_afnc": "acl('afnc', attack={attack}, {contrast})",
}
"""On a network with batch norm, which ACL and AdvCL split."""
ADVCL: dict[str, str] = {
    "adversarial / advcl": "advcl(attack={attack}, radius={radius}, {pseudo}, {contrast})",
    "adversarial / advcl_afnc": "advcl('afnc', attack={attack}, radius={radius}, {pseudo}, {contrast})",
    "adversarial / advcl_lite": "advcl(attack={attack}, radius=None, {pseudo}, {contrast})",
}
"""Beside those; "advcl_lite" goes without the high-frequency view."""
_LABELLER = "adversarial / simclr"
"""Whose features AdvCL takes clusters from."""
CLOTHES = {f"clothes / {arm}": ARMS[arm] for arm in ("sl_ce", "supcon", "simclr", "fnc", "afnc", "oracle")}
"""The second data set."""
RADII = (0.25, 0.5, 1.0, 1.5)
"""At which accuracy is measured, in units of eps."""

_VIEWS = "'crop_flip(1, flip=False)', 'intensity(0.6, 1.2)', 'add_noise(0.1)'"
_WORN = "'crop_flip(2)', 'intensity(0.6, 1.2)', 'add_noise(0.05)'"
_CPU: dict[str, Any] = {
    "data": "digits", "network": "digits_cnn", "eps": 0.06, "steps": 15, "train": 1000, "test": 500,
    "views": f"[{_VIEWS}]", "contrast": f"tau=0.2, dim=32, views=[{_VIEWS}]",
    "negative_free": f"dim=64, views=[{_VIEWS}]",
    "epochs": 50, "batch": 250, "optimizer": "adam(2e-3)", "schedule": "constant", "accelerator": "cpu",
    "adversarial": {
        "network": "digits_bn_cnn", "eps": 0.1, "attack": "pgd(linf(0.1), steps=5)", "epochs": 30,
    },
    "advcl": {"radius": 2.0, "pseudo": "clusters=(2, 10, 20, 50, 100), light='crop_flip(1, flip=False)'"},
    "clothes": {
        "data": "fashion-mnist", "size": 14, "network": "mnist_bn_cnn", "eps": 0.04, "train": 1500, "epochs": 30,
        "views": f"[{_WORN}]", "contrast": f"tau=0.2, dim=32, views=[{_WORN}]",
    },
}  # fmt: skip
_CIFAR = "'random_resized_crop', 'colour_jitter', 'grayscale'"
_LARGE = "'random_resized_crop', 'intensity(0.6, 1.2)', 'add_noise(0.05)'"
SCALES: dict[str, dict[str, Any]] = {
    "smoke": _CPU | {
        "epochs": 4, "train": 500, "test": 100, "adversarial": _CPU["adversarial"] | {"epochs": 2},
        "clothes": {"network": "digits_bn_cnn", "epochs": 2},  # digits again, which need no files
    },
    "cpu": _CPU,
    "gpu": _CPU | {
        "data": "cifar10", "network": "resnet18", "eps": 2 / 255, "steps": 20, "train": 50_000, "test": 2000,
        "views": f"[{_CIFAR}]", "contrast": f"tau=0.2, views=[{_CIFAR}]",
        "negative_free": f"dim=2048, bottleneck=512, views=[{_CIFAR}]",
        "epochs": 60, "batch": 1024, "optimizer": "sgd(0.5, weight_decay=1e-4)", "schedule": "cosine(warmup=0.1)",
        "precision": "bf16-mixed", "channels_last": True, "accelerator": "cuda", "device": "cuda",
        "adversarial": {
            "network": "resnet18", "eps": 8 / 255, "attack": "pgd(linf(8/255), steps=5, step=1/4)", "epochs": 30,
            "batch": 512, "train": 10_000,
        },
        "advcl": {"radius": 8.0, "pseudo": "light='crop_flip(4)'"},
        "clothes": {
            "data": "fashion-mnist", "network": "mnist_bn_cnn", "eps": 0.04, "train": 50_000, "views": f"[{_LARGE}]",
            "contrast": f"tau=0.2, views=[{_LARGE}]",
        },
    },
}  # fmt: skip
_PAPER = "Gupta, Akhtar, Mian, Shah, 2022, arXiv 2207.10862, abstract"
_INTRO = "Gupta, Akhtar, Mian, Shah, 2022, arXiv 2207.10862, introduction and figure 1"
_FAN = "Fan, Liu, Chen, Zhang, Gan, 2021, arXiv 2111.01124, abstract"
_HALF, _ONE = "robust_accuracy_0.5eps", "robust_accuracy_1eps"
_ALL = (_HALF, _ONE, "corruption_accuracy")


def _claim(
    statement: str, first: str, last: str, metric: str, direction: Any = "higher", source: str = _PAPER
) -> Claim:
    return Claim(statement, source, (first, last), metric, direction, SCALES, seeds=(0, 1, 2, 3, 4))


_WORN_CLAIMS: tuple[tuple[str, str, str, Any, str, tuple[str, ...]], ...] = (
    ("sl_ce", "simclr", "A contrastive encoder is less robust than one trained with cross-entropy", "lower", _INTRO, _ALL),
    ("supcon", "simclr", "A contrastive encoder is less robust than one contrasted by labels", "lower", _INTRO, _ALL),
    ("simclr", "afnc", "Adaptive removal of false negatives raises robust accuracy", "higher", _PAPER, (_HALF, _ONE)),
    ("simclr", "oracle", "Removal of all false negatives raises robust accuracy", "higher", _PAPER, (_HALF, _ONE)),
    ("afnc", "oracle", "Removing what labels name helps more than removing what is similar", "higher", _PAPER, (_ONE,)),
    ("fnc", "afnc", "Removal that grows beats removal from the first step on", "higher", _PAPER, (_ONE,)),
    ("chance", "afnc", "What is removed at the end is of the class more than by chance", "higher", _PAPER, ("precision",)),
)  # fmt: skip
CLAIMS = [
    *(
        _claim(f"A contrastive encoder is less robust than {what}", reference, "simclr", metric, "lower", _INTRO)
        for reference, what in (("sl_ce", "one trained with cross-entropy"), ("supcon", "one contrasted by labels"))
        for metric in (_HALF, _ONE, "corruption_accuracy")
    ),
    _claim("One trained without negatives is less robust than with labels", "supcon", "simsiam", _ONE, "lower", _INTRO),
    *(
        _claim(f"{what} raises robust accuracy", "simclr", arm, metric)
        for arm, what in (("afnc", "Adaptive removal of false negatives"), ("oracle", "Removal of all false negatives"))
        for metric in (_HALF, _ONE)
    ),
    _claim("Adaptive removal raises accuracy under corruptions", "simclr", "afnc", "corruption_accuracy"),
    _claim("Removing what labels name helps more than removing what is similar", "afnc", "oracle", _ONE),
    _claim("Removal that grows beats removal from the first step on", "fnc", "afnc", _ONE),
    _claim("Removal beats attraction of the same views", "attraction", "afnc", _ONE),
    _claim("What is removed at the end is of the anchor's class more than by chance", "chance", "afnc", "precision"),
    *(
        _claim(statement, first, last, "inter_intra_ratio", source=_INTRO)
        for statement, first, last in (
            ("Classes are further apart for their width without false negatives", "simclr", "oracle"),
            ("... and yet more where classes attract", "oracle", "supcon"),
            ("... and so they are with adaptive removal", "simclr", "afnc"),
        )
    ),
    _claim("ACL raises robust accuracy", "adversarial / simclr", "adversarial / acl", _ONE),
    *(
        _claim("Adaptive removal raises ACL's robust accuracy", "adversarial / acl", "adversarial / acl_afnc", metric)
        for metric in (_HALF, _ONE)
    ),
    _claim("... and its accuracy", "adversarial / acl", "adversarial / acl_afnc", "accuracy"),
    _claim("AdvCL raises robust accuracy", "adversarial / simclr", "adversarial / advcl", _ONE, source=_FAN),
    _claim("... above that of ACL", "adversarial / acl", "adversarial / advcl", _ONE, source=_FAN),
    _claim("Its high-frequency view helps", "adversarial / advcl_lite", "adversarial / advcl", _ONE, source=_FAN),
    *(
        _claim(
            "Adaptive removal raises AdvCL's robust accuracy", "adversarial / advcl", "adversarial / advcl_afnc", metric
        )
        for metric in (_HALF, _ONE)
    ),
    _claim("... and its accuracy", "adversarial / advcl", "adversarial / advcl_afnc", "accuracy"),
    *(
        _claim(f"{statement} (clothes)", f"clothes / {first}", f"clothes / {last}", metric, direction, source)
        for first, last, statement, direction, source, metrics in _WORN_CLAIMS
        for metric in metrics
    ),
]


def measure_arms(
    experiments: Sequence[tuple[Mapping[str, str], tuple[str, ...]]],
    scale: str,
    seed: int,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Train encoders, probe them, and attack the probes; see the package for the rows. experiments: arms, and which of the
    scale's settings are theirs beside those of all."""
    rows = []
    for arms, names in experiments:
        own = _settings(scale, names)
        learn, labeller = _load(own, "train", seed), None
        if arms is ADVCL:
            progress(f"{_LABELLER}: training for pseudo-labels")
            labeller = _train(parse(ADVERSARIAL[_LABELLER].format(**own), "recipe"), own, learn, None, seed).module
        for name, recipe in arms.items():
            progress(f"{name}: training")
            trained = _train(parse(recipe.format(**own), "recipe"), own, learn, labeller, seed)
            progress(f"{name}: judging")
            rows += _judge(name, trained, own, learn, seed)
        if arms is ARMS or arms is CLOTHES:
            rows.append(_chance(arms, learn))
    return {"rows": rows}


PARTS: dict[str, partial[dict[str, Any]]] = {
    "digits": partial(measure_arms, [(ARMS, ()), (ADVERSARIAL, ("adversarial",))]),
    "debiased": partial(measure_arms, [(DEBIASED, ())]),
    "advcl": partial(measure_arms, [(ADVCL, ("adversarial", "advcl"))]),
    "clothes": partial(measure_arms, [(CLOTHES, ("clothes",))]),
}


def figures(seeds: Sequence[Sequence[Mapping[str, Any]]]) -> list[Figure]:
    """Robust accuracy against the radius, the share of the gap that is closed, precision epoch by epoch, geometry."""
    made = [
        _curves("Robust accuracy of probes", [*ARMS, *DEBIASED], seeds),
        _curves("Robust accuracy of probes, clothes", [*CLOTHES], seeds),
        _curves("Robust accuracy of probes, adversarial training", [*ADVERSARIAL, *ADVCL], seeds),
    ]
    mended = ("simsiam", "fnc", "attraction", "debiased", "afnc", "oracle")
    worn = ("clothes / fnc", "clothes / afnc", "clothes / oracle")
    for reference in ("supcon", "sl_ce"):
        found = [
            (f"{arm}, {_words(m)}", _closed(seeds, arm, reference, m))
            for m in (_HALF, _ONE)
            for arm in (*mended, *worn)
        ]
        data = _bars("share of the gap", "ratio", found)
        caption = f"(method - simclr) / ({reference} - simclr), of means over seeds; 1 is as robust as {reference}."
        made.append(Figure("bars", f"Gap to {reference} closed", data, caption))
    epochs = len(_examples(seeds, "afnc", "precision_by_epoch")[0])
    found = [(arm, _examples(seeds, arm, "precision_by_epoch").mean(0)) for arm in ("fnc", "attraction", "afnc")]
    chance = float(_examples(seeds, "chance", "precision").mean())
    drawn = [{"name": arm, "y": [float(v) if v else None for v in values]} for arm, values in found]
    drawn.append({"name": "chance", "y": [chance] * epochs})
    data = {
        "x": list(range(1, epochs + 1)),
        "x_label": "epoch",
        "y_label": "same class",
        "unit": "share",
        "series": drawn,
    }
    made.append(Figure("curve", "Precision of what is taken for false negatives", data))
    ratios = [(arm, float(_examples(seeds, arm, "inter_intra_ratio").mean())) for arm in (*ARMS, *DEBIASED)]
    data = _bars("margin over radius", "ratio", ratios)
    return [*made, Figure("bars", "Distance between classes over their radius", data)]


def _settings(scale: str, names: Sequence[str]) -> dict[str, Any]:
    own = dict(SCALES[scale])
    for name in names:
        own |= SCALES[scale][name]
    return own


def _train(made: Any, s: Mapping[str, Any], learn: Dataset, labeller: Any, seed: int) -> Hardened:
    settings = {key: s[key] for key in TRAINER if key in s}
    if made.task == "classification":
        settings["augment"] = _views(s)
    if labeller is not None and hasattr(made, "clusters"):
        learn = with_clusters(labeller, learn, made.clusters, seed)
    network = fresh(s["network"], len(learn.classes), seed)
    return harden(network, learn, made, trainer=Trainer(**settings), validation=None, seed=seed)


def _judge(name: str, trained: Hardened, s: Mapping[str, Any], learn: Dataset, seed: int) -> list[dict[str, Any]]:
    """What is measured of an encoder, and of a probe upon it."""
    probe = linear_probe(trained.module.to(s.get("device", "cpu")), learn)  # type: ignore[union-attr]
    test = _load(s, "test", 0).batch(range(s["test"])).to(s.get("device", "cpu"))
    assert test.y is not None
    return [*judged(name, probe, test.x, test.y, s, seed), *_precision(name, trained.history)]


def _chance(arms: Mapping[str, str], learn: Dataset) -> dict[str, Any]:
    """How many pairs of examples are of one class."""
    labels = _labels(learn)
    alike = float(torch.bincount(labels).double().square().sum() - len(labels)) / (len(labels) * (len(labels) - 1))
    return {"arm": "clothes / chance" if arms is CLOTHES else "chance", "metric": "precision", "examples": [alike]}


def judged(name: str, probe: Probe, x: Tensor, y: Tensor, s: Mapping[str, Any], seed: int) -> list[dict[str, Any]]:
    """Clean, robust and corrupted accuracy of a probe, how far its features move, and how its classes lie."""
    clean = right(probe, x, y)
    rows = [row(name, "accuracy", clean)]
    moved = x
    for radius in RADII:
        attack = PGD(Linf(radius * s["eps"]), steps=s["steps"])
        z = attack(probe, x, y, seed=derive(seed, "judge"))
        stands = clean & right(probe, z, y)
        rows.append(row(name, f"robust_accuracy_{radius:g}eps", stands))
        if radius == 1:
            # how far the attack goes, of examples that were wrong at the clean point as well
            moved = replace(attack, keep="last", active=False)(probe, x, y, seed=derive(seed, "judge"))
            share = float(clean.float().mean())
            drop = relative_drop(share, float(stands.float().mean())) if share else 0.0
            rows.append({"arm": name, "metric": "relative_drop", "examples": [drop]})
    corrupted = [right(probe, corrupt(x, kind, 3, seed, preset="cifar"), y) for kind in CORRUPTIONS]
    stands = torch.stack(corrupted).float().mean(0)
    rows.append({"arm": name, "metric": "corruption_accuracy", "examples": [round(v, 4) for v in stands.tolist()]})
    signs = Rows.count(derive(seed, "sensitivity"), len(x)).signs(tuple(x.shape[1:]), "signs").to(x)
    for what, other in (("random", (x + s["eps"] * signs).clamp(0, 1)), ("attacked", moved)):
        stretch = sensitivity(probe.encoder, x, other)
        rows.append({"arm": name, "metric": f"sensitivity_{what}", "examples": [round(v, 4) for v in stretch.tolist()]})
    with torch.no_grad():
        geometry = representation_measures(probe.encoder(x), y)
    return [*rows, *({"arm": name, "metric": key, "examples": [value]} for key, value in geometry.items())]


def _precision(name: str, history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The share of the removed (or attracted) views that are of the anchor's class, epoch by epoch, and at the end."""
    if "removed_own_class" not in history[-1]:
        return []
    shares = [epoch["removed_own_class"] / epoch["removed"] if epoch["removed"] else 0.0 for epoch in history]
    return [
        {"arm": name, "metric": "precision", "examples": shares[-1:]},
        {"arm": name, "metric": "precision_by_epoch", "examples": [round(v, 4) for v in shares]},
    ]


def _views(s: Mapping[str, Any]) -> tuple[Any, ...]:
    made = parse(f"contrastive(views={s['views']})", "recipe")
    return made.views


def _load(s: Mapping[str, Any], part: str, seed: int) -> Dataset:
    return load_data(s["data"], split=part, limit=s[part], seed=seed, size=s.get("size"))


def _labels(data: Dataset) -> Tensor:
    labels = data.batch(range(len(data))).y
    assert labels is not None
    return labels


def _examples(seeds: Sequence[Sequence[Mapping[str, Any]]], arm: str, metric: str) -> np.ndarray:
    """float [seeds, examples]."""
    found = [next(r["examples"] for r in rows if (r["arm"], r["metric"]) == (arm, metric)) for rows in seeds]
    return np.array([[float(v) for v in examples] for examples in found])


def _closed(seeds: Sequence[Sequence[Mapping[str, Any]]], arm: str, reference: str, metric: str) -> float | None:
    where = arm.rpartition("/ ")[0] + "/ " if "/" in arm else ""
    method, plain, best = (
        float(_examples(seeds, a, metric).mean()) for a in (arm, f"{where}simclr", f"{where}{reference}")
    )
    return gap_closed(method, plain, best) if best > plain else None


def _curves(title: str, arms: Sequence[str], seeds: Sequence[Sequence[Mapping[str, Any]]]) -> Figure:
    metrics = ["accuracy", *(f"robust_accuracy_{radius:g}eps" for radius in RADII)]
    drawn = [
        {"name": arm.rpartition("/ ")[2], "y": [float(_examples(seeds, arm, metric).mean()) for metric in metrics]}
        for arm in arms
    ]
    data = {"x": [0, *RADII], "x_label": "radius / eps", "y_label": "accuracy", "unit": "share", "series": drawn}
    return Figure("curve", title, data, f"Means over {len(seeds)} seeds.")


def _bars(y_label: str, unit: str, found: Sequence[tuple[str, float | None]]) -> dict[str, Any]:
    series = [{"name": y_label, "values": [value for _, value in found]}]
    return {"labels": [label for label, _ in found], "y_label": y_label, "unit": unit, "series": series}


def _words(metric: str) -> str:
    return metric.replace("robust_accuracy_", "at ").replace("eps", " eps")
