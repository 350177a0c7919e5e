import io
from xml.etree import ElementTree

import pytest
from rich.console import Console

from withstand.audit.scorecard import CheckResult, Scorecard
from withstand.protocols import Flag, Metric
from withstand.report import junit, markdown, model_index, terminal


def shown(card, width=200):
    console = Console(width=width, record=True, file=io.StringIO(), color_system=None)
    console.print(terminal(card))
    return console.export_text()


def test_the_terminal_shows_numbers_verdicts_flags_and_what_did_not_run(run):
    card, _ = run
    text = " ".join(shown(card).split())
    assert "87.0% 84.8–88.9% best" in text
    assert "1,000" in text
    assert all(" ".join(sentence.split()) in text for sentence in card["verdict"].values())
    assert "✕ 1 fail, ! 1 warn, ✓ 5 pass" in text
    assert "✕ Zero gradients: For 23.4%" in text
    assert "Deterministic" not in text
    assert "skipped: Transfer from a second model" in text
    assert "31 gained, 171 lost" in text


def test_the_terminal_takes_no_markup_from_names():
    card = Scorecard("[red]run[/red]", models={"[bold]m": {}}, results=[
        CheckResult("[bold]m", "c", "C", "c()", metrics=[Metric("m", 0.5)])]).to_json()  # fmt: skip
    text = shown(card)
    assert "[red]run[/red]" in text
    assert "[bold]m" in text


def test_an_incomplete_run_says_so_everywhere(run):
    card = {**run[0], "complete": False}
    assert "not complete" in shown(card)
    assert "not complete" in markdown(card)
    assert "not complete" not in markdown(run[0])


def test_markdown_tables_have_equal_columns_and_escape_what_would_break_them(run):
    card = Scorecard("r", models={"a|b": {}, "<i>": {}}, results=[
        CheckResult("a|b", "c", "C", "c()", metrics=[Metric("m", 0.5, 0.4, 0.6, n=10)])]).to_json()  # fmt: skip
    table = [line for line in markdown(card).splitlines() if line.startswith("|")]
    assert table[0] == r"| Measure | a\|b | \<i\> | n |"
    assert table[2] == "| M | 50.0% (40.0–60.0%) | — | 10 |"
    for line in markdown(run[0]).splitlines():
        if line.startswith("|"):
            assert line.endswith("|")
    first = [line for line in markdown(run[0]).split("\n\n")[1].splitlines() if line.startswith("|")]
    assert {line.count("|") for line in first} == {5}


def test_junit_has_a_case_for_each_requirement_flag_and_check(run):
    card, _ = run
    root = ElementTree.fromstring(
        junit(card, {"robust_accuracy@linf:8/255=0.30": "it is 9.1%", "clean_accuracy=0.5": ""})
    )
    suites = {s.get("name"): s for s in root}
    wanted = suites["requirements"]
    assert (wanted.get("tests"), wanted.get("failures")) == ("2", "1")
    assert wanted[0].find("failure").get("message") == "it is 9.1%"
    assert len(wanted[1]) == 0
    second = suites[list(card["models"])[1]]
    assert (second.get("failures"), second.get("errors"), second.get("skipped")) == ("1", "1", "1")
    cases = {c.get("name"): [child.tag for child in c] for c in second}
    assert cases["zero_gradients"] == ["failure"]
    assert cases["transfer_stronger"] == ["system-out"]
    assert cases["deterministic"] == []
    assert cases["transfer"] == ["skipped"]
    assert cases["min_distance"] == ["error"]
    assert len(cases) == int(second.get("tests"))


def test_junit_is_xml_whatever_the_text():
    nasty = 'a <b> & "c" \x00\x1b[31m]]>'
    card = Scorecard(nasty, models={nasty: {}}, results=[
        CheckResult(nasty, "c", "C", "c()", flags=[Flag(nasty, "fail", nasty, nasty)])]).to_json()  # fmt: skip
    root = ElementTree.fromstring(junit(card, {nasty: nasty}))
    assert root.get("name") == 'a <b> & "c" \N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}[31m]]>'


def test_model_index_is_yaml_of_the_headline_metrics(run):
    yaml = pytest.importorskip("yaml")
    card, _ = run
    models = yaml.safe_load(model_index(card))["model-index"]
    assert [m["name"] for m in models] == list(card["models"])
    (result,) = models[0]["results"]
    assert result["dataset"]["name"] == "cifar10"
    metrics = {(m["type"], m["name"]): m for m in result["metrics"]}
    clean = metrics["accuracy", "Accuracy on clean data"]
    assert clean["value"] == card["results"][0]["metrics"][0]["value"]
    assert clean["args"]["n"] == 1000
    assert metrics["robust_accuracy", "Accuracy under attack (Linf 8/255)"]["args"]["eps"] == pytest.approx(8 / 255)


def test_model_index_leaves_out_what_is_not_there():
    yaml = pytest.importorskip("yaml")
    assert yaml.safe_load(model_index(Scorecard("r").to_json())) == {"model-index": []}
    metrics = [Metric("nll", float("nan")), Metric("clean_accuracy", 0.5)]
    name = 'odd: "name" # \N{SNOWMAN}'
    card = Scorecard("r", models={name: {}, "b": {}}, results=[CheckResult(name, "c", "C", "c()", metrics=metrics)])
    first, second = yaml.safe_load(model_index(card.to_json()))["model-index"]
    assert first["name"] == name
    assert [m["type"] for m in first["results"][0]["metrics"]] == ["accuracy"]
    assert second == {"name": "b", "results": []}


def test_the_hub_reads_the_model_index(run):
    cards = pytest.importorskip("huggingface_hub.repocard_data")
    yaml = pytest.importorskip("yaml")
    index = yaml.safe_load(model_index(run[0]))["model-index"]
    name, results = cards.model_index_to_eval_results(index[:1])
    assert name == "cnn-a"
    assert {r.metric_type for r in results} >= {"accuracy", "robust_accuracy", "auroc"}
    assert all(r.dataset_name == "cifar10" for r in results)


def test_tables_of_an_empty_card_are_made():
    card = Scorecard("r").to_json()
    assert "Measure" in shown(card)
    assert "| Measure | n |" in markdown(card)
    assert ElementTree.fromstring(junit(card, {})).tag == "testsuites"


def test_comparisons_that_leave_zero_open_are_counted_in_one_line(run):
    card, _ = run
    clear = card["comparisons"][0]
    unclear = clear | {"low": -0.01, "high": 0.02, "gained": [7], "lost": [8, 9]}
    text = " ".join(shown({**card, "comparisons": [clear, unclear, unclear]}).split())
    assert "2 other comparisons without a clear difference" in text
    assert "1 gained, 2 lost" not in text
    assert "without a clear difference" not in " ".join(shown({**card, "comparisons": [clear]}).split())
