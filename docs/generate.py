"""The pages that are made from the code and from recorded results, so that they cannot go stale."""

import json
from pathlib import Path

import mkdocs_gen_files

from withstand.registry import KINDS, entries
from withstand.systems import systems

ROOT = Path(__file__).parent.parent

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
        print(f"\n## {path.stem}\n\n| claim | verdict | difference | interval |\n|---|---|---|---|", file=page)
        for claim in record.get("claims", []):
            low, high = claim.get("low"), claim.get("high")
            print(
                f"| {claim['statement']} | {claim['verdict']} | {claim.get('difference')} | {low} to {high} |",
                file=page,
            )
    for path in sorted((ROOT / "benchmarks/results").glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        rows = record.get("rows") or []
        print(f"\n## Benchmark: {path.stem}\n\n{record.get('about', '')}\n", file=page)
        if rows:
            columns = list(rows[0])
            print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns), file=page)
            for row in rows:
                print("| " + " | ".join(str(row.get(c)) for c in columns) + " |", file=page)
