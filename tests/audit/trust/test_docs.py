"""docs/trust.md says what the code says. To write it anew after a change: python tests/audit/trust/test_docs.py"""

import sys
from pathlib import Path

PAGE = Path(__file__).parents[3] / "docs" / "trust.md"
START, END = "<!-- indicators: made by withstand.audit.trust.described -->\n", "<!-- end -->"


def test_the_page_describes_every_indicator_as_it_is():
    from withstand.audit.trust import described

    written = PAGE.read_text(encoding="utf-8").split(START)[1].split(END)[0]
    assert written.strip() == described().strip(), "stale: run python tests/audit/trust/test_docs.py"


def test_every_indicator_explains_itself():
    from withstand.audit.trust import indicators

    assert len(indicators()) >= 14
    for name, indicator in indicators().items():
        for text in (indicator.meaning, indicator.measured, indicator.threshold, indicator.advice):
            assert text.endswith("."), name


def main() -> None:
    sys.path.insert(0, str(PAGE.parents[1] / "src"))
    from withstand.audit.trust import described

    before, rest = PAGE.read_text(encoding="utf-8").split(START)
    PAGE.write_text(f"{before}{START}\n{described()}\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
