"""How long `withstand --help` and `withstand list` take, against the bare import of what they are made with."""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

RUNS = 15
BARE = [sys.executable, "-c", "import typer, rich"]
OURS = [sys.executable, "-c", "import sys; sys.argv[0] = 'withstand'; from withstand.cli.main import run; run()"]


def seconds(commands: dict[str, list[str]]) -> dict[str, float]:
    """The median time of each command; they take turns, so that a busy moment hits all of them."""
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(RUNS):
        for name, command in commands.items():
            started = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(found) for name, found in times.items()}


def main() -> None:
    found = seconds({"bare": BARE, "help": [*OURS, "--help"], "list": [*OURS, "list", "systems"]})
    result = {**{k: round(v, 4) for k, v in found.items()}, "help_ratio": round(found["help"] / found["bare"], 2)}
    path = Path(__file__).parent / "results" / "startup.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(
        f"import typer, rich {found['bare']:.3f} s; withstand --help {found['help']:.3f} s "
        f"({result['help_ratio']}x, allowed 3x); withstand list systems {found['list']:.3f} s"
    )


if __name__ == "__main__":
    main()
