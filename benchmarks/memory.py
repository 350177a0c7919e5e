"""Peak memory of an audit of 1,000 and of 10,000 images, beyond what the process holds before it begins.

The images are made on the fly, so that what grows is the audit's: its rows, and whatever else it should not keep.
"""

import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

SIZES = (1_000, 10_000)
CHECKS = ("clean", "robust(attack=pgd(steps=2))", "curve(attack=pgd(steps=1))", "corruptions(severities=(1,))")


def audit(images: int) -> dict[str, float]:
    """Audit that many 32x32 RGB images in this process; in MiB."""
    import hashlib
    from collections.abc import Sequence

    import torch

    import withstand as ws
    from withstand.audit.store import read_rows
    from withstand.protocols import Batch, Space

    class Noise:
        """Smooth noise, image by image from its number; the label is its brightest channel."""

        name, space, classes = "noise", Space((3, 32, 32), (0.0, 1.0), 3), ("red", "green", "blue")

        def __len__(self) -> int:
            return images

        def batch(self, positions: Sequence[int]) -> Batch:
            ids = torch.as_tensor(positions)
            x = ws.Rows(0, ids).uniform((3, 4, 4), "pixels").repeat_interleave(8, 2).repeat_interleave(8, 3)
            return Batch(x, x.mean((2, 3)).argmax(1), ids)

        def fingerprint(self) -> str:
            return hashlib.sha256(str(images).encode()).hexdigest()

    class Brightest(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 20 * x.mean((2, 3))

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        ws.audit(Brightest(), Noise(), checks=["clean(examples=128)"], out=f"{folder}/warm")  # imports everything
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        ws.audit({"one": Brightest(), "two": Brightest()}, Noise(), checks=CHECKS, out=f"{folder}/run")
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        tables = [read_rows(p)[0].table for p in Path(f"{folder}/run/rows").glob("*/*")]
    return {
        "images": images,
        "rows": sum(t.num_rows for t in tables),
        "rows_mib": round(sum(t.nbytes for t in tables) / 2**20, 2),
        "before_mib": round(before, 1),
        "peak_mib": round(after, 1),
    }


def main() -> None:
    found = []
    for images in SIZES:
        done = subprocess.run([sys.executable, __file__, str(images)], check=True, stdout=subprocess.PIPE, text=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
        print(found[-1])
    few, many = found
    growth, rows = many["peak_mib"] - few["peak_mib"], many["rows_mib"] - few["rows_mib"]
    per_row = growth * 2**20 / (many["rows"] - few["rows"])
    result = {
        "runs": found,
        "growth_mib": round(growth, 1),
        "rows_growth_mib": round(rows, 1),
        "bytes_per_row": round(per_row),
    }
    path = Path(__file__).parent / "results" / "memory.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(
        f"10x the images: {growth:+.1f} MiB at the peak, of which the rows are {rows:.1f} MiB; {per_row:.0f} bytes a row"
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(audit(int(sys.argv[1]))))
    else:
        main()
