"""The page as a document: complete, well nested, self-contained, honest about what is missing."""

import copy
import itertools
import re
from html.parser import HTMLParser
from types import ModuleType

import pytest

from withstand.audit.scorecard import CheckResult, Comparison, Scorecard
from withstand.protocols import Figure, Flag, Metric
from withstand.report import render, write

VOID = {"meta", "link", "br", "img", "input", "hr"}
HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")


class Document(HTMLParser):
    """Elements in order as (tag, attributes), visible text, and faults in the nesting."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.faults: list[str] = []
        self.text: list[str] = []
        self.inside: dict[str, list[str]] = {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
            self.inside.setdefault(tag, []).append("")

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if not self.open or self.open[-1] != tag:
            self.faults.append(f"</{tag}> at {self.getpos()} inside {self.open[-1:]}")
        else:
            self.open.pop()

    def handle_data(self, data):
        for tag in self.open:
            self.inside[tag][-1] += data
        if not {"script", "style"} & set(self.open):
            self.text.append(data)

    @property
    def said(self) -> str:
        return " ".join("".join(self.text).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def page(run) -> Document:
    return Document(render(*run))


def empty(**changes) -> dict:
    return Scorecard(run="nothing yet", **changes).to_json()


def one_check(*metrics: Metric, model: str = "a", figures: list[Figure] | None = None, **changes) -> dict:
    result = CheckResult(model, "clean", "Clean accuracy", "clean()", metrics=list(metrics), figures=figures or [])
    return Scorecard(run="one", models={model: {}}, results=[result], **changes).to_json()


def test_the_page_is_well_nested_and_its_ids_are_unique(page):
    assert page.faults == []
    assert page.open == []
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    for _, attributes in page.elements:
        for reference in (attributes.get("aria-labelledby") or "").split():
            assert reference in ids
        target = attributes.get("href") or ""
        assert not target.startswith("#") or target[1:] in ids


def test_the_page_loads_nothing_from_anywhere(run):
    text = render(*run)
    document = Document(text)
    for tag, attributes in document.elements:
        for name in ("src", "srcset", "action", "data", "poster", "xlink:href", "background"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, name)
        if tag == "link":
            assert attributes["href"] == "data:,"
    for style in document.inside["style"]:
        assert not re.search(r"@import|url\(|https?://", style)
    for script in document.inside["script"]:
        assert not re.search(r"https?://|fetch\(|XMLHttpRequest|import\(|\bimport\b", script)
    assert "http://" not in text
    assert "https://" not in text
    policy = next(a["content"] for a in document.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy


def test_headings_do_not_skip_a_level_and_there_is_one_first(page):
    levels = [HEADINGS.index(tag) + 1 for tag, _ in page.elements if tag in HEADINGS]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))


def test_landmarks_and_a_way_past_them_are_there(page):
    tags = [tag for tag, _ in page.elements]
    assert {"header", "nav", "main", "footer"} <= set(tags)
    first = page.all("a")[0]
    assert first["class"] == "skip"
    assert first["href"] == "#main"
    assert page.all("html")[0]["lang"] == "en"


def test_pictures_and_images_have_words(page):
    for svg in page.all("svg"):
        assert svg.get("aria-hidden") == "true" or (svg["role"] == "img" and svg["aria-labelledby"])
    assert all("alt" in image for image in page.all("img"))
    assert all(th.get("scope") for th in page.all("th"))


def test_every_model_has_its_verdict_and_its_count_of_flags(run, page):
    card, _ = run
    for sentence in card["verdict"].values():
        assert sentence in page.said
    assert "1 fail" in page.said
    assert "1 warn" in page.said
    assert "5 pass" in page.said


def test_numbers_come_with_interval_and_n(run, page):
    card, _ = run
    metric = card["results"][0]["metrics"][0]
    assert f"{100 * metric['value']:.1f}%" in page.said
    assert f"{100 * metric['low']:.1f}–{100 * metric['high']:.1f}%" in page.said
    assert "n 1,000" in page.said
    assert "Accuracy on clean data" in page.said
    assert "clean_accuracy" in page.said
    assert "wilson" in page.said


def test_flags_show_explanation_advice_and_evidence_with_failures_first(run, page):
    card, _ = run
    for result in card["results"]:
        for flag in result["flags"]:
            assert flag["explanation"] in page.said
            assert flag["advice"] in page.said
    assert page.said.index("Zero gradients") < page.said.index("Transfer stronger")
    assert "white box success 0.583" in page.said
    assert "eps 1/255" in page.said


def test_comparisons_show_difference_interval_test_and_examples(run, page):
    first = run[0]["comparisons"][0]
    assert f"−{abs(100 * first['difference']):.1f} points" in page.said
    assert "p < 0.001" in page.said
    assert f"{len(first['gained'])} gained, {len(first['lost'])} lost" in page.said
    assert "▼ worse" in page.said
    assert "▲ better" in page.said


def test_better_means_lower_where_lower_is_better():
    metric = Metric("ece", 0.1, 0.05, 0.15, "bootstrap", 100, "share", "lower")
    change = Comparison("ece", "clean", "a", "b", -0.05, -0.08, -0.02, 0.01, 100)
    card = one_check(metric, comparisons=[change])
    assert "▲ better" in Document(render(card, "")).said
    card["comparisons"][0] |= {"low": -0.08, "high": 0.01}
    assert "≈ no clear change" in Document(render(card, "")).said


def test_of_many_comparisons_of_a_check_those_without_a_clear_change_are_folded():
    def change(check, k, clear):
        return Comparison(
            "withstood", check, "a", "b", 0.1, 0.05 if clear else -0.05, 0.2, 0.01, 9, condition={"eps": k}
        )

    changes = [change("many", k, clear=k == 1) for k in range(1, 7)] + [change("clean", 9, clear=False)]
    text = render(one_check(Metric("clean_accuracy", 0.5), comparisons=changes), "")
    shown, folded = text.split("5 comparisons without a clear change")
    assert [f"<small>eps {k}</small>" in shown for k in (1, 2, 9)] == [True, False, True]
    assert [f"<small>eps {k}</small>" in folded for k in (1, 2, 6, 9)] == [False, True, True, False]
    assert "Clean accuracy</span><small>eps 9" in shown


def test_checks_that_did_not_run_say_why_once_for_all_models(page):
    assert page.said.count("needs surrogate") == 1
    assert "out of memory at a block of one example" in page.said


def test_cost_command_versions_and_fingerprints_are_told(run, page):
    card, _ = run
    assert "512,400" in page.said
    assert "7 min" in page.said
    assert card["command"] in page.said
    for text in (*card["versions"].values(), card["git"]["commit"], card["data"]["fingerprint"]):
        assert text in page.said
    assert "1,146,026" in page.said


def test_links_to_raw_data_are_relative_to_where_the_page_lies(run, tmp_path):
    card, folder = run
    links = [a["href"] for a in Document(render(card, folder)).all("a")]
    assert {"scorecard.json", "rows", "rows/robust.parquet"} <= set(links)
    elsewhere = write(card, folder, tmp_path / "sub folder" / "report.html")
    links = [a["href"] for a in Document(elsewhere.read_text(encoding="utf-8")).all("a") if "scorecard" in a["href"]]
    assert len(links) == 1
    assert (elsewhere.parent / links[0]).resolve() == (folder / "scorecard.json").resolve()


def test_a_run_that_is_not_complete_says_so_first(run):
    card = {**run[0], "complete": False}
    said = Document(render(card, run[1])).said
    assert said.index("not complete") < said.index(card["run"], said.index("Skip to"))
    assert "not complete" not in Document(render(*run)).said


@pytest.mark.parametrize("nasty", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{ 7 * 7 }}&amp;"])
def test_text_from_outside_is_never_markup(sample: ModuleType, nasty):
    def poison(value, key=""):
        if isinstance(value, dict):
            return {
                (poison(k) if key in ("evidence", "versions", "git") else k): poison(v, k) for k, v in value.items()
            }
        if isinstance(value, list):
            return [poison(v, key) for v in value]
        plain = {"kind", "status", "level", "better", "unit"}
        return value + nasty if isinstance(value, str) and value and key not in plain else value

    clean = sample.card(models=2, shots=3)
    card = poison(clean)
    card["models"] = {name + nasty: facts for name, facts in card["models"].items()}
    card["verdict"] = {name + nasty: text for name, text in card["verdict"].items()}
    dirty, honest = Document(render(card, "")), Document(render(clean, ""))
    assert dirty.faults == []
    drawn = {"text", "line", "path", "g"}  # longer names wrap, and leave less room for ticks
    assert [t for t, _ in dirty.elements if t not in drawn] == [t for t, _ in honest.elements if t not in drawn]
    assert {n for _, a in dirty.elements for n in a} == {n for _, a in honest.elements for n in a}
    assert dirty.said.count(nasty) > 50


@pytest.mark.parametrize("models", [1, 2, 5, 9])
def test_any_number_of_models_makes_a_sound_page(sample, models):
    card = sample.card(models=models, shots=2)
    document = Document(render(card, ""))
    assert document.faults == []
    ids = [a["id"] for _, a in document.elements if "id" in a]
    assert len(ids) == len(set(ids))
    for name in card["models"]:
        assert name in document.said
    assert ("What changed" in document.said) == (models > 1)


def test_curves_of_all_models_are_one_picture_and_heat_maps_one_for_each(sample):
    pictures = [
        a["id"] for a in Document(render(sample.card(models=3, shots=0), "")).all("svg") if a.get("role") == "img"
    ]
    wide = [name for name in pictures if name.endswith("w")]
    assert len(wide) == len(pictures) / 2
    assert len(wide) == 1 + 1 + 1 + 3  # security curve, bars, queries; heat maps


def test_an_empty_scorecard_makes_a_page_that_says_so():
    document = Document(render(empty(), ""))
    assert document.faults == []
    assert "no model yet" in document.said
    assert "No check has numbers yet" in document.said
    assert "No command is recorded" in document.said


def test_a_model_without_verdict_or_flags_is_told_to_have_none():
    document = Document(render(one_check(Metric("clean_accuracy", 0.5)), ""))
    assert "There is no verdict" in document.said
    assert "No trust indicator ran" in document.said
    assert "no interval" in document.said


def test_numbers_that_are_not_finite_are_dashes():
    metric = Metric("nll", float("inf"), float("nan"), None, "bootstrap", 10, "nats", "lower")
    assert "inf" not in Document(render(one_check(metric), "")).said.replace("information", "")


def test_missing_images_leave_their_words(sample):
    document = Document(render(sample.card(models=1, shots=4), ""))
    assert document.said.count("image not found") == 4
    assert document.said.count("truly") == 4


def test_figures_of_an_unknown_kind_are_named_instead_of_drawn():
    figure = Figure("hologram", "A new figure", {"anything": 1})
    assert "Figures of kind 'hologram' are not drawn" in Document(render(one_check(figures=[figure]), "")).said


def test_tables_of_several_models_are_joined_and_of_other_columns_kept_apart():
    def result(model, columns):
        figure = Figure("table", "Detectors", {"columns": columns, "rows": [["kNN", 0.5]]})
        return CheckResult(model, "ood", "Unfamiliar", "ood()", figures=[figure])

    def tables(*columns):
        results = [result(f"m{k}", c) for k, c in enumerate(columns)]
        card = Scorecard(run="r", models={"m0": {}, "m1": {}}, results=results).to_json()
        return render(card, "").count('>Model</th><th scope="col">Detector</th>')

    assert tables(["Detector", "AUROC"], ["Detector", "AUROC"]) == 1
    assert tables(["Detector", "AUROC"], ["Detector", "AUPR"]) == 2


def test_a_huge_card_stays_readable(sample):
    metrics = [Metric("corruption_accuracy", k / 2000, 0.0, 1.0, "wilson", 10, condition={"kind": f"kind {k}"})
               for k in range(2000)]  # fmt: skip
    values = [[k / 1000] * 50 for k in range(1000)]
    heat = {
        "row_label": "r",
        "column_label": "c",
        "rows": list(range(1000)),
        "columns": list(range(50)),
        "values": values,
    }
    bars = {"labels": list(range(1000)), "y_label": "y", "series": [{"name": "s", "values": [0.5] * 1000}]}
    curve = {"x_label": "x", "y_label": "y", "x": list(range(5000)), "series": [{"name": "s", "y": [0.5] * 5000}]}
    figures = [Figure("heatmap", "H", heat), Figure("bars", "B", bars), Figure("curve", "C", curve)]
    flags = [Flag(f"flag_{k}", "pass", "Fine.") for k in range(200)]
    card = one_check(*metrics, figures=figures)
    card["results"][0]["flags"] = [vars(f) for f in flags]
    card["comparisons"] = [
        vars(Comparison("corruption_accuracy", "clean", "a", "a", 0.1, 0.0, 0.2, 0.5, 9, list(range(10_000)), []))
    ]
    text = render(card, "")
    said = Document(text).said
    assert len(text) < 3_000_000
    assert "The other 1600 are in scorecard.json" in said
    assert "9,940 more, in scorecard.json" in said
    assert "the worst of 2000" in said


def test_a_report_with_sixty_small_examples_stays_below_a_megabyte(sample, tmp_path):
    card = sample.card(tmp_path, models=2, shots=30)
    path = write(card, tmp_path, tmp_path / "report.html")
    images = [a["src"] for a in Document(path.read_text(encoding="utf-8")).all("img")]
    assert len(images) == 60 * 3
    assert all(source.startswith("data:image/png;base64,") for source in images)
    assert path.stat().st_size < 1_000_000


def test_writing_leaves_the_old_page_when_it_fails_and_nothing_half_done(run, tmp_path, monkeypatch):
    card, folder = run
    path = write(card, folder, tmp_path / "report.html")
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("withstand.report.page.os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        write({**card, "run": "another"}, folder, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_rendering_leaves_the_card_as_it_was_and_is_repeatable(run):
    card, folder = run
    kept = copy.deepcopy(card)
    assert render(card, folder) == render(card, folder)
    assert card == kept


def test_a_scorecard_writes_its_page_itself(run):
    card, folder = run
    path = Scorecard.from_json(card, folder).to_html()
    assert path == folder / "report.html"
    assert card["run"] in path.read_text(encoding="utf-8")


def test_captions_that_differ_say_whose_they_are():
    def card(*captions):
        data = {"x_label": "x", "y_label": "y", "x": [0, 1], "series": [{"name": "s", "y": [0.1, 0.2]}]}
        results = [
            CheckResult(name, "c", "C", "c()", figures=[Figure("curve", "F", data, caption)])
            for name, caption in zip("ab", captions)
        ]
        return render(Scorecard("r", models={"a": {}, "b": {}}, results=results).to_json(), "")

    apart, alike = card("Of 7 images.", "Of 9 images."), card("Of 7 images.", "Of 7 images.")
    assert "a: Of 7 images." in apart
    assert "b: Of 9 images." in apart
    assert alike.count("Of 7 images.") == 1
    assert "a: Of 7" not in alike
