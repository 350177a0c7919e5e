"""Components: read, written, refused."""

import subprocess
import sys

import pytest

import withstand as ws
from withstand.attacks import PGD
from withstand.errors import BadInput
from withstand.registry import component, entries, find, from_json, parse, replace, to_json


def test_calls_and_flat_forms_build_the_same_value():
    expected = PGD(ws.L2(0.5), steps=5)
    assert parse("pgd(l2(0.5), steps=5)") == expected
    assert parse("pgd:threat=l2(0.5),steps=5") == expected
    assert parse("pgd:steps=5,threat=l2,eps=0.5") == expected
    assert parse("pgd") == PGD()
    assert repr(expected) == "pgd(l2(0.5), steps=5)"


def test_sugar_reaches_the_component_that_has_the_key():
    assert parse("pgd:eps=2/255").threat == ws.Linf(2 / 255)
    with pytest.raises(BadInput, match=r"epss.*eps"):
        parse("pgd:epss=2/255")


def test_text_is_accepted_where_a_component_is_expected():
    assert PGD("l1:eps=12", objective="dlr") == PGD(ws.L1(12), objective=parse("dlr"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pdg(linf(0.1))", "pgd"),
        ("pgd(linf(0.1), step=)", "cannot read"),
        ("pgd(steps=__import__('os').getcwd())", "registered name"),
        ("pgd(steps=open)", "valid integer"),
        ("pgd(steps=[x for x in (1,)])", "number"),
        ("3 + 4", "call"),
        ("linf(1)", "linf"),
    ],
)
def test_what_cannot_be_read_is_refused_without_running_it(text, said):
    with pytest.raises(BadInput, match=said):
        parse(text, kind="attack")


def test_unknown_arguments_name_the_nearest():
    with pytest.raises(BadInput, match="Did you mean step"):
        PGD(stepz=3)  # type: ignore[call-arg]
    with pytest.raises(BadInput, match="Did you mean step"):
        replace(PGD(), stepz=3)


def test_what_belongs_to_a_held_component_is_told_so():
    with pytest.raises(BadInput, match=r"eps belongs to its threat: write pgd\(threat=linf\(eps=...\)\) or pgd:eps="):
        parse("pgd(eps=0.1)")


def test_components_are_frozen_comparable_and_hashable_by_text():
    with pytest.raises(AttributeError):
        PGD().steps = 3  # type: ignore[misc]
    assert PGD() == PGD()
    assert PGD() != PGD(steps=11)


def test_json_round_trip_and_live_objects():
    import torch

    made = PGD(ws.L2(0.5), steps=7, objective="margin(kappa=0.25)")
    assert from_json(to_json(made)) == made
    masked = to_json(ws.Masked(ws.Linf(0.1), torch.ones(2, 2)))
    assert masked["mask"].startswith("live:Tensor:")
    with pytest.raises(BadInput, match="give it again"):
        from_json(masked)


def test_a_user_registers_in_one_line():
    @component("objective", "test_only_energy")
    class Energy:
        """Minus log-sum-exp."""

        temperature: float = 1.0

        def __call__(self, seen, y, state):
            return -seen.logits.logsumexp(1)

    assert find("test_only_energy", "objective").summary == "Minus log-sum-exp."
    assert parse("test_only_energy:temperature=2") == Energy(2.0)


def test_names_are_unique_within_a_kind_and_across_kinds():
    for names in ([e.name for e in entries() if e.kind != "check"], [e.name for e in entries("check")]):
        assert len(names) == len(set(names))


def test_what_is_held_is_no_check_of_the_same_name():
    assert find("knn").kind == "detector"
    assert find("knn", "check").kind == "check"
    assert parse("detection(detectors=[knn])", "check").detectors == (parse("knn", "detector"),)
    assert parse("detection(detectors=[knn(k=3)])", "check").detectors == (parse("knn(k=3)", "detector"),)


def test_listing_imports_neither_torch_nor_pydantic():
    code = (
        "import sys; from withstand.registry import entries; assert any(e.name == 'pgd' for e in entries('attack'));"
        "assert not {'torch', 'pydantic'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": "src"}, timeout=60)


def test_every_component_has_a_summary_and_can_be_loaded():
    for entry in entries():
        assert entry.summary, entry
        assert entry.load().component_name == entry.name
