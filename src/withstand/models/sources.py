"""Where torch models come from: timm, torchvision, Hugging Face, our zoo, a Python file."""

import hashlib
import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from traceback import extract_tb
from typing import Any

from torch import Tensor, nn

from withstand.errors import BadInput, Unavailable, bad, missing_extra, unknown
from withstand.models.normalise import Pair

State = Mapping[str, Tensor] | None


@dataclass
class Built:
    """A model before its weights are loaded and its normalisation is put in front.

    shape: (C, H, W) of an input, None where anything may fit; normalise: mean and std, None = images as they are;
    text: source code that is part of the model's identity; notes: what was assumed.
    """

    module: nn.Module
    shape: tuple[int | None, ...] | None = None
    classes: int | None = None
    normalise: Pair | None = None
    text: str = ""
    notes: tuple[str, ...] = ()


def timm(
    name: str, state: State, classes: int | None, *, pretrained: bool | None = None, size: int | None = None
) -> Built:
    """A timm classifier. Its pretrained_cfg says mean, std, input size and the name of the last layer.

    Names as timm knows them: resnet18, resnet18.a1_in1k, hf-hub:REPO, local-dir:FOLDER.
    """
    import timm as library

    fetch = _fetches(f"timm:{name}", pretrained, state)
    config = None if ":" in name else _timm_config(name)
    if fetch and config is not None and classes not in (None, config.num_classes):
        raise bad("classes", classes, f"{config.num_classes}, as the published weights have", "Give weights=FILE.")
    if classes is None and config is not None:
        classes = _rows(state, config.classifier)
    options: dict[str, Any] = {} if fetch or classes is None else {"num_classes": classes}
    try:
        module: Any = library.create_model(name, pretrained=fetch, **options)
    except Exception as error:  # every storage that timm reads from raises kinds of its own
        raise _not_fetched(f"timm:{name}", error) if fetch else BadInput(f"timm:{name}: {error}") from error
    used = module.pretrained_cfg
    channels, height, width = used["input_size"]
    fixed = fetch or used.get("fixed_input_size")  # other weights may be for images of another size
    shape = (channels, size, size) if size else (channels, height, width) if fixed else (channels, None, None)
    return Built(module, shape, module.num_classes, (tuple(used["mean"]), tuple(used["std"])))


def _timm_config(name: str) -> Any:
    import timm as library
    from timm.models import get_pretrained_cfg

    try:
        config = get_pretrained_cfg(name) if library.is_model(name) else None
    except RuntimeError:  # an unknown tag of a known model
        config = None
    if config is None:
        raise unknown("timm model", name, {*library.list_models(), *library.list_pretrained()})
    return config


def torchvision(
    name: str, state: State, classes: int | None, *, pretrained: bool | None = None, size: int | None = None
) -> Built:
    """A torchvision classifier, with the preprocessing of its default weights."""
    from torchvision import models as library

    known = library.list_models(module=library)
    if name not in known:
        raise unknown("torchvision model", name, known)
    fetch = _fetches(f"torchvision:{name}", pretrained, state)
    published = library.get_model_weights(name).DEFAULT  # type: ignore[attr-defined]
    if fetch and classes not in (None, len(published.meta["categories"])):
        raise bad("classes", classes, f"{len(published.meta['categories'])}, as the published weights have")
    try:
        module = library.get_model(name, weights=published if fetch else None)
    except Exception as error:
        raise (
            _not_fetched(f"torchvision:{name}", error) if fetch else BadInput(f"torchvision:{name}: {error}")
        ) from error
    last = list(module.state_dict())[-1].rpartition(".")[0]
    if not fetch and (count := classes or _rows(state, last) or 1000) != 1000:
        module = library.get_model(name, weights=None, num_classes=count)
    transform = published.transforms()
    side = size or (transform.crop_size[0] if fetch or "vit" in name else None)
    if fetch:  # as timm's modules say how photographs are to be shown to them
        shown = {"resize": transform.resize_size[0], "interpolation": transform.interpolation.value}
        made: Any = module
        made.pretrained_cfg = {"input_size": (3, side, side), **shown}
    count = len(module.state_dict()[f"{last}.weight"])
    return Built(module, (3, side, side), count, (tuple(transform.mean), tuple(transform.std)))


def huggingface(name: str, state: State, classes: int | None) -> Built:
    """An image classifier of transformers, from a folder or the hub; code in the repository is never run."""
    try:
        from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification
    except ImportError:
        raise missing_extra("transformers", "hf", f"hf:{name}") from None
    if state is not None:
        raise bad("weights", "a file", f"None for hf:{name}", "Put the file into the folder, as save_pretrained does.")
    local = Path(name).expanduser().is_dir()
    place = str(Path(name).expanduser()) if local else name
    options: dict[str, Any] = {"local_files_only": local, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(place, **options)
        module, info = AutoModelForImageClassification.from_pretrained(
            place, config=config, use_safetensors=True, output_loading_info=True, **options
        )
    except Exception as error:  # safetensors and the hub raise kinds of their own
        first = str(error).strip().split("\n")[0]
        if local:
            raise BadInput(
                f"hf:{name}: not an image classifier of transformers in safetensors form: {first}"
            ) from error
        raise _not_fetched(f"hf:{name}", first) from error
    if missing := sorted(info["missing_keys"]):  # transformers would fill them with random numbers
        got = f"{len(missing)} weights that it lacks: {', '.join(missing[:5])}"
        raise bad(f"hf:{name}", got, "a repository with all weights of an image classifier", "Was it fine-tuned?")
    if classes not in (None, config.num_labels):
        raise bad("classes", classes, f"{config.num_labels}, as hf:{name} has")
    channels = getattr(config, "num_channels", 3)
    try:
        processor: Any = AutoImageProcessor.from_pretrained(place, **options).to_dict()
    except (OSError, ValueError, KeyError):
        note = "no preprocessor_config.json: images go in as they are, in [0, 1]; give mean and std if that is wrong"
        return Built(module, (channels, *_side(config.to_dict(), "image_size")), config.num_labels, notes=(note,))
    if processor.get("do_rescale", True) and abs(processor.get("rescale_factor", 1 / 255) - 1 / 255) > 1e-6:
        raise bad(f"hf:{name}: rescale_factor", processor["rescale_factor"], "1/255", "Wrap it in a factory instead.")
    if processor.get("do_flip_channel_order"):
        got, mend = "true: blue comes first", "Wrap it in a factory that flips the channels."
        raise bad(f"hf:{name}: do_flip_channel_order", got, "images with red first", mend)
    normalise = None
    if processor.get("do_normalize", True) and processor.get("image_mean") is not None:
        normalise = (_floats(processor["image_mean"]), _floats(processor["image_std"]))
    side = _side(processor, "crop_size" if processor.get("do_center_crop") else "size")
    module.pretrained_cfg = _shown(processor, channels, side)
    return Built(module, (channels, *side), config.num_labels, normalise)


def _shown(processor: Mapping[str, Any], channels: int, side: tuple[int | None, int | None]) -> dict[str, Any]:
    """How an image processor of transformers makes inputs of photographs, as timm's modules say it of theirs."""
    size = processor.get("size")
    if side[0] is None or side[0] != side[1] or not processor.get("do_resize", True) or not isinstance(size, Mapping):
        return {}
    resize, squash = size.get("shortest_edge"), False
    if resize is None:
        resize, squash = size.get("height"), True
        if resize is None or resize != size.get("width"):
            return {}
    elif share := processor.get("crop_pct"):  # ConvNeXt's: photographs of 384 pixels on are shown whole
        resize, squash = (int(resize / share), False) if resize < 384 else (resize, True)
    elif "Levit" in str(processor.get("image_processor_type")):
        resize = int(resize * 256 / 224)
    filters = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
    shown = {"interpolation": filters.get(processor.get("resample", 2)), "crop_mode": "squash" if squash else "center"}
    return {"input_size": (channels, *side), "resize": resize, **shown}


def zoo(name: str, state: State, classes: int | None, *, pretrained: bool | None = None) -> Built:
    """A network of our own zoo; its weights come from a file."""
    from withstand.models.zoo.table import find

    entry = find(name)
    if pretrained or (state is None and pretrained is None):
        mend = "Give weights=FILE, or pretrained=False for an untrained network."
        raise bad("weights", "nothing", f"a file for zoo:{entry.name}, whose weights are published nowhere by us", mend)
    module = entry.build(classes)
    return Built(module, entry.shape, classes or entry.classes, entry.normalise if state is not None else None)


def python_file(place: tuple[str, str], state: State, classes: int | None) -> Built:
    """`factory()` of a Python file: a module that takes images in [0, 1], or one whose mean and std are given."""
    made, code = made_by(place)
    if not isinstance(made, nn.Module):
        got = f"{Path(place[0]).expanduser()}:{place[1]}()"
        raise bad(got, f"a {type(made).__name__}", "a torch.nn.Module", "Return the model itself.")
    return Built(made, None, classes, text=code)


def made_by(place: tuple[str, str]) -> tuple[Any, str]:
    """What `factory()` of a Python file returns, and the file's text."""
    file, factory = Path(place[0]).expanduser(), place[1]
    if not file.is_file():
        raise bad("model", f"{file}, which is not a file", "an existing file: path/to/file.py:factory")
    code = file.read_bytes()
    name = f"withstand_user_{file.stem}_{hashlib.sha256(str(file.resolve()).encode() + code).hexdigest()[:12]}"
    loaded = _imported(name, file)
    functions = [n for n, v in vars(loaded).items() if callable(v) and getattr(v, "__module__", "") == name]
    if not factory:
        raise bad("model", str(file), f"{file}:factory", f"Functions of that file: {', '.join(functions) or 'none'}.")
    if not hasattr(loaded, factory):
        raise unknown(f"{file}: factory", factory, functions)
    return _run(f"{file}:{factory}()", getattr(loaded, factory), file), code.decode("utf-8", "replace")


def _imported(name: str, file: Path) -> Any:
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look it up there
    try:
        _run(str(file), lambda: spec.loader.exec_module(module), file)  # type: ignore[union-attr]
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _run(what: str, do: Any, file: Path) -> Any:
    """Call the user's code with its folder importable, as it would be if it were run as a script."""
    sys.path.insert(0, str(file.parent.resolve()))
    try:
        return do()
    except (Exception, SystemExit) as error:
        lines = [f"{Path(f.filename).name}, line {f.lineno}" for f in extract_tb(error.__traceback__)]
        own = [line for line in lines if line.startswith(f"{file.name},")]
        where = f" ({own[-1]})" if own else ""
        raise BadInput(f"{what} failed: {type(error).__name__}: {error}{where}") from error
    finally:
        sys.path.remove(str(file.parent.resolve()))


def _fetches(spec: str, pretrained: bool | None, state: State) -> bool:
    """Whether to fetch the published weights: on request, and by default where no file is given."""
    if pretrained and state is not None:
        raise bad("pretrained", True, f"False or nothing with weights=FILE for {spec}")
    return bool(pretrained) or (pretrained is None and state is None)


def _not_fetched(spec: str, error: object) -> Unavailable:
    return Unavailable(
        f"{spec}: its published weights could not be fetched: {str(error).rstrip('.')}. Without a network, give "
        "weights=FILE (a copy of them), or pretrained=False for an untrained network."
    )


def _rows(state: State, layer: str | tuple[str, ...] | None) -> int | None:
    """How many classes a state dict's last layer has, if it is there."""
    names = (layer,) if isinstance(layer, str) else layer or ()
    ends = tuple(f"{n}.weight" for n in names)
    return next((len(v) for k, v in (state or {}).items() if ends and k.endswith(ends)), None)


def _floats(value: Any) -> tuple[float, ...]:
    return (float(value),) if isinstance(value, (int, float)) else tuple(map(float, value))


def _side(held: Mapping[str, Any], key: str) -> tuple[int | None, int | None]:
    size = held.get(key)
    if isinstance(size, Mapping):
        side = size.get("shortest_edge")
        return size.get("height", side), size.get("width", side)
    return tuple(size) if isinstance(size, (list, tuple)) else (size, size)  # type: ignore[return-value]
