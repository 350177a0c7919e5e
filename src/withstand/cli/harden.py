"""`withstand harden`: train a classifier that withstands more."""

from pathlib import Path
from typing import Annotated, Any

import typer


def run(
    model: Annotated[
        str,
        typer.Argument(
            metavar="[NAME=]MODEL", help="timm:NAME, torchvision:NAME, zoo:NAME, FILE.py:FACTORY, artefact:DIR"
        ),
    ],
    data: Annotated[
        str, typer.Option(help="A name of `withstand list data`, a folder of images, or an .npz with x and y.")
    ],
    recipe: Annotated[str, typer.Option(help="See `withstand list recipes`, e.g. 'trades(beta=6)'.")] = "pgd_at",
    out: Annotated[
        Path | None, typer.Option(help="The folder of weights and checkpoints; default runs/MODEL-DATA-RECIPE.")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the data.")] = 30,
    batch: Annotated[int, typer.Option(min=1, help="Examples per update, over all processes.")] = 128,
    optimizer: Annotated[str, typer.Option(help="sgd, adam or adamw, e.g. 'sgd(0.1, weight_decay=5e-4)'.")] = "sgd",
    schedule: Annotated[
        str, typer.Option(help="constant, cosine, steps or one_cycle, e.g. 'cosine(warmup=0.05)'.")
    ] = "steps",
    augment: Annotated[
        list[str] | None, typer.Option(help="crop_flip or mixup, e.g. 'crop_flip(4)'; repeatable, in order.")
    ] = None,
    label_smoothing: Annotated[
        float, typer.Option(min=0, max=1, help="Share of a label spread over all classes.")
    ] = 0.0,
    averaging: Annotated[str | None, typer.Option(help="Of the weights: ema or swa, e.g. 'ema(0.999)'.")] = None,
    accumulate: Annotated[int, typer.Option(min=1, help="Parts into which a batch is cut to save memory.")] = 1,
    clip_norm: Annotated[float | None, typer.Option(help="Largest global norm of the gradient.")] = None,
    agc: Annotated[float | None, typer.Option(help="Adaptive gradient clipping, e.g. 0.01; for nofrost.")] = None,
    validation: Annotated[
        float, typer.Option(min=0, max=0.9, help="Share of the data held out to choose the epoch.")
    ] = 0.1,
    judge: Annotated[
        str, typer.Option(help="Attack by which the best epoch is chosen; auto, none or its text.")
    ] = "auto",
    patience: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many validations without a better one.")
    ] = None,
    scratch: Annotated[bool, typer.Option("--scratch", help="Begin with fresh weights.")] = False,
    weights: Annotated[str | None, typer.Option(metavar="FILE", help="Begin with these weights.")] = None,
    mean: Annotated[str | None, typer.Option(help="Per channel of [0, 1], 0.485,0.456,0.406; or imagenet.")] = None,
    std: Annotated[str | None, typer.Option(help="Likewise.")] = None,
    classes: Annotated[int | None, typer.Option(min=1, help="Number of classes; default those of the data.")] = None,
    root: Annotated[Path | None, typer.Option(help="Folder of the named data sets; default $WITHSTAND_DATA.")] = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch a public data set that is missing.")] = False,
    split: Annotated[str, typer.Option(help="The part of the data to learn from.")] = "train",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Use so many examples only, of each class its share.")
    ] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Side in pixels that images are brought to.")] = None,
    channels: Annotated[int | None, typer.Option(help="1 or 3, to change between grey and RGB.")] = None,
    series: Annotated[
        str | None,
        typer.Option(
            metavar="normalised|raw",
            help="The x of an .npz is time series [N, C, T] or [N, T]; each brought to mean 0 and deviation 1, or as it is.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    accelerator: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    devices: Annotated[int, typer.Option(min=1, help="Processes per node.")] = 1,
    nodes: Annotated[int, typer.Option(min=1, help="Machines.")] = 1,
    strategy: Annotated[str, typer.Option(help="auto, ddp, or fsdp, which spreads the weights.")] = "auto",
    precision: Annotated[str, typer.Option(help="32-true, bf16-mixed or 16-mixed.")] = "32-true",
    sync_norm: Annotated[bool, typer.Option("--sync-norm", help="Batch norm over all processes.")] = False,
    channels_last: Annotated[
        bool, typer.Option("--channels-last", help="Memory layout of images and convolutions.")
    ] = False,
    compile: Annotated[str | None, typer.Option(help="Backend of torch.compile, e.g. inductor.")] = None,
    logger: Annotated[
        list[str] | None, typer.Option(help="tensorboard or mlflow, beside history.csv; repeatable.")
    ] = None,
    audit: Annotated[
        str | None, typer.Option(metavar="PRESET", help="Audit the model before and after: quick, standard, full.")
    ] = None,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Load pickled weights: this runs their code.")
    ] = False,
) -> None:
    """Train a copy of a classifier by a recipe; the best epoch by validation is what counts.

    The same command with the same folder continues a training that was stopped, at whatever moment.
    """
    from withstand.cli.console import Format, print_card, progress, resumable, say, show, table
    from withstand.cli.specs import load_models, load_sample, split_name
    from withstand.cli.training import drawn
    from withstand.errors import bad
    from withstand.files import slug
    from withstand.hardening.harden import harden, untrained_or_loaded
    from withstand.registry import parse
    from withstand.training import Trainer
    from withstand.training.logs import logger as logger_of

    made = parse(recipe, "recipe")
    trainer = Trainer(
        epochs=epochs,
        batch=batch,
        optimizer=optimizer,
        schedule=schedule,
        augment=tuple(augment or ()),
        label_smoothing=label_smoothing,
        averaging=averaging,
        accumulate=accumulate,
        clip_norm=clip_norm,
        agc=agc,
        patience=patience,
        accelerator=accelerator,
        devices=devices,
        nodes=nodes,
        strategy=strategy,  # type: ignore[arg-type]
        precision=precision,
        sync_norm=sync_norm,
        channels_last=channels_last,
        compile=compile,
    )
    if scratch and weights is not None:
        raise bad("--scratch", f"with --weights {weights}", "one of the two")
    if audit is not None:
        from withstand.audit.presets import checks_of

        checks_of(audit, None)
    name, spec = split_name(model)
    folder = out or Path("runs") / f"{slug(name or spec)}-{slug(Path(data).name)}-{made.component_name}"
    loggers = [logger_of(which, folder / which) for which in logger or []]
    examples = load_sample(data, split, limit, size, channels, root, download, series)
    if weights is None and (scratch or spec.startswith("zoo:")):
        target = untrained_or_loaded(spec, True, examples)
    else:
        loaded, _ = load_models([model], [weights] if weights else None, mean, std, None, allow_pickle, None, classes)
        (target,) = loaded.values()
    with resumable(f"The same command continues in {folder}"):
        with drawn() as draw:
            after = harden(
                target,
                examples,
                made,
                out=folder,
                validation=validation or None,
                judge=judge,
                trainer=trainer,
                seed=seed,
                progress=draw,
                loggers=loggers,
            )
        if after.fitted.rank:
            return  # the first process tells the rest
        if after.fitted.stopped:
            say(f"stopped early: {after.fitted.stopped}")
        show(table([_line(row, after.fitted.best_epoch) for row in _shown(after.history, after.fitted.best_epoch)]))
        for line in _gaps(after.fitted):
            say(line)
        kept = folder / f"{'last' if after.fitted.best_epoch is None else 'best'}.safetensors"
        say(f"weights: {kept}; as a model: artefact:{folder}")
        if audit is None:
            return
        from withstand.audit import audit as run_audit

        test = load_sample(data, "test", limit, size, channels, root, download, series)
        with progress() as report:
            card = run_audit(
                {"before": target, "after": after},
                test,
                audit,
                out=folder / "audit",
                seed=seed,
                report=report,
                announce=say,
            )
    print_card(card, Format.text, [], None)


def _gaps(fitted: Any) -> list[str]:
    """What overfitting cost, as far as it was measured."""
    lines, gap, train = [], fitted.overfitting_gap, fitted.generalisation_gap
    if gap is not None:
        lost = f"{gap:.1%} of robust accuracy were lost from the best epoch to the last" if gap else "none to be seen"
        lines.append(f"robust overfitting: {lost}")
    if train is not None:
        side = "higher" if train >= 0 else "lower"
        lines.append(
            f"robust accuracy in the last epoch: {abs(train):.1%} {side} on training than on held-out examples"
        )
    return lines


def _shown(history: list[dict[str, Any]], best: int | None) -> list[dict[str, Any]]:
    """The last epoch and the best."""
    return [row for row in history if row["epoch"] in (best, len(history))]


def _line(row: dict[str, Any], best: int | None) -> dict[str, str]:
    """A row of the history as texts."""
    texts = {"epoch": f"{row['epoch']}{' (best)' if row['epoch'] == best else ''}"}
    for key, value in row.items():
        if key in ("accuracy", "robust_accuracy"):
            texts[key.replace("_", " ")] = f"{value:.1%}"
        elif key not in ("epoch", "step", "lr"):
            texts[key.replace("_", " ")] = f"{value:.4g}"
    return texts
