"""A made-up scorecard of realistic shape, with images, for tests of the report; no number in it was measured.

Run as a script to look at one: python tests/report/sample.py FOLDER [MODELS]
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from withstand.audit.scorecard import CheckResult, Comparison, Scorecard
from withstand.protocols import Figure, Flag, Metric

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
KINDS = ("gaussian noise", "shot noise", "impulse noise", "defocus blur", "glass blur", "motion blur", "zoom blur",
         "snow", "frost*", "fog", "brightness", "contrast", "elastic", "pixelate", "jpeg", "speckle noise",
         "gaussian blur", "spatter", "saturate")  # fmt: skip
STEPS = (0, 0.25, 0.5, 1, 2, 4, 8)
NAMES = ("cnn-a", "cnn-a, adversarially trained 2/255", "resnet18", "augmix", "prime")


def wilson(share: float, n: int) -> tuple[float, float]:
    """The 95% interval of a proportion."""
    z = 1.96
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def proportion(name: str, share: float, n: int = 1000, **condition: Any) -> Metric:
    """A share with its interval."""
    share = round(share * n) / n
    return Metric(name, share, *wilson(share, n), "wilson", n, condition=condition)


def card(folder: Path | None = None, models: int = 2, shots: int = 30, complete: bool = True) -> dict[str, Any]:
    """The scorecard as JSON; with a folder, its images, rows and scorecard.json are written there."""
    names = [NAMES[i % len(NAMES)] + (f" {i}" if i >= len(NAMES) else "") for i in range(models)]
    results = [r for i, name in enumerate(names) for r in _results(i, name, folder, shots)]
    made = Scorecard(
        run="cifar10-cnn-before-after",
        preset="standard",
        command="withstand audit cnn_a.py:build --weights cnn_a.safetensors cnn_a.py:build --weights "
        "cnn_a_adv2.safetensors --data cifar10 --preset standard --seed 7 --out runs/cifar10-cnn-before-after",
        created="2026-11-20T16:42:07+00:00",
        seed=7,
        device="cpu",
        complete=complete,
        versions={"withstand": "0.1.0", "python": "3.11.7", "torch": "2.15.0", "numpy": "2.2.1", "timm": "1.0.22"},
        git={"commit": "8b9c2117a2f4", "branch": "main", "dirty": False},
        models={
            n: {"spec": f"cnn_a.py:build weights={i}.safetensors", "fingerprint": f"sha256:{i}f3a91c0e7d2",
                "classes": 10, "parameters": 1_146_026 + i, "access": ["gradients", "scores", "decision"]}
            for i, n in enumerate(names)
        },
        data={"name": "cifar10", "fingerprint": "sha256:77b1e09a", "examples": 1000, "shape": [3, 32, 32],
              "classes": 10},
        verdict={n: _verdict(i) for i, n in enumerate(names)},
        results=results,
        comparisons=_comparisons(names),
    )  # fmt: skip
    plain = made.to_json()
    if folder is not None:
        (folder / "rows").mkdir(parents=True, exist_ok=True)
        (folder / "rows" / "robust.parquet").write_bytes(b"")
        (folder / "scorecard.json").write_text(json.dumps(plain), encoding="utf-8")
    return json.loads(json.dumps(plain))


def _verdict(i: int) -> str:
    if i == 0:
        return (
            "Right on 87 of 100 clean images, but changes of 2/255 per pixel, too small to see, leave it right on "
            "none; ordinary noise and blur cost it a third of its accuracy."
        )
    return (
        "Right on 71 of 100 clean images and still on 47 when an attacker may change every pixel by 2/255; do not rely "
        "on it at 8/255, nor to notice unfamiliar inputs."
    )


def accuracy(i: int, k: float) -> float:
    """Accuracy of model i under k/255."""
    return (0.87 if i == 0 else 0.71 + 0.02 * i) * math.exp(-k * (1.9 if i == 0 else 0.21 + 0.05 * i))


def corrupted(i: int, kind: int, severity: int) -> float:
    """Accuracy of model i under a corruption."""
    wave = 0.5 + 0.5 * math.sin(2.3 * kind + 0.4 * i)
    return (0.86 if i == 0 else 0.70) * (1 - (0.16 - 0.07 * (i > 0)) * severity * (0.25 + 0.75 * wave))


def _results(i: int, model: str, folder: Path | None, shots: int) -> list[CheckResult]:
    clean = accuracy(i, 0)
    eps = [k / 255 for k in STEPS]
    curve = [proportion("robust_accuracy", accuracy(i, k), threat="linf", eps=e) for k, e in zip(STEPS, eps)]
    kinds = [[corrupted(i, k, s) for s in range(1, 6)] for k in range(len(KINDS))]
    classes = [min(1.0, max(0.0, accuracy(i, 2) + 0.22 * math.sin(1.7 * c + i))) for c in range(10)]
    spans = [wilson(v, 100) for v in classes]
    queries = [1, 3, 10, 30, 100, 300, 1000, 3000]
    left = [clean * math.exp(-((q / (300 if i == 0 else 4000)) ** 0.6)) for q in queries]
    return [
        CheckResult(model, "clean", "Clean accuracy and calibration", "clean(bins=15)", metrics=[
            proportion("clean_accuracy", clean),
            Metric("ece", 0.061 + 0.02 * i, 0.049 + 0.02 * i, 0.078 + 0.02 * i, "bootstrap", 1000, "share", "lower"),
            Metric("nll", 0.472 + 0.4 * i, 0.41 + 0.4 * i, 0.53 + 0.4 * i, "bootstrap", 1000, "nats", "lower"),
        ], seconds=2.4, cost={"forwards": 1000, "backwards": 0, "examples": 1000}),
        CheckResult(model, "security_curve", "Accuracy under attack", "security_curve(attack=autoattack(linf(8/255)), "
                    "ladder=(0.25/255, 0.5/255, 1/255, 2/255, 4/255, 8/255))", metrics=curve, figures=[
            Figure("curve", "Security curve", {
                "x_label": "Largest change of a pixel (Linf)", "y_label": "Accuracy under attack", "x": eps,
                "x_ticks": ["0" if k == 0 else f"{k:g}/255" for k in STEPS],
                "series": [{"name": "AutoAttack", "y": [m.value for m in curve], "low": [m.low for m in curve],
                            "high": [m.high for m in curve]}]},
                "Each point is the share of examples that no attack of the ensemble broke at that radius."),
            Figure("bars", "Accuracy by class at 2/255", {
                "labels": list(CLASSES), "y_label": "Accuracy under attack",
                "series": [{"name": "AutoAttack", "values": classes, "low": [s[0] for s in spans],
                            "high": [s[1] for s in spans]}]},
                "Stems start at zero; the thin line is the 95% interval over 100 examples of the class."),
            Figure("gallery", "Broken at the smallest change", _gallery(i, folder, shots),
                   "The attacks' findings at 2/255."),
        ], flags=_flags(i), seconds=412.0 + 30 * i, cost={"forwards": 512_400, "backwards": 431_118, "examples": 1000}),
        CheckResult(model, "black_box", "Black-box attack", "black_box(attack=square(linf(8/255)))", metrics=[
            proportion("black_box_accuracy", left[-1], 200, threat="linf", eps=8 / 255, queries=3000),
            Metric("median_queries", 142.0 + 900 * i, 101.0 + 700 * i, 207.0 + 1300 * i, "bootstrap", 200, "queries"),
        ], figures=[Figure("curve", "Queries to success", {
            "x_label": "Queries", "y_label": "Accuracy left", "x": queries, "log_x": True,
            "series": [{"name": "square", "y": left, "low": [wilson(v, 200)[0] for v in left],
                        "high": [wilson(v, 200)[1] for v in left]}]})],
            seconds=95.0, cost={"forwards": 391_204, "backwards": 0, "examples": 200}),
        CheckResult(model, "corruptions", "Common corruptions", "corruptions(severities=(1, 2, 3, 4, 5))", metrics=[
            proportion("corruption_accuracy", float(np.mean(kinds)), 95_000),
            *(proportion("corruption_accuracy", kinds[k][s - 1], kind=KINDS[k], severity=s)
              for k in range(len(KINDS)) for s in range(1, 6)),
            Metric("mce", 0.93 - 0.1 * i, 0.91 - 0.1 * i, 0.95 - 0.1 * i, "cluster bootstrap", 1000, "share", "lower",
                   {"reference": "alexnet"}),
        ], figures=[Figure("heatmap", "Accuracy by corruption and severity", {
            "row_label": "Corruption", "column_label": "Severity", "rows": list(KINDS), "columns": [1, 2, 3, 4, 5],
            "values": kinds, "unit": "share", "better": "higher"},
                "frost* is procedural: the original needs photographs.")],
            seconds=61.3, cost={"forwards": 95_000, "backwards": 0, "examples": 1000}),
        CheckResult(model, "unfamiliar", "Unfamiliar inputs", "unfamiliar(against='svhn')", metrics=[
            Metric("auroc", 0.871 - 0.09 * i, 0.86 - 0.09 * i, 0.882 - 0.09 * i, "bootstrap", 2000, "share", "higher",
                   {"detector": "energy", "against": "svhn"}),
            Metric("fpr95", 0.44 + 0.1 * i, 0.41 + 0.1 * i, 0.47 + 0.1 * i, "bootstrap", 2000, "share", "lower",
                   {"detector": "energy", "against": "svhn"}),
        ], figures=[Figure("table", "Detectors", {"columns": ["Detector", "AUROC", "AUPR", "FPR95"], "rows": [
            [d, round(0.85 + 0.01 * j - 0.09 * i, 3), round(0.81 + 0.012 * j - 0.08 * i, 3), round(0.5 - 0.02 * j, 3)]
            for j, d in enumerate(("MSP", "MaxLogit", "Energy", "kNN"))]})],
            seconds=9.8, cost={"forwards": 2000, "backwards": 0, "examples": 2000}),
        CheckResult(model, "transfer", "Transfer from a second model", "transfer()", "skipped", "needs surrogate"),
        *([CheckResult(model, "min_distance", "Smallest change", "min_distance()", "failed",
                       "out of memory at a block of one example")] if i else []),
    ]  # fmt: skip


def _flags(i: int) -> list[Flag]:
    passes = [
        Flag(
            "deterministic", "pass", "The same input gave the same logits three times.", evidence={"largest_gap": 0.0}
        ),
        Flag("logits", "pass", "The outputs are logits: rows do not sum to one.", evidence={"mean_sum": 3.71}),
        Flag("loss_rises", "pass", "The loss rose with the steps of the attack on 99.2% of the examples."),
        Flag("eps_rises", "pass", "A larger radius never left more examples right."),
        Flag("unbounded", "pass", "Without a bound the attack reaches 0% accuracy.", evidence={"accuracy": 0.0}),
    ]
    if i == 0:
        return passes
    return [
        *passes,
        Flag("transfer_stronger", "warn", "Examples made against the other model break this one more often than its "
             "own at 1/255 (61.0% against 58.3%).", "Run the attack with more restarts or a different objective before "
             "quoting the number at 1/255.", {"transfer_success": 0.61, "white_box_success": 0.583, "eps": 1 / 255}),
        Flag("zero_gradients", "fail", "For 23.4% of the examples the gradient of the loss is exactly zero, so a "
             "white-box attack has no direction to follow.", "Look at the black-box number instead, or attack the "
             "margin or DLR objective; a very large scale of the outputs is the usual cause.",
             {"share": 0.234, "examples": 234}),
    ]  # fmt: skip


def _comparisons(names: list[str]) -> list[Comparison]:
    made = []
    for i, after in enumerate(names[1:], 1):
        for k in (None, 0.5, 1, 2, 8):
            difference = accuracy(i, k or 0) - accuracy(0, k or 0)
            gained, lost = round(1000 * max(0, difference)) + 31, round(1000 * max(0, -difference)) + 31
            condition = {} if k is None else {"threat": "linf", "eps": k / 255}
            name, check = ("clean_accuracy", "clean") if k is None else ("robust_accuracy", "security_curve")
            made.append(Comparison(name, check, names[0], after, difference, difference - 0.026, difference + 0.026,
                                   1e-9 if abs(difference) > 0.04 else 0.21, 1000, list(range(3, 3 + gained)),
                                   list(range(700, 700 + lost)), condition))  # fmt: skip
    return made


def _gallery(i: int, folder: Path | None, shots: int) -> dict[str, Any]:
    rng = np.random.default_rng(i)
    items = []
    for k in range(shots):
        label, wrong = rng.choice(10, 2, replace=False)
        fooled = k % 7 != 3
        names = {kind: f"gallery/{i}/{k}-{kind}.png" for kind in ("clean", "adversarial", "difference")}
        items.append({
            "id": int(rng.integers(1000)), "label": CLASSES[label], "clean_prediction": CLASSES[label],
            "adversarial_prediction": CLASSES[wrong if fooled else label],
            "clean_confidence": float(rng.uniform(0.5, 1)), "adversarial_confidence": float(rng.uniform(0.3, 1)),
            "distance": float(rng.choice([0.5, 1, 2])) / 255,
            "condition": {"attack": "apgd-ce", "threat": "linf", "eps": 2 / 255},
            **names,
        })  # fmt: skip
        if folder is not None:
            _images(folder, names, int(label), rng)
    return {"magnified": 32, "items": items}


def _images(folder: Path, names: dict[str, str], label: int, rng: np.random.Generator) -> None:
    y, x = np.mgrid[0:32, 0:32] / 31
    sky = np.stack([0.35 + 0.4 * y, 0.5 + 0.25 * y, 0.75 - 0.3 * y], -1)
    cx, cy, r = (*rng.uniform(0.35, 0.65, 2), rng.uniform(0.18, 0.32))
    body = (np.abs(x - cx) ** (1 + label % 3) + np.abs(y - cy) ** (1 + label % 4) < r ** (1 + label % 3))[..., None]
    clean = np.where(body, rng.uniform(0.1, 0.9, 3), sky) + rng.normal(0, 0.02, (32, 32, 3))
    change = rng.choice([-2, 0, 2], (32, 32, 3)) / 255
    made = {"clean": clean, "adversarial": clean + change, "difference": 0.5 + 32 * change}
    for kind, pixels in made.items():
        path = folder / names[kind]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8)).save(path)


if __name__ == "__main__":
    from withstand.report import write

    where = Path(sys.argv[1])
    where.mkdir(parents=True, exist_ok=True)
    print(write(card(where, int(sys.argv[2]) if len(sys.argv) > 2 else 2), where, where / "report.html"))
