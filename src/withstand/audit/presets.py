"""Which checks an audit runs.

A preset is a list of check texts in which {linf} and {l2} stand for the usual radii of the data at hand. A check whose needs
are not given, or whose access none of the models allows, is left out; the presets' black-box checks come in two sizes, since
a model behind an address answers slowly.
"""

from collections.abc import Collection, Sequence
from typing import Any

from withstand.audit.check import Check
from withstand.errors import bad, unknown
from withstand.protocols import Space
from withstand.registry import coerce, entries, parse

PRESETS: dict[str, tuple[str, ...]] = {
    "quick": (
        "clean",
        "robust({linf}, examples=100)",
        "curve({linf}, attack=apgd(steps=20), examples=100)",
        "per_class",
        "training_curve",
        "corruptions(severities=(3,), examples=100)",
        "attributes(examples=100)",
        "transfer({linf}, examples=200)",
        "guided({linf}, examples=100)",
        "unfamiliar(examples=400)",
        "saliency(examples=64)",
        "knn({linf}, examples=100)",
        "trust(threat={linf})",
    ),
    "standard": (
        "clean",
        "robust({linf}, examples=1000)",
        "curve({linf}, attack=apgd(), examples=500)",
        "curve({l2}, attack=apgd(), examples=500)",
        "per_class",
        "training_curve",
        "minimum_distance(l2(), examples=200)",
        "corruptions(examples=1000)",
        "attributes(examples=1000)",
        "transfer({linf}, examples=1000)",
        "guided({linf}, examples=1000)",
        "blackbox({linf}, attack=square(queries=1000), examples=200)",
        "unfamiliar(examples=5000)",
        "saliency",
        "knn({linf}, examples=1000)",
        "trust(threat={linf})",
    ),
    "full": (
        "clean",
        "robust({linf})",
        "robust({l2})",
        "curve({linf}, examples=1000)",
        "curve({l2}, examples=1000)",
        "per_class",
        "training_curve",
        "minimum_distance(linf(), examples=1000)",
        "minimum_distance(l2(), examples=1000)",
        "corruptions(extra=True)",
        "attributes",
        "transfer({linf})",
        "guided({linf})",
        "blackbox({linf}, attack=square(queries=5000), examples=1000)",
        "blackbox({l2}, attack=boundary(queries=5000), examples=200)",
        "unfamiliar",
        "saliency(examples=2000)",
        "knn({linf})",
        "trust(threat={linf}, examples=256)",
    ),
}

BLACK_BOX: dict[str, tuple[str, ...]] = {
    "quick": (
        "blackbox({linf}, attack=square(queries=200), examples=32)",
        "blackbox({l2}, attack=boundary(queries=500), examples=16)",
    ),
    "standard": (
        "blackbox({linf}, attack=square(queries=1000), examples=100)",
        "blackbox({l2}, attack=boundary(queries=2000), examples=50)",
    ),
    "full": (
        "blackbox({linf}, attack=square(queries=5000), examples=500)",
        "blackbox({l2}, attack=boundary(queries=5000), examples=200)",
    ),
}
"""Instead of a preset's own black-box checks where no model shows gradients."""

OTHERS: dict[str, dict[str, tuple[str, ...]]] = {
    "retrieval": {
        "quick": ("retrieval({linf}, attack=qair(queries=100), examples=32)",),
        "standard": ("retrieval({linf}, examples=100)",),
        "full": ("retrieval({linf}, attack=qair(queries=500), examples=500)",),
    },
    "embedding": {
        "quick": ("embedding({linf}, attack=pgd(steps=10, objective=push_away()), examples=200)",),
        "standard": ("embedding({linf}, examples=1000)",),
        "full": ("embedding({linf})", "embedding({l2})"),
    },
    "hashing": {
        "quick": ("hashing({linf}, attack=cga(steps=20), examples=200)",),
        "standard": ("hashing({linf}, examples=1000)", "hashing({linf}, attack=hag(), examples=1000)"),
        "full": ("hashing({linf})", "hashing({linf}, attack=hag())", "hashing({linf}, attack=sdha())"),
    },
}
"""The presets of tasks other than classification."""


def checks_of(
    preset: str = "standard",
    checks: Sequence[Any] | None = None,
    space: Space | None = None,
    given: Collection[str] = (),
    access: Collection[str] | None = None,
    tasks: Collection[str] = ("classification",),
) -> dict[str, Check]:
    """The checks of a preset that apply, or those named, by name. Two of one kind are told apart by a number.

    checks: components or texts, taken as they are. For presets: space: of the data, which decides the radii and whether
    the images can be corrupted; None: as CIFAR-10. given: names of what the user gave beside models and data. access: what
    at least one of the models allows; None: everything. tasks: of the models.

    Raises: BadInput for an unknown preset or check, and for a list without one.
    """
    if checks is None:
        if preset not in PRESETS:
            raise unknown("preset", preset, PRESETS)
        checks = _applying(preset, space or Space((3, 32, 32)), given, access, tasks)
    if not checks:
        raise bad("checks", "none", f"at least one of {', '.join(e.name for e in entries('check'))}")
    made: dict[str, Check] = {}
    for item in checks:
        check = coerce("check")(item) if not isinstance(item, str) else parse(item, "check")
        name, number = check.component_name, 1
        while name in made:
            number += 1
            name = f"{check.component_name}-{number}"
        made[name] = check
    return made


def radii_of(space: Space) -> tuple[str, str]:
    """The usual Linf and L2 radii for images of this shape, as threats.

    Photographs from 128 pixels on: 4/255 and 3.0 (ImageNet); small colour images: 8/255 and 0.5 (CIFAR-10); grey images
    like MNIST: 0.3 and 2.0 (the evaluations of Croce and Hein, 2020, arXiv 2003.01690); grey images of at most 16 pixels,
    like scikit-learn's digits: 0.15 and 0.5. Time series, thought of as having deviation 1: 0.25 and 1.0 (our choice).
    """
    shape = space.shape or ()
    if len(shape) == 2:
        return "linf(0.25)", "l2(1.0)"
    if len(shape) != 3 or None in shape:
        return "linf(8/255)", "l2(0.5)"
    channels, side = shape[0], max(int(s or 0) for s in shape[1:])
    if side >= 128:
        return "linf(4/255)", "l2(3.0)"
    if channels == 1:
        return ("linf(0.15)", "l2(0.5)") if side <= 16 else ("linf(0.3)", "l2(2.0)")
    return "linf(8/255)", "l2(0.5)"


def _applying(
    preset: str, space: Space, given: Collection[str], access: Collection[str] | None, tasks: Collection[str]
) -> list[Check]:
    linf, l2 = radii_of(space)
    texts = PRESETS[preset] if "classification" in tasks or not OTHERS.keys() & tasks else ()
    if texts and access is not None and "gradients" not in access:
        texts = tuple(t for t in texts if not t.startswith("blackbox")) + BLACK_BOX[preset]
    found = []
    for text in (*texts, *(text for task in tasks for text in OTHERS.get(task, {}).get(preset, ()))):
        if text.startswith(("corruptions", "saliency", "attributes")) and not _pictures(space):
            continue
        if text.startswith("attributes") and "masks" not in given:  # objects that are looked for are often missed
            continue
        if len(space.shape or ()) == 2:  # square, a part of AutoAttack too, moves squares of pixels
            if "square" in text:
                continue
            text = _with(text, "attack=apgd(objective=margin())") if text.startswith("robust") else text
        imagenet = space.shape == (3, 224, 224) and space.classes == 1000
        if text.startswith("corruptions") and imagenet and "reference" not in given and preset != "quick":
            text = _with(text, "reference='alexnet'")
        check = parse(text.format(linf=linf, l2=l2), "check")
        lacking = [n.name for n in check.needs if not n.optional and n.name not in given]
        if not lacking and (access is None or check.access <= set(access)):
            found.append(check)
    return found


def _with(text: str, setting: str) -> str:
    return f"{text[:-1]}, {setting})" if text.endswith(")") else f"{text}({setting})"


def _pictures(space: Space) -> bool:
    return space.shape is not None and len(space.shape) == 3 and space.shape[0] in (1, 3)
