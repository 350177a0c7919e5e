"""The pages that are made from the code and from recorded results, so that they cannot go stale."""

import json
import runpy
from pathlib import Path
from typing import IO, Any

import mkdocs_gen_files

from withstand.registry import KINDS, entries
from withstand.report.files import svg_file
from withstand.systems import systems

ROOT = Path(__file__).parent.parent


def plain(value: object) -> str:
    """A value as a cell of a table."""
    if isinstance(value, (dict, list)):
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "/")


def write(page: IO[str], record: object, title: str = "") -> None:
    """A recorded result as Markdown: single values as a list, tables of equal records as tables, the rest in turn."""
    if title:
        print(f"\n**{title}**\n", file=page)
    named = isinstance(record, dict) and record and all(isinstance(v, dict) for v in record.values())
    rows = [{"": k, **v} for k, v in record.items()] if named else record
    if isinstance(rows, list) and rows and isinstance(rows[0], dict):
        flat = all(not isinstance(v, (dict, list)) for row in rows for v in row.values())
        if flat or not named:
            columns = list(dict.fromkeys(k for row in rows for k, v in row.items() if not isinstance(v, (dict, list))))
            print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns), file=page)
            for row in rows:
                print("| " + " | ".join(plain(row.get(c, "")) for c in columns) + " |", file=page)
            return
    if isinstance(record, dict):
        for key, value in record.items():
            if not isinstance(value, (dict, list)):
                print(f"- {key}: {plain(value)}", file=page)
        for key, value in record.items():
            if isinstance(value, dict) or (isinstance(value, list) and value and isinstance(value[0], dict)):
                write(page, value, f"{title} / {key}" if title else key)


def arms(page: IO[str], table: list[dict[str, Any]]) -> None:
    """Every arm with every metric, each with its interval."""
    metrics = list(dict.fromkeys(row["metric"] for row in table))
    print("\n| arm | " + " | ".join(metrics).replace("_", " ") + " |\n|---|" + "---|" * len(metrics), file=page)
    found = {(row["arm"], row["metric"]): row for row in table}
    for arm in dict.fromkeys(row["arm"] for row in table):
        cells = [found.get((arm, metric)) for metric in metrics]
        texts = ["" if c is None else f"{c['value']:.3f} ({c['low']:.3f} to {c['high']:.3f})" for c in cells]
        print(f"| {arm.replace('_', ' ')} | " + " | ".join(texts) + " |", file=page)


with mkdocs_gen_files.open("components.md", "w") as page:
    print(
        "# Components\n\nWhat `withstand list` shows. Each name is also a call that the command line reads.\n",
        file=page,
    )
    for kind in KINDS:
        found = entries(kind)
        if found:
            print(f"\n## {kind.capitalize()}s\n\n| name | what it is | home |\n|---|---|---|", file=page)
            for entry in found:
                print(f"| `{entry.name}` | {entry.summary} | `{entry.module}` |", file=page)

with mkdocs_gen_files.open("results.md", "w") as page:
    print(
        "# Results and benchmarks\n\nEvery number on this page was written by a command of this repository.\n",
        file=page,
    )
    print("## Published systems\n\n| system | paper | recorded results |\n|---|---|---|", file=page)
    for row in systems():
        print(f"| `{row.id}` | {row.paper} ({row.year}) | {'yes' if row.results else 'not yet'} |", file=page)
    for path in sorted((ROOT / "src/withstand/reproductions/results").glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        seeds = len(record.get("seeds", []))
        print(f"\n## {path.stem}\n\n{seeds} seed{'s' if seeds != 1 else ''}.\n", file=page)
        print("| claim | measured as | from, to | difference | verdict |\n|---|---|---|---|---|", file=page)
        for claim in record.get("claims", []):
            ends = zip((claim["arms"][0], claim["arms"][-1]), claim["values"])
            between = " → ".join(f"{arm} {value:.3f}" for arm, value in ends)
            change = f"{claim['difference']:+.3f} ({claim['low']:+.3f} to {claim['high']:+.3f})"
            print(
                f"| {claim['statement']} | {claim['metric']} | {between} | {change} | {claim['verdict']} |".replace(
                    "_", " "
                ),
                file=page,
            )
        arms(page, record.get("table", []))
        for k, figure in enumerate(record.get("figures", ())):
            name = f"figures/{path.stem}.{k + 1}.svg"
            with mkdocs_gen_files.open(name, "w") as picture:
                picture.write(svg_file(figure))
            print(f"\n{figure['title']}. {figure['caption']}\n\n![{figure['title']}]({name})", file=page)
    for path in sorted((ROOT / "benchmarks/results").glob("*.json")):
        print(f"\n## Benchmark: {path.stem}\n", file=page)
        write(page, json.loads(path.read_text(encoding="utf-8")))

with mkdocs_gen_files.open("figures/editing.png", "wb") as picture:
    picture.write(runpy.run_path(str(ROOT / "docs/editing_grid.py"))["grid"]())
