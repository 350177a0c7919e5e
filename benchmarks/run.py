"""`make bench`: every benchmark of this folder, one after another; each prints its ratios and records results/NAME.json."""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
PARTS = ("pretrained", "peers_autoattack", "run")
"""What the benchmarks share, and what takes hours."""


def main() -> None:
    failed = []
    for path in sorted(HERE.glob("*.py")):
        if path.stem not in PARTS:
            print(f"== {path.stem}", flush=True)
            if subprocess.run([sys.executable, str(path)]).returncode:
                failed.append(path.stem)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
