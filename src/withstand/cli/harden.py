"""`withstand harden`: train a model that withstands more."""

from pathlib import Path
from typing import Annotated, Any

import typer

from withstand.cli import options as o


def run(
    model: o.TrainedModel,
    data: o.Data,
    recipe: Annotated[str, typer.Option(help="See `withstand list recipes`, e.g. 'trades(beta=6)'.")] = "pgd_at",
    out: Annotated[
        Path | None, typer.Option(help="The folder of weights and checkpoints; default runs/MODEL-DATA-RECIPE.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over the data; default the recipe's, or 30.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Examples per update, over all processes; default the recipe's, or 128.")
    ] = None,
    optimizer: Annotated[
        str | None,
        typer.Option(help="sgd, adam or adamw, e.g. 'sgd(0.1, weight_decay=5e-4)'; default the recipe's, or sgd."),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            help="constant, cosine, linear, steps, one_cycle, e.g. 'cosine(warmup=0.05)'; default the recipe's or steps."
        ),
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(help="What makes a batch, e.g. 'm_per_class(8)'; default the recipe's, or chance."),
    ] = None,
    augment: o.Augment = None,
    label_smoothing: Annotated[
        float, typer.Option(min=0, max=1, help="Share of a label spread over all classes.")
    ] = 0.0,
    averaging: o.Averaging = None,
    accumulate: o.Accumulate = 1,
    clip_norm: o.ClipNorm = None,
    agc: Annotated[float | None, typer.Option(help="Adaptive gradient clipping, e.g. 0.01; for nofrost.")] = None,
    validation: o.Validation = 0.1,
    judge: Annotated[
        str, typer.Option(help="Attack by which the best epoch is chosen; auto, none or its text.")
    ] = "auto",
    patience: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many validations without a better one.")
    ] = None,
    scratch: o.Scratch = False,
    weights: o.Weights = None,
    mean: o.Mean = None,
    std: o.Std = None,
    classes: o.Classes = None,
    root: o.Root = None,
    download: o.Download = False,
    split: o.LearnedSplit = "train",
    limit: o.Limit = None,
    size: o.Size = None,
    channels: o.Channels = None,
    series: o.Series = None,
    seed: o.Seed = 0,
    accelerator: o.Accelerator = "auto",
    devices: o.Devices = 1,
    nodes: o.Nodes = 1,
    strategy: Annotated[str, typer.Option(help="auto, ddp, or fsdp, which spreads the weights.")] = "auto",
    precision: o.Precision = "32-true",
    sync_norm: Annotated[bool, typer.Option("--sync-norm", help="Batch norm over all processes.")] = False,
    channels_last: Annotated[
        bool, typer.Option("--channels-last", help="Memory layout of images and convolutions.")
    ] = False,
    compile: Annotated[str | None, typer.Option(help="Backend of torch.compile, e.g. inductor.")] = None,
    logger: o.Loggers = None,
    audit: Annotated[
        str | None, typer.Option(metavar="PRESET", help="Audit the model before and after: quick, standard, full.")
    ] = None,
    allow_pickle: o.AllowPickle = False,
) -> None:
    """Train a copy of a model by a recipe; the best epoch by validation is what counts.

    The same command with the same folder continues a training that was stopped, at whatever moment.
    """
    from withstand.cli.console import Format, print_card, progress, resumable, say, show
    from withstand.cli.specs import load_sample, load_to_train, split_name
    from withstand.cli.training import drawn, outcome, refuse_occupied
    from withstand.files import slug
    from withstand.hardening.harden import harden
    from withstand.registry import parse
    from withstand.training import Trainer
    from withstand.training.logs import logger as logger_of

    made = parse(recipe, "recipe")
    given: dict[str, Any] = {
        "epochs": epochs,
        "batch": batch,
        "optimizer": optimizer,
        "schedule": schedule,
        "augment": tuple(augment) if augment else None,
        "sampler": sampler,
        "label_smoothing": label_smoothing,
        "averaging": averaging,
        "accumulate": accumulate,
        "clip_norm": clip_norm,
        "agc": agc,
        "patience": patience,
        "accelerator": accelerator,
        "devices": devices,
        "nodes": nodes,
        "strategy": strategy,
        "precision": precision,
        "sync_norm": sync_norm,
        "channels_last": channels_last,
        "compile": compile,
    }
    settings = {key: value for key, value in given.items() if value is not None}
    trainer = Trainer(**{**made.defaults, **settings})
    if audit is not None:
        from withstand.audit.presets import checks_of

        checks_of(audit, None)
    name, spec = split_name(model)
    folder = out or Path("runs") / f"{slug(name or spec)}-{slug(Path(data).name)}-{made.component_name}"
    refuse_occupied(folder)
    loggers = [logger_of(which, folder / which) for which in logger or []]
    examples = load_sample(data, split, limit, size, channels, root, download, series)
    target = load_to_train(model, examples, scratch, weights, mean, std, classes, allow_pickle)
    threat = getattr(getattr(made, "attack", None), "threat", None)
    say(f"{made!r}" + (f" against {threat!r}" if threat is not None else ""))
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
        show(outcome(after.history, after.fitted.best_epoch))
        for line in _gaps(after.fitted):
            say(line)
        kept = folder / f"{'last' if after.fitted.best_epoch is None else 'best'}.safetensors"
        say(f"weights: {kept}; as a model: artefact:{folder}")
        if audit is None:
            return
        from withstand.audit import audit as run_audit

        test = load_sample(
            data,
            "unseen" if split == "seen" and made.task != "classification" else "test",
            limit,
            size,
            channels,
            root,
            download,
            series,
        )
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
