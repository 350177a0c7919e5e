"""`load_model`: a target from a short text that says where the model is."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

from withstand.errors import BadInput, bad, unknown
from withstand.models import artefact, sources
from withstand.models.encoder import Features
from withstand.models.normalise import normalisation
from withstand.models.sources import Built
from withstand.models.target import Normalised, TorchTarget
from withstand.models.weights import load_weights, read_weights
from withstand.protocols import Space, Target

SPECS = (
    "timm:NAME, torchvision:NAME, hf:REPO_OR_FOLDER, zoo:NAME, file.py:factory, artefact:FOLDER, model.onnx, "
    "http(s)://.../predict"
)
_SOURCES: dict[str, Callable[..., Built]] = {
    "timm": sources.timm,
    "torchvision": sources.torchvision,
    "hf": sources.huggingface,
    "zoo": sources.zoo,
}


def load_model(
    spec: str,
    weights: str | PathLike[str] | None = None,
    mean: str | float | Sequence[float] | None = None,
    std: str | float | Sequence[float] | None = None,
    classes: int | None = None,
    allow_pickle: bool = False,
    task: str = "classification",
    *,
    name: str | None = None,
    outputs: str | None = None,
    layer: str | None = None,
    **options: Any,
) -> Target:
    """The model that `spec` names, as a target: images [N, C, H, W] in [0, 1] -> logits [N, K].

    >>> load_model("zoo:digits_cnn", pretrained=False)
    <zoo:digits_cnn: classification, input (1, 8, 8), 10 classes>

    spec: timm:NAME, torchvision:NAME, hf:REPO_OR_FOLDER, zoo:NAME, file.py:factory, artefact:FOLDER (a hardened model),
    model.onnx, http(s)://.../predict.
    weights: a .safetensors file or a state dict (.pt, .pth, .th); see `read_weights` for it and allow_pickle.
    mean, std: per channel, in units of the [0, 1] range, or the name of a preset ("imagenet", "cifar10", "half",
    "none"); default: what the source says, which the target's `notes` repeat. classes: K, where it does not say.
    outputs: "probabilities" for a model that returns them: their logarithm stands for the logits.
    task: "embedding", images -> vectors [N, D]: what the network of file.py:factory returns; of a classifier, what its last
    layer reads or `layer` returns, with length 1. "hashing", images -> numbers [N, K] in (-1, 1) whose signs are a code.
    "retrieval": a search engine, http(s)://.../retrieve or file.py:factory (which returns a retrieval target), images ->
    ranked ids; for anything else the same as "embedding". Artefacts know their task.
    options: pretrained (timm, torchvision: fetch the published weights, the default without `weights`; False: an
    untrained network, the same each time), size (timm, torchvision: side of the input that the weights were trained
    for); for .onnx see `OnnxTarget`, for http(s) `HttpTarget` or `HttpRetriever`.
    Raises: BadInput, MissingExtra or Unavailable, each with what to do about it.
    """
    if not isinstance(spec, str):
        raise bad("model", type(spec).__name__, f"a text such as {SPECS}", "For a module, call as_target.")
    kind, _, rest = spec.partition(":")
    if layer is not None and task not in ("embedding", "retrieval"):
        raise bad("layer", repr(layer), f'None for the task "{task}"', "Embeddings are what a layer returns.")
    if task == "retrieval":
        engine = _engine(spec, name=name, **options)
        if engine is not None:
            return engine
        task, options = "embedding", {k: v for k, v in options.items() if v is not None}
    if kind in ("http", "https") or spec.endswith(".onnx"):
        return _black_box(spec, weights, mean, std, classes, task, name=name, outputs=outputs, **options)
    if kind == "artefact":
        if weights is not None:
            raise bad("weights", weights, f"None for {spec}", "The folder holds its own.")
        return _suited(artefact.load(rest, name), task, layer)
    if kind in _SOURCES and rest:
        build: Callable[..., Built] = _SOURCES[kind]
        argument: Any = rest
    elif ".py" in spec and (cut := spec.rfind(".py")) + 3 in (len(spec), spec.rfind(":")):
        build, argument = sources.python_file, (spec[: cut + 3], spec[cut + 4 :])
    else:
        raise BadInput(f"model: cannot read {spec!r}; allowed: {SPECS}.")
    _known_options(build, spec, options)
    state = None if weights is None else read_weights(weights, allow_pickle)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # what a source leaves untrained is the same in every process
        built = build(argument, state, classes, **options)
    if state is not None:
        load_weights(built.module, state, f"weights {weights}")
    built.module.eval()
    pair, note = normalisation(mean, std, built.normalise, None if built.shape is None else built.shape[0])
    model = built.module if pair is None else Normalised(built.module, *pair).eval()
    embeds = task == "embedding" and (kind in _SOURCES or layer is not None)
    if embeds:
        model = Features(model, layer).eval()
    target = TorchTarget(
        model,
        name or (spec if weights is None else f"{spec} [{Path(weights).stem}]"),
        getattr(built.module, "space", None)
        or Space(built.shape, (0.0, 1.0), built.classes if task == "classification" else None),
        task,
        outputs or "logits",  # type: ignore[arg-type]
        built.text,
        (*built.notes, *note),
    )
    target.built_by = {
        "spec": spec
        if kind in _SOURCES
        else str(Path(spec[: spec.rfind(".py")]).resolve()) + spec[spec.rfind(".py") :],
        "mean": mean,
        "std": std,
        "outputs": outputs,
        "options": {k: v for k, v in options.items() if k != "pretrained"},
    }
    return target


def _known_options(build: Callable[..., Any], spec: str, options: dict[str, Any]) -> None:
    known = [p.name for p in inspect.signature(build).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for option in options:
        if option not in known:
            raise unknown(f"{spec}: option", option, [*known, "name", "outputs"])


def _suited(target: Target, task: str, layer: str | None) -> Target:
    """An artefact for a task: a classifier embeds by its features; what embeds or hashes does so whatever is asked."""
    if task in ("classification", target.task) or target.task != "classification":
        if layer is not None:
            raise bad("layer", repr(layer), f"None for an artefact whose task is {target.task}")
        return target
    if task != "embedding" or target.module is None:
        raise bad("task", repr(task), f'"embedding" or "classification" for {target.name}, a classifier')
    space = replace(target.space, classes=None)
    return TorchTarget(Features(target.module, layer), target.name, space, "embedding")


def _engine(spec: str, **options: Any) -> Target | None:
    """The search engine of an address or a factory; None for models, whose own search can be looked into."""
    from withstand.models.retrieval import HttpRetriever, RetrievalTarget

    given = {k: v for k, v in options.items() if v is not None}
    if spec.startswith(("http://", "https://")):
        _known_options(HttpRetriever, spec, given)
        return HttpRetriever(spec, **given)
    if ".py:" not in spec:
        return None
    with torch.random.fork_rng(devices=[]):
        made, _ = sources.made_by((spec[: spec.rfind(".py") + 3], spec[spec.rfind(".py") + 4 :]))
    if isinstance(made, nn.Module):
        return None
    if unsuited := given.keys() - {"name"}:
        raise bad(f"{spec}: {min(unsuited)}", given[min(unsuited)], "nothing", "The factory itself makes the engine.")
    if not isinstance(made, RetrievalTarget):
        raise bad(
            f"{spec}()",
            f"a {type(made).__name__}",
            "a RetrievalTarget or a torch module",
            "Wrap the engine: RetrievalTarget(fn, k).",
        )
    made.name = given.get("name", made.name)
    return made


def _black_box(spec: str, weights: Any, mean: Any, std: Any, classes: int | None, task: str, **options: Any) -> Target:
    if weights is not None:
        raise bad("weights", weights, f"None for {spec}", "An exported graph or an endpoint holds its own weights.")
    if task != "classification":
        raise bad("task", repr(task), f'"classification" for {spec}')
    if spec.endswith(".onnx"):
        from withstand.models.onnx import OnnxTarget as Made
    else:
        from withstand.models.endpoint import HttpTarget as Made
    _known_options(Made, spec, {k: v for k, v in options.items() if v is not None})
    pair, _ = normalisation(mean, std, None, None)
    given = {k: v for k, v in options.items() if v is not None}
    return Made(spec, classes=classes, normalise=pair, **given)
