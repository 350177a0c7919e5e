"""`withstand detect fit|score|evaluate`: detectors of unfamiliar or attacked inputs, in front of a classifier."""

import csv
import io
import math
from pathlib import Path
from typing import Annotated, Any

import typer

from withstand.cli import options as o

app = typer.Typer(
    help="Detectors of inputs that a classifier should not be trusted with.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Classifier = Annotated[
    str, typer.Argument(metavar="MODEL", help="artefact:DIR, FILE.py:FACTORY, timm:NAME, ...; the classifier.")
]
Fitted = Annotated[Path, typer.Argument(metavar="DIR", help="What `withstand detect fit` wrote.")]
Sets = Annotated[
    list[str] | None, typer.Option(metavar="[NAME=]DATA", help="A set of the same classes, shifted; repeatable.")
]
Others = Annotated[list[str] | None, typer.Option(metavar="[NAME=]DATA", help="A set of other classes; repeatable.")]
Rate = Annotated[float, typer.Option(help="Share of familiar inputs that thresholds flag.")]


@app.command("fit")
def fit(
    model: Classifier,
    data: o.Data,
    out: Annotated[Path, typer.Option(help="Folder for the detectors.")],
    detector: Annotated[
        list[str] | None,
        typer.Option(help="See `withstand list detectors`, e.g. 'knn(k=10)' or 'bats(energy)'; repeatable."),
    ] = None,
    held: Annotated[
        float, typer.Option(help="Share of the data that sets the thresholds, and is not fitted on.")
    ] = 0.2,
    weights: o.Weights = None,
    mean: o.Mean = None,
    std: o.Std = None,
    root: o.Root = None,
    download: o.Download = False,
    split: o.LearnedSplit = "train",
    limit: o.Limit = None,
    size: o.Size = None,
    channels: o.Channels = None,
    seed: o.Seed = 0,
    device: o.Device = None,
    allow_pickle: o.AllowPickle = False,
) -> None:
    """Fit detectors on examples that the model is familiar with, and keep them with the fingerprint of the model.

    For example: withstand detect fit artefact:runs/cnn --data digits --detector knn --detector 'bats(energy)' --out runs/ood
    """
    from withstand.cli.console import say
    from withstand.cli.specs import load_one, load_sample
    from withstand.detection import DEFAULT, fit_detectors
    from withstand.detection.fitted import check_folder

    check_folder(out)
    target = load_one(model, weights, mean, std, device, allow_pickle)
    examples = load_sample(data, split, limit, size, channels, root, download)
    made = fit_detectors(target, examples, detector or DEFAULT, held=held, seed=seed)
    made.save(out)
    say(f"{out}: {made!r}; thresholds from {made.origin['examples']['held']} examples")


@app.command("score")
def score(
    folder: Fitted,
    model: Classifier,
    data: o.Data,
    out: Annotated[Path | None, typer.Option(help="FILE.csv; default the terminal.")] = None,
    fpr: Rate = 0.05,
    weights: o.Weights = None,
    mean: o.Mean = None,
    std: o.Std = None,
    root: o.Root = None,
    split: o.JudgedSplit = "test",
    limit: o.Limit = None,
    size: o.Size = None,
    channels: o.Channels = None,
    device: o.Device = None,
    allow_pickle: o.AllowPickle = False,
) -> None:
    """Score inputs, as CSV: prediction, confidence, and of each detector the score and whether it flags the input."""
    from withstand.cli.console import say
    from withstand.cli.specs import load_one
    from withstand.detection import load_detectors
    from withstand.files import write_atomic

    made = load_detectors(folder, load_one(model, weights, mean, std, device, allow_pickle))
    limits = {name: made.threshold(name, fpr) for name in made.names}
    examples = _sample(made, data, split, limit, size, channels, root)
    found = made.scored(examples)
    classes = made.origin["data"]["classes"]
    photos = getattr(getattr(examples, "source", None), "photos", None)
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["input", "prediction", "confidence", *(f for n in made.names for f in (n, f"{n} flags"))])
    for i, id_ in enumerate(found.ids.tolist()):
        said = int(found.prediction[i])
        scores = [float(found.scores[n][i]) for n in made.names]
        judged = [f for n, s in zip(made.names, scores) for f in (f"{s:.8g}", int(s > limits[n]))]
        name = f"{examples.name} #{id_}" if photos is None else str(photos[id_])
        rows.writerow(
            [name, classes[said] if said < len(classes) else said, f"{float(found.confidence[i]):.6f}", *judged]
        )
    if out is None:
        typer.echo(text.getvalue(), nl=False)
    else:
        write_atomic(out, text.getvalue())
    flagged = ", ".join(f"{n} {float((found.scores[n] > limits[n]).double().mean()):.1%}" for n in made.names)
    say(f"{len(found.ids)} inputs; flagged: {flagged} (thresholds at {fpr:.1%} of familiar inputs)")


@app.command("evaluate")
def evaluate(
    folder: Fitted,
    model: Classifier,
    data: o.Data,
    ood: Others = None,
    shifted: Sets = None,
    fpr: Rate = 0.05,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    weights: o.Weights = None,
    mean: o.Mean = None,
    std: o.Std = None,
    root: o.Root = None,
    split: o.JudgedSplit = "test",
    limit: o.Limit = None,
    size: o.Size = None,
    channels: o.Channels = None,
    device: o.Device = None,
    allow_pickle: o.AllowPickle = False,
) -> None:
    """Judge detectors by three notions of what ought to be accepted: the conventional one, that with shifted inputs, and
    the human-centric one, by which a prediction is to be accepted if it is right.

    --data: familiar examples that nothing was fitted on. For example: withstand detect evaluate runs/ood artefact:runs/cnn
    --data digits --ood omniglot --ood textures
    """
    import warnings

    from withstand import detection
    from withstand.cli.console import say, show, table
    from withstand.cli.specs import load_one
    from withstand.errors import bad

    if not ood and not shifted:
        say("no --ood and no --shifted: only the model's own mistakes are judged")
    made = detection.load_detectors(folder, load_one(model, weights, mean, std, device, allow_pickle))
    loaded = {
        kind: {
            name: _sample(made, spec, split, limit, size, channels, root) for name, spec in _named(texts or [], kind)
        }
        for kind, texts in (("--ood", ood), ("--shifted", shifted))
    }
    familiar = _sample(made, data, split, limit, size, channels, root)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", UserWarning)
        rows = detection.evaluate(made, familiar, loaded["--ood"], loaded["--shifted"], fpr)
    for text in dict.fromkeys(str(w.message) for w in said):
        say(f"warning: {text}")
    if not rows:
        raise bad("--data", data, "examples of which the model gets some right and some wrong, or --ood and --shifted")
    if as_json:
        show(rows)
        return
    shown = ("auroc", "aupr_accept", "aupr_reject", "fpr95", "error", "least_error", "aurc")
    show(
        table(
            [{k: _text(row[k], k in shown) for k in ("notion", "sets", "detector", *shown, "accuracy")} for row in rows]
        )
    )


def _sample(
    made: Any, data: str, split: str, limit: int | None, size: int | None, channels: int | None, root: Path | None
) -> Any:
    """A data set in the shape that the detectors were fitted on."""
    from withstand.cli.console import say
    from withstand.cli.specs import load_sample
    from withstand.models import check_compatible

    shape = made.origin["shape"]
    if len(shape) == 3:
        if Path(data).is_dir() and not (size or channels):
            say(f"{data}: images are brought to {' x '.join(map(str, shape))}, as those that the detectors know")
        size, channels = size or shape[-1], channels or shape[0]
    examples = load_sample(data, split, limit, size, channels, root)
    check_compatible(made.bank.target, examples, labels=False)
    return examples


def _named(texts: list[str], option: str) -> list[tuple[str, str]]:
    from withstand.cli.specs import split_name
    from withstand.errors import bad

    found = [(name or Path(spec).name, spec) for name, spec in map(split_name, texts)]
    names = [name for name, _ in found]
    if len(set(names)) < len(names):
        raise bad(option, f"{names} ", "each name once", "Write NAME=DATA to tell them apart.")
    return found


def _text(value: Any, figure: bool) -> str:
    if isinstance(value, str):
        return value
    return "" if math.isnan(value) else f"{value:.3f}"
