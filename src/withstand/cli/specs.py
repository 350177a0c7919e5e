"""Reading what the command line says about models: `[NAME=]MODEL`, `[NAME=]FILE` of weights, `NAME=SPEC`."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from withstand.cli.console import channel_values
from withstand.errors import bad, unknown
from withstand.files import slug

_NAMED = re.compile(r"([A-Za-z_][\w.+-]*)=(.+)", re.DOTALL)


def split_name(text: str) -> tuple[str | None, str]:
    """(NAME, the rest) of `NAME=REST`; (None, the text) where there is no name, as in an address with a query."""
    match = _NAMED.fullmatch(text)
    return (match[1], match[2]) if match else (None, text)


def load_models(
    texts: list[str],
    weights: list[str] | None = None,
    mean: str | None = None,
    std: str | None = None,
    outputs: str | None = None,
    allow_pickle: bool = False,
    given: list[str] | None = None,
    classes: int | None = None,
    task: str = "classification",
    log: Path | None = None,
    layer: str | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The models by name, and what else is given by name: a model where weights are named for it, else its text.

    task: of the models. log: of the questions to an address, which is then the only model.
    """
    from withstand.models import load_model

    specs = [split_name(text) for text in texts]
    if log is not None and [spec.startswith(("http://", "https://")) for _, spec in specs] != [True]:
        raise bad("--log", log, "a file for one model behind an http(s) address")
    others = dict(split_given(text) for text in given or [])
    files, named = _weights(weights or [], [name for name, _ in specs if name] + list(others))
    if len(files) > len(specs):
        raise bad(
            "--weights", f"{len(files)} files", f"at most {len(specs)}, one for each model", "Or write NAME=FILE."
        )
    settings = {
        "mean": channel_values(mean, "--mean"),
        "std": channel_values(std, "--std"),
        "outputs": outputs,
        "allow_pickle": allow_pickle,
        "classes": classes,
    }
    engine: dict[str, Any] = {"task": task} | {k: v for k, v in (("log", log), ("layer", layer)) if v is not None}
    models: dict[str, Any] = {}
    for position, (name, spec) in enumerate(specs):
        chosen = named.get(name or "") or (files[position] if position < len(files) else None)
        target = load_model(spec, weights=chosen, name=name, **settings, **engine)
        if target.name in models:
            raise bad("MODEL", f"{target.name!r} twice", "each name once", "Write NAME=MODEL to tell them apart.")
        models[target.name] = target
    loaded = {
        name: load_model(spec, weights=named[name], name=name, **settings) if name in named else spec
        for name, spec in others.items()
    }
    return models, loaded


def load_one(
    model: str,
    weights: str | None,
    mean: str | None,
    std: str | None,
    device: str | None,
    allow_pickle: bool,
    task: str = "classification",
) -> Any:
    """A single model, on the device where one is named."""
    loaded, _ = load_models([model], [weights] if weights else None, mean, std, None, allow_pickle, task=task)
    target = next(iter(loaded.values()))
    if device is not None and target.module is not None:
        target.module.to(device)
    return target


def load_to_train(
    model: str,
    data: Any,
    scratch: bool,
    weights: str | None,
    mean: str | None,
    std: str | None,
    classes: int | None,
    allow_pickle: bool,
) -> Any:
    """The model that a training begins with: loaded, or with fresh weights, as networks of the zoo are that get none."""
    from withstand.training.materials import untrained_or_loaded

    if scratch and weights is not None:
        raise bad("--scratch", f"with --weights {weights}", "one of the two")
    _, spec = split_name(model)
    if weights is None and (scratch or spec.startswith("zoo:")):
        return untrained_or_loaded(spec, True, data)
    loaded, _ = load_models([model], [weights] if weights else None, mean, std, None, allow_pickle, None, classes)
    return next(iter(loaded.values()))


def load_sample(
    data: str,
    split: str = "test",
    limit: int | None = None,
    size: int | None = None,
    channels: int | None = None,
    root: Path | None = None,
    download: bool = False,
    series: Any = None,
    models: Iterable[Any] = (),
) -> Any:
    """A data set, or a fixed sample of it in which each class keeps its share; for models that take series, series."""
    from withstand.data.load import load_data, scaling_for

    seed = None if limit is None else 0
    series = series or scaling_for(data, models)
    return load_data(data, root, split, limit, seed, size=size, channels=channels, download=download, series=series)


def run_folder(models: list[str] | None, data: str | None, preset: str) -> Path:
    """Where a run goes when nobody says: the same command finds it again."""
    if models is None:
        return Path("runs/demo")
    names = "-".join(slug(name or spec) for name, spec in map(split_name, models))
    return Path("runs") / f"{names[:80]}-{slug(Path(str(data)).name)}-{preset}"


def split_given(text: str) -> tuple[str, str]:
    """(NAME, SPEC) of `NAME=SPEC`."""
    name, spec = split_name(text)
    if name is None:
        raise bad("--given", repr(text), "NAME=SPEC", "For example surrogate=timm:resnet18 or ood=fashion-mnist.")
    return name, spec


def _weights(texts: list[str], names: list[str]) -> tuple[list[str], dict[str, str]]:
    """Files in the order of the models, and files by name."""
    files: list[str] = []
    named: dict[str, str] = {}
    for text in texts:
        name, rest = split_name(text)
        if name in names and name is not None:
            named[name] = rest
        elif name is not None and not Path(text).exists():
            raise unknown("--weights: model", name, names)
        else:
            files.append(text)
    return files, named
