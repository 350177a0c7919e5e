"""A scorecard as tables: for the terminal, for Markdown, for CI (JUnit XML) and for a Hugging Face model card."""

import json
import re
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from withstand.report import summary, words

_SIGNS = {"fail": "✕", "warn": "!", "pass": "✓"}
_STYLES = {"fail": "bold red", "warn": "yellow", "pass": "green"}
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_HUB_NAMES = {"clean_accuracy": "accuracy"}


def terminal(card: dict[str, Any]) -> RenderableType:
    """Headline numbers of all models, what changed between them, verdicts, and every flag that is not a pass."""
    names = summary.models(card)
    parts: list[RenderableType] = []
    if not card["complete"]:
        parts.append(Text("This run is not complete; the numbers will change.", style=_STYLES["warn"]))
    parts.append(_headline(card, names))
    if card["comparisons"]:
        parts += [Text(), _changes(card)]
    for name, found in summary.flags(card).items():
        parts += [Text(), Text(name, style="bold"), Text(summary.verdict(card, name))]
        parts.append(_counts(summary.trust(found)))
        for flag in found:
            if flag["level"] != "pass":
                parts.append(_flag(flag))
    for result, concerned in summary.missing(card):
        parts.append(Text(f"{result['status']}: {result['title']} ({', '.join(concerned)}): {result['reason']}", "dim"))
    return Group(*parts)


def _headline(card: dict[str, Any], names: list[str]) -> Table:
    table = _table(card["run"])
    table.add_column("Measure")
    for name in names:
        table.add_column(Text(name))
    table.add_column("n", justify="right")
    for group in summary.groups(card):
        for row in group.headline:
            cells = [_cell(row.cells[name]) for name in names]
            table.add_row(Text(_measure(row)), *cells, Text(" / ".join(row.sizes)))
    return table


def _table(title: str) -> Table:
    return Table(title=Text(title, "bold"), title_justify="left", box=None, pad_edge=False, header_style="dim")


def _measure(row: summary.Row) -> str:
    where = words.condition(row.condition) + (f", the worst of {row.worst_of}" if row.worst_of else "")
    return words.title(row.name) + (f" ({where})" if where else "")


def _cell(cell: summary.Cell) -> Text:
    if cell.metric is None:
        return Text(words.NONE, "dim")
    text = Text(_value(cell.metric), "bold" if cell.mark else "")
    between = words.interval(cell.metric["low"], cell.metric["high"], cell.metric["unit"])
    text.append(f" {between}" if between else "", "not bold dim")
    text.append(f" {words.condition(cell.own)}" if cell.own else "", "not bold dim")
    text.append(f" {cell.mark}" if cell.mark else "", "not bold cyan")
    return text


def _value(metric: dict[str, Any]) -> str:
    return words.quantity(metric["value"], metric["unit"])


def _changes(card: dict[str, Any]) -> Table:
    table = _table("What changed")
    for column in ("Measure", "From, to", "Difference", "Test", "Examples"):
        table.add_column(column)
    for c in filter(summary.clear, card["comparisons"]):
        unit, _ = summary.unit_of(card, c["check"], c["metric"])
        where = words.condition(c["condition"])
        table.add_row(
            Text(summary.compared(card, c) + (f" ({where})" if where else "")),
            Text(f"{c['before']} → {c['after']}"),
            Text(f"{words.change(c['difference'], unit)} ({words.changes(c['low'], c['high'], unit)})"),
            Text(words.p_value(c["p_value"])),
            Text(f"{len(c['gained'])} gained, {len(c['lost'])} lost"),
        )
    if unclear := sum(not summary.clear(c) for c in card["comparisons"]):
        table.add_row(Text(f"{unclear} other comparison{'s' if unclear > 1 else ''} without a clear difference", "dim"))
    return table


def _counts(trust: dict[str, int]) -> Text:
    text = Text("Trust: ")
    shown = [(level, n) for level, n in trust.items() if n]
    for k, (level, n) in enumerate(shown):
        text.append(f"{', ' if k else ''}{_SIGNS[level]} {n} {level}", _STYLES[level])
    return text if shown else text.append("no indicator ran", "dim")


def _flag(flag: dict[str, Any]) -> Text:
    text = Text(f"  {_SIGNS[flag['level']]} {words.title(flag['name'])}: ", _STYLES[flag["level"]])
    text.append(f"{flag['explanation']} {flag['advice']}".rstrip(), "not bold default")
    return text


def markdown(card: dict[str, Any]) -> str:
    """The same for a pull request or a README, as GitHub-flavoured Markdown."""
    names = summary.models(card)
    lines = [f"### {_plain(card['run'])}", ""]
    if not card["complete"]:
        lines += ["**This run is not complete; the numbers will change.**", ""]
    lines += ["| " + " | ".join(["Measure", *map(_plain, names), "n"]) + " |", "|---|" + "---|" * (len(names) + 1)]
    for group in summary.groups(card):
        for row in group.headline:
            cells = [_markdown_cell(row.cells[name]) for name in names]
            lines.append("| " + " | ".join([_plain(_measure(row)), *cells, " / ".join(row.sizes)]) + " |")
    if card["comparisons"]:
        lines += ["", "| Measure | From | To | Difference | Test | Gained | Lost |", "|---|---|---|---|---|---|---|"]
    for c in filter(summary.clear, card["comparisons"]):
        unit, _ = summary.unit_of(card, c["check"], c["metric"])
        where = words.condition(c["condition"])
        what = summary.compared(card, c) + (f" ({where})" if where else "")
        much = f"{words.change(c['difference'], unit)} ({words.changes(c['low'], c['high'], unit)})"
        cells = [*map(_plain, (what, c["before"], c["after"])), much, words.p_value(c["p_value"])]
        lines.append("| " + " | ".join(cells) + f" | {len(c['gained'])} | {len(c['lost'])} |")
    for name, found in summary.flags(card).items():
        said = ", ".join(f"{_SIGNS[level]} {n} {level}" for level, n in summary.trust(found).items() if n)
        lines += ["", f"**{_plain(name)}**: {_plain(summary.verdict(card, name))} Trust: {said or 'no indicator ran'}."]
        lines += [
            f"- {_SIGNS[f['level']]} {f['level']}: {_plain(words.title(f['name']))}. {_plain(f['explanation'])} "
            f"{_plain(f['advice'])}".rstrip()
            for f in found
            if f["level"] != "pass"
        ]
    left = summary.missing(card)
    lines += ["", "Did not run:"] if left else []
    lines += [f"- {_plain(r['title'])} ({_plain(', '.join(m))}): {r['status']}, {_plain(r['reason'])}" for r, m in left]
    return "\n".join(lines) + "\n"


def _markdown_cell(cell: summary.Cell) -> str:
    if cell.metric is None:
        return words.NONE
    value = f"**{_value(cell.metric)}**" if cell.mark else _value(cell.metric)
    between = words.interval(cell.metric["low"], cell.metric["high"], cell.metric["unit"])
    own = f" {_plain(words.condition(cell.own))}" if cell.own else ""
    return value + (f" ({between})" if between else "") + own + (f" {cell.mark}" if cell.mark else "")


def _plain(text: str) -> str:
    """Text that Markdown leaves as it is, on one line."""
    return re.sub(r"([\\|<>`*\[\]])", r"\\\1", " ".join(str(text).split()))


def junit(card: dict[str, Any], failures: Mapping[str, str]) -> str:
    """JUnit XML: one test case for each requirement, and for each trust flag and check of each model.

    failures: every requirement that was stated, with the reason why it is not met ("" where it is met). A flag of level
    "fail" is a failure and "warn" is told in the output of a passing case; a check that failed is an error.
    """
    suites = ElementTree.Element("testsuites", name=_legal(card["run"]))
    _suite(suites, "requirements", [(r, "failure" if why else "", why, 0.0) for r, why in failures.items()])
    for name, found in summary.flags(card).items():
        cases = [
            (f["name"], {"fail": "failure", "warn": "system-out"}.get(f["level"], ""),
             f"{f['explanation']} {f['advice']}".strip(), 0.0)
            for f in found
        ]  # fmt: skip
        cases += [
            (r["check"], {"done": "", "failed": "error"}.get(r["status"], "skipped"), r["reason"], r["seconds"])
            for r in card["results"]
            if r["model"] == name
        ]
        _suite(suites, name, cases)
    ElementTree.indent(suites)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(suites, encoding="unicode") + "\n"


def _suite(suites: ElementTree.Element, name: str, cases: list[tuple[str, str, str, float]]) -> None:
    kinds = [kind for _, kind, _, _ in cases]
    suite = ElementTree.SubElement(
        suites,
        "testsuite",
        name=_legal(name),
        tests=str(len(cases)),
        failures=str(kinds.count("failure")),
        errors=str(kinds.count("error")),
        skipped=str(kinds.count("skipped")),
    )
    for case, kind, why, seconds in cases:
        shown = ElementTree.SubElement(
            suite, "testcase", classname=_legal(name), name=_legal(case), time=f"{seconds:.3f}"
        )
        if kind == "system-out":
            ElementTree.SubElement(shown, kind).text = _legal(why)
        elif kind:
            ElementTree.SubElement(shown, kind, message=_legal(why)).text = _legal(why)


def _legal(text: str) -> str:
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", str(text))


def model_index(card: dict[str, Any]) -> str:
    """The `model-index` block for the head of a Hugging Face model card: the headline metrics of every model.

    Strings are written as JSON, which YAML reads; values keep full precision.
    """
    lines = ["model-index:"]
    data = json.dumps(str(card["data"].get("name", "unknown")), ensure_ascii=False)
    for name in summary.models(card):
        metrics = [line for group in summary.groups(card) for row in group.headline for line in _hub_metric(row, name)]
        lines.append(f"- name: {json.dumps(name, ensure_ascii=False)}")
        lines += ["  results:", "  - task:", "      type: image-classification"] if metrics else ["  results: []"]
        lines += ["    dataset:", f"      name: {data}", f"      type: {data}", "    metrics:"] if metrics else []
        lines += metrics
    return "\n".join(lines if len(lines) > 1 else ["model-index: []"]) + "\n"


def _hub_metric(row: summary.Row, model: str) -> list[str]:
    metric = row.cells[model].metric
    if metric is None or not words.is_number(metric["value"]):
        return []
    lines = [
        f"    - type: {json.dumps(_HUB_NAMES.get(row.name, row.name), ensure_ascii=False)}",
        f"      value: {json.dumps(metric['value'])}",
        f"      name: {json.dumps(_measure(row), ensure_ascii=False)}",
    ]
    args = {
        **metric["condition"],
        **{k: metric[k] for k in ("low", "high") if words.is_number(metric[k])},
        "n": metric["n"],
    }
    return [*lines, f"      args: {json.dumps(args, ensure_ascii=False, default=str)}"]
