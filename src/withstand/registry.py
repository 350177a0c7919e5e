"""Components: settings as values, found by name.

A component is a frozen, validated dataclass whose `repr` is a call that the command line reads back:

    >>> from withstand.threats import Linf
    >>> Linf(8 / 255)
    linf(8/255)
    >>> parse("linf:eps=8/255", kind="threat") == Linf(8 / 255)
    True

Register with literals only (`@component("attack", "pgd", systems=("classic_attacks",))`): `entries` reads the registry
from the source text, so that listing it imports neither torch nor any family. Third parties register through entry
points of the groups `withstand.attacks`, `withstand.recipes`, `withstand.detectors` and `withstand.checks`.
"""

import ast
import dataclasses
import importlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar, dataclass_transform

from withstand.errors import BadInput, bad, unknown

KINDS = (
    "attack",
    "recipe",
    "detector",
    "check",
    "indicator",
    "threat",
    "objective",
    "criterion",
    "parameterisation",
    "view",
    "shaping",
    "optimizer",
    "schedule",
    "averaging",
    "augmentation",
    "sampler",
    "trainer",
    "metric_loss",
    "hashing_loss",
)
_ENTRY_POINTS = {kind: f"withstand.{kind}s" for kind in ("attack", "recipe", "detector", "check", "indicator")}
_PACKAGE = Path(__file__).parent

T = TypeVar("T")


@dataclass(frozen=True)
class Entry:
    """What is known of a registered component without importing it."""

    kind: str
    name: str
    module: str
    attribute: str
    summary: str
    systems: tuple[str, ...] = ()
    extra: str = ""
    loaded: Any = dataclasses.field(default=None, compare=False, repr=False)

    def load(self) -> Any:
        """The class itself; imports its module."""
        return self.loaded or getattr(importlib.import_module(self.module), self.attribute)


_live: dict[tuple[str, str], Entry] = {}


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def component(kind: str, name: str, *, systems: tuple[str, ...] = (), extra: str = "") -> Callable[[type[T]], type[T]]:
    """Make a class a component: a frozen pydantic dataclass with a readable repr, registered under its name.

    kind: one of `KINDS`. name: the field's spelling, lower case. systems: ids of the published systems it belongs to.
    extra: the optional dependency group that it needs, if any.
    """
    if kind not in KINDS:
        raise unknown("kind of component", kind, KINDS)

    def decorate(cls: type[T]) -> type[T]:
        from pydantic import ConfigDict
        from pydantic.dataclasses import dataclass as validated

        made: Any = validated(
            cls, frozen=True, repr=False, config=ConfigDict(arbitrary_types_allowed=True, extra="forbid")
        )
        made.component_kind, made.component_name = kind, name
        made.__repr__ = made.__str__ = to_call
        made.__init__ = _explaining(made.__init__, name, cls)
        summary = (cls.__doc__ or "").strip().split("\n")[0]
        _live[kind, name] = Entry(kind, name, cls.__module__, cls.__qualname__, summary, systems, extra, made)
        return made

    return decorate


def _explaining(init: Any, name: str, cls: type) -> Any:
    """Turn pydantic's errors into ours: which argument, what was got, what is allowed."""

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        from pydantic import ValidationError

        try:
            init(self, *args, **kwargs)
        except ValidationError as error:
            raise _readable(error, name, cls) from None
        except TypeError as error:
            raise BadInput(f"{name}: {error}") from None

    return __init__


def _readable(error: Any, name: str, cls: type) -> BadInput:
    lines = []
    for item in error.errors():
        field = ".".join(str(part) for part in item["loc"][:1])
        if item["type"] in {"unexpected_keyword_argument", "unexpected_positional_argument"}:
            own = [f for f in dataclasses.fields(cls) if f.init]
            held: dict[str, Any] = {
                f.name: f.default for f in own if is_component(f.default) and hasattr(f.default, field)
            }
            for part, default in held.items():
                inner = f"{part}={default.component_name}({field}=...)"
                lines.append(f"{name}: {field} belongs to its {part}: write {name}({inner}) or {name}:{field}=...")
            if not held:
                lines.append(str(unknown(f"{name}: argument", field, [f.name for f in own])))
        else:
            cause = item.get("ctx", {}).get("error")
            ours = isinstance(cause, BadInput)
            lines.append(f"{name}: {cause}" if ours else f"{name}: {field}: got {item.get('input')!r}; {item['msg']}")
    return BadInput("; ".join(dict.fromkeys(lines)))


def is_component(value: object) -> bool:
    """Whether the value is an instance of a registered component."""
    return hasattr(type(value), "component_name") and dataclasses.is_dataclass(value)


# Finding -----------------------------------------------------------------------------------------------------------


@cache
def _written() -> dict[tuple[str, str], Entry]:
    """Every component written in this package, read from its source text."""
    found: dict[tuple[str, str], Entry] = {}
    for path in sorted(_PACKAGE.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if "@component(" not in text:
            continue
        parts = path.relative_to(_PACKAGE.parent).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        for node in ast.parse(text).body:
            if isinstance(node, ast.ClassDef):
                for mark in node.decorator_list:
                    if isinstance(mark, ast.Call) and getattr(mark.func, "id", "") == "component":
                        kind, name = (ast.literal_eval(a) for a in mark.args)
                        options = {k.arg: ast.literal_eval(k.value) for k in mark.keywords if k.arg}
                        summary = (ast.get_docstring(node) or "").split("\n")[0]
                        found[kind, name] = Entry(kind, name, module, node.name, summary, **options)
    return found


@cache
def _installed() -> dict[tuple[str, str], Entry]:
    """Components that other installed packages offer through entry points."""
    found: dict[tuple[str, str], Entry] = {}
    for kind, group in _ENTRY_POINTS.items():
        for point in metadata.entry_points(group=group):
            module, _, attribute = point.value.partition(":")
            found[kind, point.name] = Entry(kind, point.name, module, attribute, f"from the package of {module}")
    return found


def entries(kind: str | None = None) -> list[Entry]:
    """All registered components of a kind (all kinds if None), sorted by name; nothing is imported."""
    if kind is not None and kind not in KINDS:
        raise unknown("kind of component", kind, KINDS)
    everything = _written() | _installed() | _live
    return sorted((e for e in everything.values() if kind in (None, e.kind)), key=lambda e: (e.kind, e.name))


def find(name: str, kind: str | None = None) -> Entry:
    """The entry with this name. Raises BadInput with the nearest names where there is none.

    Without a kind, a check comes last: nothing holds checks, which may therefore be called like what they measure.
    """
    tables = (_live, _written(), _installed())
    named = [e for table in tables for e in table.values() if e.name == name and kind in (None, e.kind)]
    if named:
        return min(named, key=lambda e: e.kind == "check")
    raise unknown(kind or "component", name, (e.name for e in entries(kind)))


# Reading -----------------------------------------------------------------------------------------------------------


def parse(text: str, kind: str | None = None) -> Any:
    """Build a component from a call (`pgd(linf(8/255), steps=5)`) or its flat form (`pgd:steps=5,eps=8/255`).

    In the flat form a key that the component lacks is looked up in the components that it holds, so that `eps` reaches
    the threat. Only literals, + - * /, lists and calls of registered names are read; nothing is evaluated.
    """
    name, colon, rest = text.partition(":")
    flat = bool(colon) and name.strip().isidentifier()
    source = f"{name}({rest})" if flat else text
    try:
        tree = ast.parse(source.strip(), mode="eval").body
    except SyntaxError as error:
        raise BadInput(
            f"cannot read {text!r}: {error.msg}. Write a call such as pgd(linf(8/255), steps=5) "
            "or its flat form pgd:steps=5,eps=8/255"
        ) from None
    if isinstance(tree, ast.Name):
        return find(tree.id, kind).load()()
    if not isinstance(tree, ast.Call):
        raise bad(kind or "component", repr(text), "a call such as pgd(linf(8/255), steps=5)")
    return _build(tree, kind, flat)


def _build(node: ast.Call, kind: str | None, flat: bool = False) -> Any:
    if not isinstance(node.func, ast.Name):
        raise bad("component", ast.unparse(node), "a registered name followed by its arguments in brackets")
    entry = find(node.func.id, kind)
    cls = entry.load()
    args = [_value(a) for a in node.args]
    kwargs = {k.arg: _value(k.value) for k in node.keywords if k.arg}
    return cls(*args, **(_nested(entry.name, cls, kwargs) if flat else kwargs))


def _nested(name: str, cls: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Hand each key that the class lacks to the one held component (given here, or the default) that has it."""
    fields = [f for f in dataclasses.fields(cls) if f.init]
    own = {f.name for f in fields}
    held = {f.name: h for f in fields if is_component(h := kwargs.get(f.name, f.default))}
    made = {k: v for k, v in kwargs.items() if k in own}
    for key in kwargs.keys() - own:
        holders = [n for n, h in held.items() if key in {g.name for g in dataclasses.fields(h)}]
        if len(holders) != 1:
            below = {g.name for h in held.values() for g in dataclasses.fields(h)}
            raise unknown(f"{name}: argument", key, own | below)
        held[holders[0]] = replace(held[holders[0]], **{key: kwargs[key]})
        made[holders[0]] = held[holders[0]]
    return made


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.BinOp(left=left, op=op, right=right):
            a, b = _value(left), _value(right)
            if isinstance(op, ast.Div):
                return a / b
            if isinstance(op, ast.Mult):
                return a * b
            if isinstance(op, ast.Add):
                return a + b
            if isinstance(op, ast.Sub):
                return a - b
        case ast.List(elts=items):
            return [_value(i) for i in items]
        case ast.Tuple(elts=items):
            return tuple(_value(i) for i in items)
        case ast.Dict(keys=keys, values=values):
            return {_value(k): _value(v) for k, v in zip(keys, values) if k is not None}
        case ast.Call():
            return _build(node, None)
        case ast.Name(id=name):
            return find(name).load()() if any(e.name == name for e in entries()) else name
    raise bad("argument", ast.unparse(node), "a number, a text, a list or a call of a registered name")


def replace(made: T, **changes: Any) -> T:
    """A copy of a component with some fields changed, validated again."""
    fields = {f.name: getattr(made, f.name) for f in dataclasses.fields(made) if f.init}  # type: ignore[arg-type]
    unknown_keys = changes.keys() - fields.keys()
    if unknown_keys:
        raise unknown(f"{getattr(made, 'component_name', type(made).__name__)}: argument", min(unknown_keys), fields)
    return type(made)(**{**fields, **changes})


def coerce(kind: str) -> Callable[[Any], Any]:
    """For a field that holds a component: accept its text as well (`PGD(threat="l2:eps=0.5")`)."""
    return lambda value: parse(value, kind) if isinstance(value, str) else value


# Writing -----------------------------------------------------------------------------------------------------------


def to_call(made: Any) -> str:
    """The call that builds this component; fields at their default are left out, the first one is positional."""
    parts = []
    fields = sorted((f for f in dataclasses.fields(made) if f.init), key=lambda f: f.kw_only is True)
    for position, f in enumerate(fields):
        value = getattr(made, f.name)
        default = f.default_factory() if callable(f.default_factory) else f.default
        if _same(value, default):
            continue
        text = _text(value)
        parts.append(text if position == 0 and f.kw_only is not True else f"{f.name}={text}")
    return f"{made.component_name}({', '.join(parts)})"


def _same(a: Any, b: Any) -> bool:
    try:
        return type(a) is type(b) and bool(a == b)
    except (RuntimeError, ValueError):
        return False


def _text(value: Any) -> str:
    if is_component(value):
        return to_call(value)
    if isinstance(value, float) and math.isfinite(value) and len(repr(value)) > 6:
        pixels = round(value * 510) / 2  # radii are said in 255ths
        if pixels and pixels / 255 == value:
            return f"{pixels:g}/255"
    if isinstance(value, (list, tuple)):
        inner = ", ".join(_text(v) for v in value)
        return f"[{inner}]" if isinstance(value, list) else f"({inner}{',' if len(value) == 1 else ''})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k!r}: {_text(v)}" for k, v in value.items()) + "}"
    return repr(value) if isinstance(value, (bool, int, float, str, type(None))) else live(value)


def live(value: Any) -> str:
    """How an object that is no component is written down: by a fingerprint of what it holds."""
    import hashlib

    from torch import Tensor, nn

    digest = hashlib.sha256(f"{type(value).__module__}.{type(value).__qualname__}".encode())
    tensors = [value] if isinstance(value, Tensor) else []
    if isinstance(value, nn.Module):
        tensors = list(value.state_dict().values())
    elif fingerprint := getattr(value, "fingerprint", None):
        digest.update(fingerprint().encode())
    for tensor in tensors:
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(-1).numpy().tobytes())
    name = getattr(value, "__qualname__", type(value).__qualname__)
    return f"'live:{name}:{digest.hexdigest()[:16]}'"


def to_json(made: Any) -> dict[str, Any]:
    """A component as plain JSON values: its name under "component", then its fields."""

    def plain(value: Any) -> Any:
        if is_component(value):
            return to_json(value)
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        if isinstance(value, dict):
            return {str(k): plain(v) for k, v in value.items()}
        return value if isinstance(value, (bool, int, float, str, type(None))) else live(value).strip("'")

    fields = {f.name: plain(getattr(made, f.name)) for f in dataclasses.fields(made) if f.init}
    return {"component": made.component_name, "kind": made.component_kind, **fields}


def from_json(data: dict[str, Any] | str) -> Any:
    """The component that `to_json` wrote. Live objects cannot come back and are refused."""
    fields: dict[str, Any] = json.loads(data) if isinstance(data, str) else dict(data)

    def build(value: Any) -> Any:
        if isinstance(value, dict) and "component" in value:
            return from_json(value)
        if isinstance(value, list):
            return [build(v) for v in value]
        if isinstance(value, str) and value.startswith("live:"):
            raise bad(
                "field", value, "settings only", "The object lived in the process that wrote this; give it again."
            )
        return value

    name, kind = fields.pop("component"), fields.pop("kind", None)
    return find(name, kind).load()(**{k: build(v) for k, v in fields.items()})
