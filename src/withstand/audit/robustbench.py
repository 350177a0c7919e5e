"""`robustbench_eval`: clean and robust accuracy by RobustBench's protocol, as a record in its field names."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import withstand
from withstand.attacks.autoattack import AutoAttack
from withstand.audit.measure import predict, radius_text, run_attack
from withstand.audit.plan import placed, usable_device
from withstand.audit.store import Store
from withstand.data import as_dataset
from withstand.errors import BadInput, bad, unknown
from withstand.files import write_json
from withstand.metrics import wilson
from withstand.models import check_compatible, frozen
from withstand.protocols import Context, Dataset, Row, Target
from withstand.registry import coerce, to_call
from withstand.threats import L2, Linf

FIELDS = (
    "name", "authors", "link", "venue", "architecture", "additional_data", "reported", "footnote",
    "number_forward_passes",
)  # fmt: skip
"""What only its authors can say of a model."""
PROTOCOLS = {
    ("cifar10", "linf"): (8 / 255, 10_000),
    ("cifar10", "l2"): (0.5, 10_000),
    ("cifar100", "linf"): (8 / 255, 10_000),
    ("imagenet", "linf"): (4 / 255, 5_000),
}
"""(radius, images) of the leaderboards."""
_SHARD = 200
_CHECK = "robustbench"


def robustbench_eval(
    model: Any,
    data: Any,
    threat: Any = "linf(8/255)",
    *,
    out: str | Path,
    n: int | None = None,
    about: Mapping[str, Any] | None = None,
    seed: int = 0,
    device: str | None = None,
    block: int | None = None,
    fresh: bool = False,
    report: Callable[[str, str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Measure a classifier by RobustBench's protocol: accuracy on the first n test images, clean and under AutoAttack
    ("standard": APGD-CE, APGD-T, FAB-T, Square; an image counts if it withstands all four).

    model, data: as for `audit`, one model. threat: linf or l2 with a radius. about: what only its authors can say: name
    (the paper), authors, link, venue, architecture, additional_data, reported, footnote. out: a folder for
    `robustbench.json` and the outcome of every image; the same call continues there.

    The record has RobustBench's fields (accuracies in per cent, as texts) and beside them n_examples, intervals (95 %,
    Wilson), protocol ("standard", or what differs from the leaderboard's), the accuracy after each attack and the flags of
    AutoAttack's own checks. ImageNet's fixed list of 5,000 images is not part of this library: give a folder of them.

    Raises:
        BadInput: before any work, for what the protocol does not admit: a module in train mode, a forward pass that
            differs from the next one, no gradient at all, images outside [0, 1]; other threats; unknown fields.

    Reference: Croce et al., "RobustBench: a standardized adversarial robustness benchmark", 2021, arXiv 2010.09670.
    """
    for field in about or {}:
        if field not in FIELDS:
            raise unknown("about", field, FIELDS)
    threat = coerce("threat")(threat)
    if not isinstance(threat, (Linf, L2)) or not isinstance(threat.eps, float):
        raise bad("threat", repr(threat), "linf or l2 with one radius, e.g. linf(8/255)")
    if isinstance(threat, Linf) and threat.eps > 1:
        raise bad("threat", repr(threat), "a radius up to 1, since images are in [0, 1]", "8/255 is meant, not 8?")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise bad("seed", repr(seed), "a whole number")
    if block is not None and (isinstance(block, bool) or not isinstance(block, int) or block < 1):
        raise bad("block", repr(block), "a whole number >= 1")
    models = model if isinstance(model, Mapping) else {"model": model}
    if len(models) != 1:
        raise bad("model", f"{len(models)} models", "one")
    ((given, one),) = models.items()
    if getattr(one if isinstance(one, torch.nn.Module) else getattr(one, "module", None), "training", False):
        raise bad("model", f"{given} in train mode", "one in eval mode", "Call model.eval() first.")
    device = usable_device(device)
    ((name, target),) = placed(models, device).items()
    data = as_dataset(data, [target])
    if n is not None and (isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= len(data)):
        raise bad("n", n, f"1 to {len(data)}, the images of {data.name}")
    total = n or len(data)
    x = data.batch(range(min(16, total))).to(device).x
    _admit(target, data, x)
    attack = AutoAttack(threat)
    plan = {
        "withstand": withstand.__version__,
        "model": target.fingerprint(),
        "data": {"name": data.name, "fingerprint": data.fingerprint()},
        "attack": to_call(attack),
        "n": total,
        "seed": seed,
    }
    with Store(Path(out), plan, fresh) as store:
        for shard in range(-(-total // _SHARD)):
            if not store.done(name, _CHECK, shard):
                ctx = Context(seed, device, block)
                rows = _rows(target, data, attack, range(_SHARD * shard, min(_SHARD * (shard + 1), total)), ctx)
                store.write(name, _CHECK, shard, rows, seed, ctx.cost)
            if report is not None:
                report(name, _CHECK, min(_SHARD * (shard + 1), total), total)
        record = _record(target, data, attack, store, name, total, about or {})
    write_json(Path(out) / "robustbench.json", record)
    return record


def _admit(target: Target, data: Dataset, x: Tensor) -> None:
    """Refuse what the protocol does not admit."""
    if "gradients" not in target.access or target.module is None:
        raise bad("model", f"{target.name}, which gives no gradients", "a torch model")
    if data.space.box != (0.0, 1.0) or float(x.min()) < 0 or float(x.max()) > 1:
        raise bad(
            "data", f"values from {float(x.min()):g} to {float(x.max()):g}", "images in [0, 1]",
            "The normalisation belongs into the model.",
        )  # fmt: skip
    check_compatible(target, data)
    with frozen(target.module):
        point = x.detach().requires_grad_(True)
        first = target(point)
        with torch.no_grad():
            second = target(x)
        units = [z / (z.norm(dim=1, keepdim=True) + 1e-10) for z in (first.detach(), second)]
        spread = float((units[0] - units[1]).norm(dim=1).max())
        if spread > 1e-4:
            raise BadInput(
                f"{target.name}: two passes of the same images differ (by {spread:.2g} of the logits' length); RobustBench "
                'admits deterministic models only. Measure this one with the check robust and autoattack(version="rand").'
            )
        slope = None
        if first.requires_grad:
            slope = torch.autograd.grad(first.square().sum(), point, allow_unused=True)[0]
    if slope is not None and not bool(slope.isfinite().all()):
        raise BadInput(
            f"{target.name}: its gradient with respect to the images has NaN or Inf, which no attack can follow."
        )
    if slope is None or not bool(slope.abs().sum() > 0):
        raise BadInput(
            f"{target.name}: its gradient with respect to the images is zero everywhere; RobustBench does not admit it. "
            "Black-box attacks say more: --checks blackbox."
        )


def _rows(target: Target, data: Dataset, attack: AutoAttack, positions: range, ctx: Context) -> list[Row]:
    """outcome: right on the worst point; {"of": "clean"}: right on the image; {"of": NAME}: value = share after it."""
    batch = data.batch(positions).to(ctx.device)
    assert batch.y is not None
    assert batch.ids is not None
    right = predict(target, batch.x, ctx).argmax(1) == batch.y
    found = run_attack(attack, target, batch.x, batch.y, batch.ids, ctx)
    stands = right & ~found.success
    rows = [Row("image", i, {"of": "clean"}, bool(hit)) for i, hit in zip(batch.ids.tolist(), right.tolist())]
    rows += [Row("image", i, {"of": "robust"}, bool(hit)) for i, hit in zip(batch.ids.tolist(), stands.tolist())]
    for name, share in found.notes["robust_accuracy"].items():
        rows.append(Row("shard", positions.start, {"after": name}, None, share * len(positions)))
    for flag in found.notes["flags"]:
        rows.append(Row("shard", positions.start, {"flag": flag.name, "said": flag.explanation}))
    return rows


def _record(
    target: Target,
    data: Dataset,
    attack: AutoAttack,
    store: Store,
    name: str,
    n: int,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    table, cost = store.read(name, _CHECK)
    clean = int(table.where(of="clean").outcome.sum())
    robust = int(table.where(of="robust").outcome.sum())
    conditions = table.conditions()
    threat: Any = attack.threat
    return {
        "link": about.get("link"),
        "name": about.get("name") or target.name,
        "authors": about.get("authors"),
        "additional_data": about.get("additional_data"),
        "number_forward_passes": about.get("number_forward_passes", 1),
        "dataset": data.name,
        "venue": about.get("venue"),
        "architecture": about.get("architecture") or target.name,
        "eps": radius_text(threat.eps),
        "clean_acc": f"{100 * clean / n:.2f}",
        "reported": about.get("reported"),
        "autoattack_acc": f"{100 * robust / n:.2f}",
        "footnote": about.get("footnote"),
        "threat_model": "Linf" if isinstance(threat, Linf) else "L2",
        "n_examples": n,
        "intervals": {"clean_acc": _per_cent(wilson(clean, n)), "autoattack_acc": _per_cent(wilson(robust, n))},
        "protocol": _protocol(data, threat, n),
        "accuracy_after": {
            c["after"]: round(100 * float(table.where(after=c["after"]).value.sum()) / n, 2)
            for c in conditions
            if "after" in c
        },
        "flags": sorted({f"{c['flag']}: {c['said']}" for c in conditions if "flag" in c}),
        "withstand": withstand.__version__,
        "passes": {k: int(v) for k, v in cost.items()},
    }


def _per_cent(interval: tuple[float, float]) -> list[float]:
    return [round(100 * bound, 2) for bound in interval]


def _protocol(data: Any, threat: Any, n: int) -> str:
    """ "standard", or how this differs from the leaderboard of the data set."""
    name = data.name
    known = PROTOCOLS.get((name, "linf" if isinstance(threat, Linf) else "l2"))
    if known is None:
        return f"no leaderboard for {name} under this threat"
    eps, images = known
    differing = [f"eps {radius_text(threat.eps)} instead of {radius_text(eps)}"] if abs(threat.eps - eps) > 1e-9 else []
    differing += [f"subset-{n} instead of {images:,} images"] if n != images else []
    if name != "imagenet" and (held := len(getattr(data, "source", ()))) > images:
        differing.append(f"images of a set of {held:,}, not of the test part's {images:,}")
    elif name != "imagenet" and (at := getattr(data, "positions", None)) is not None and set(at[:n]) != set(range(n)):
        differing.append("not the first images")
    differing += ["images of your own choice, not the fixed list"] if name == "imagenet" else []
    return "; ".join(differing) or "standard"
