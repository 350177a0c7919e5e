"""Queries with what a search found, on the page."""

import numpy as np
from PIL import Image

from withstand.report.lists import lists


def picture(folder, name):
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(folder / name)
    return name


def figure(folder, items=2, unit="bits"):
    near = [{"id": 7, "label": "cat", "relevant": True, "distance": 3.0, "image": picture(folder, "i.png")}]
    near.append({"id": 8, "label": "dog", "relevant": False, "distance": 4.0})
    item = {"id": 1, "label": "cat", "condition": {"attack": "pgd", "threat": "linf", "eps": 0.1}, "distance": 0.1}
    item |= {when: picture(folder, f"{when}.png") for when in ("clean", "adversarial")}
    return {"unit": unit, "items": [{**item, "before": near, "after": near[::-1]}] * items}


def test_each_query_has_its_lists_before_and_after(tmp_path):
    found, left = lists(figure(tmp_path), tmp_path)
    assert (len(found), left) == (2, 0)
    (before, query, near), (after, _, turned) = found[0].rows
    assert (before, after) == ("clean", "attacked")
    assert query.uri.startswith("data:image/png")
    assert [(n.label, n.relevant, n.distance, n.image is None) for n in near] == [
        ("cat", True, "3 bits", False),
        ("dog", False, "4 bits", True),
    ]
    assert [n.label for n in turned] == ["dog", "cat"]
    assert found[0].where == "Linf 0.1, pgd, distance 0.1"
    assert lists(figure(tmp_path, unit="cosine distance"), tmp_path)[0][0].rows[0][2][0].distance == "3.000"


def test_the_page_stays_small(tmp_path):
    assert len(lists(figure(tmp_path, 5), tmp_path, budget=1)[0]) == 1
    assert lists(figure(tmp_path, 5), tmp_path, budget=1)[1] == 4
