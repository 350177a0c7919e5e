"""The documentation's Python examples run, page by page, in the order in which a reader meets them."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```python\n(.*?)^```", re.S | re.M)
PAGES = sorted(p for p in (ROOT / "docs").glob("*.md") if BLOCK.search(p.read_text(encoding="utf-8")))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_examples_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = page.read_text(encoding="utf-8")
    space: dict[str, object] = {"__name__": "__docs__"}
    for match in BLOCK.finditer(source):
        line = source[: match.start()].count("\n") + 1
        try:
            exec(compile("\n" * line + match.group(1), str(page), "exec"), space)
        except Exception as error:
            raise AssertionError(f"{page.name}:{line}: {type(error).__name__}: {error}") from error
    assert len(space) > 1
