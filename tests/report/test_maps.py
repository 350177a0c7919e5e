from pathlib import Path

from PIL import Image

from tests.report import sample
from withstand.protocols import Figure
from withstand.report import render
from withstand.report.maps import maps


def png(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise((8, 8), 50).save(path)
    return path.name


def items(folder: Path, model: str, ids) -> dict:
    return {
        "items": [
            {"id": k, "label": "three", "prediction": "three" if k else "<eight>", "image": png(folder / f"{k}.png"),
             "map": png(folder / f"{model}{k}.png")}
            for k in ids
        ]
    }  # fmt: skip


def test_each_example_stands_once_with_the_maps_of_all_models(tmp_path):
    found = maps([("a", items(tmp_path, "a", (4, 0))), ("b", items(tmp_path, "b", (0, 4, 7)))], tmp_path)
    assert [one.id for one in found] == [4, 0, 7]
    assert [[m for m, _, _ in one.maps] for one in found] == [["a", "b"], ["a", "b"], ["b"]]
    assert all(one.image and one.maps[0][1] for one in found)
    assert found[1].maps[0][2] == "<eight>"


def test_the_page_stays_below_its_budget(tmp_path):
    data = [("a", items(tmp_path, "a", range(6)))]
    size = len(maps(data, tmp_path)[0].image.uri)
    assert len(maps(data, tmp_path, budget=5 * size)) < 6
    assert len(maps(data, tmp_path, budget=1)) == 1


def test_missing_images_are_said(tmp_path):
    data = items(tmp_path, "a", (1,))
    (tmp_path / data["items"][0]["map"]).unlink()
    ((_, drawn, _),) = maps([("a", data)], tmp_path)[0].maps
    assert drawn is None


def test_the_page_shows_them_side_by_side(tmp_path):
    card = sample.card(tmp_path, 2, shots=1)
    first, second = sample.NAMES[:2]
    for model in (first, second):
        result = next(r for r in card["results"] if r["model"] == model)
        figure = Figure("maps", "Input gradients", items(tmp_path, model[:5] + model[-3:], (0, 1)), "Red and blue.")
        result["figures"].append({"kind": figure.kind, "title": figure.title, "data": figure.data, "caption": "Red."})
    text = render(card, tmp_path)
    part = text.split("Input gradients</h3>")[1].split("</ul>\n  </div>")[0]
    assert part.count("<img ") == 2 * 3
    assert part.count("truly three") == 2
    assert part.count("✕ &lt;eight&gt;") == 2
    assert part.count("✓ three") == 2
