import base64
from pathlib import Path

from PIL import Image

from withstand.report.gallery import embed, gallery


def item(number: int, label: str = "cat", said: str = "dog", **changes):
    return {"id": number, "label": label, "clean_prediction": "cat", "adversarial_prediction": said,
            "clean_confidence": 0.9, "adversarial_confidence": 0.8, "distance": 1 / 255, "condition": {"eps": 2 / 255},
            **changes}  # fmt: skip


def png(path: Path, width: int = 8, height: int = 6) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), "red").save(path)
    return path.name


def test_the_worst_come_first():
    items = [
        item(1, said="cat", adversarial_confidence=0.9),
        item(2, adversarial_confidence=0.5),
        item(3, said="cat", adversarial_confidence=0.4),
        item(4, adversarial_confidence=0.9, distance=2 / 255),
        item(5, adversarial_confidence=0.9, distance=1 / 255),
    ]
    shots, left = gallery({"items": items}, None)
    assert [s.id for s in shots] == [5, 4, 2, 3, 1]
    assert [s.fooled for s in shots] == [True, True, True, False, False]
    assert left == 0


def test_an_image_is_embedded_whole_with_its_size(tmp_path):
    name = png(tmp_path / "a.png", 8, 6)
    image = embed(tmp_path, name, "clean")
    assert image is not None
    assert (image.width, image.height, image.tiny) == (8, 6, True)
    assert base64.b64decode(image.uri.removeprefix("data:image/png;base64,")) == (tmp_path / name).read_bytes()
    large = embed(tmp_path, png(tmp_path / "b.png", 224, 224), "clean")
    assert large is not None
    assert not large.tiny


def test_what_is_missing_no_png_or_outside_of_the_run_is_not_embedded(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    png(tmp_path / "secret.png")
    (run / "text.png").write_text("not an image")
    (run / "link.png").symlink_to(tmp_path / "secret.png")
    for name in ("gone.png", "text.png", "../secret.png", str(tmp_path / "secret.png"), "link.png", "", None, 3):
        assert embed(run, name, "clean") is None
    assert embed(None, "text.png", "clean") is None


def test_examples_beyond_the_budget_are_left_out_and_counted(tmp_path):
    names = [png(tmp_path / f"{k}.png") for k in range(5)]
    items = [item(k, adversarial_confidence=0.9 - 0.1 * k, clean=name) for k, name in enumerate(names)]
    one = embed(tmp_path, names[0], "clean")
    assert one is not None
    shots, left = gallery({"items": items}, tmp_path, budget=3 * len(one.uri))
    assert [s.id for s in shots] == [0, 1, 2]
    assert left == 2


def test_an_example_is_told_in_words():
    shot = gallery({"items": [item(17)]}, None)[0][0]
    assert shot.said == "Example 17: truly cat, predicted cat (90.0%) when clean, dog (80.0%) when attacked; eps 2/255"
    assert shot.distance == "1/255"


def test_edits_are_called_edits(tmp_path):
    items = [item(17, adversarial=png(tmp_path / "a.png"), condition={"edit": "0.05"}, distance=None)]
    shot = gallery({"items": items, "after": "edited"}, tmp_path)[0][0]
    assert shot.said == "Example 17: truly cat, predicted cat (90.0%) when clean, dog (80.0%) when edited; 0.05"
    assert [i.name for i in shot.images] == ["edited"]


def test_sparse_items_are_shown_with_what_they_have():
    shots, _ = gallery({"items": [{"id": 1, "label": 3, "adversarial_prediction": 3, "condition": "as given"}]}, None)
    assert (shots[0].fooled, shots[0].before, shots[0].distance) == (False, "—", "")
    assert shots[0].condition == "as given"
