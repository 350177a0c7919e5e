"""`withstand fit-attack`: train what an attack needs first."""

from pathlib import Path
from typing import Annotated, Any

import typer

from withstand.cli import options as o


def run(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="See `withstand list recipes`, e.g. 'bia(layer=layer2)'.")
    ],
    model: o.TrainedModel,
    data: o.Data,
    out: Annotated[Path | None, typer.Option(help="The folder of the result; default runs/RECIPE-MODEL-DATA.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the data; default the recipe's.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Examples per update; default the recipe's.")] = None,
    optimizer: Annotated[
        str | None, typer.Option(help="sgd, adam or adamw, e.g. 'adam(2e-4)'; default the recipe's.")
    ] = None,
    schedule: Annotated[
        str | None, typer.Option(help="constant, cosine, linear, steps or one_cycle; default the recipe's.")
    ] = None,
    augment: o.Augment = None,
    averaging: o.Averaging = None,
    accumulate: o.Accumulate = 1,
    clip_norm: o.ClipNorm = None,
    validation: o.Validation = 0.1,
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
    precision: o.Precision = "32-true",
    logger: o.Loggers = None,
    allow_pickle: o.AllowPickle = False,
) -> None:
    """Train what an attack needs before it can be used: a generator, a surrogate that transfers better.

    MODEL and --data are what the attacker has. The result is artefact:OUT, for attacks on any model. The same command with
    the same folder continues a training that was stopped, at whatever moment.
    """
    from withstand.attacks.fit import fit_attack, refuse_fresh
    from withstand.cli.console import resumable, say, show
    from withstand.cli.specs import load_sample, load_to_train, split_name
    from withstand.cli.training import drawn, outcome, refuse_occupied
    from withstand.files import slug
    from withstand.registry import parse
    from withstand.training.logs import logger as logger_of

    made = parse(recipe, "recipe")
    name, spec = split_name(model)
    if weights is None:
        refuse_fresh(made, spec, scratch)
    folder = out or Path("runs") / f"{made.component_name}-{slug(name or spec)}-{slug(Path(data).name)}"
    refuse_occupied(folder)
    given: dict[str, Any] = {
        "epochs": epochs,
        "batch": batch,
        "optimizer": optimizer,
        "schedule": schedule,
        "augment": tuple(augment) if augment else None,
        "averaging": averaging,
        "accumulate": accumulate,
        "clip_norm": clip_norm,
        "accelerator": accelerator,
        "devices": devices,
        "nodes": nodes,
        "precision": precision,
    }
    examples = load_sample(data, split, limit, size, channels, root, download, series)
    target = load_to_train(model, examples, scratch, weights, mean, std, classes, allow_pickle)
    with resumable(f"The same command continues in {folder}"), drawn() as draw:
        after = fit_attack(
            made,
            target,
            examples,
            out=folder,
            validation=validation or None,
            seed=seed,
            progress=draw,
            loggers=[logger_of(which, folder / which) for which in logger or []],
            **{name: value for name, value in given.items() if value is not None},
        )
    if after.fitted.rank:
        return  # the first process tells the rest
    show(outcome(after.history, after.fitted.best_epoch))
    say(f"a {after.kind}: artefact:{folder}")
