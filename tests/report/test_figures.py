"""The pictures say what the data say: positions are mapped back to values through the pictures' own tick labels."""

import itertools
import re
from xml.etree import ElementTree

import pytest

from withstand.report import figures, heatmaps, svg

X = [0.0, 0.25, 1.0, 4.0]
LINE = {"name": "pgd", "y": [0.9, 0.7, 0.4, 0.1], "low": [0.85, 0.6, 0.3, 0.05], "high": [0.95, 0.8, 0.5, 0.2]}


def curve_data(**changes):
    return {"x_label": "eps", "y_label": "accuracy", "x": X, "series": [LINE], **changes}


def parts(picture, element, kind=None):
    root = ElementTree.fromstring(str(picture))
    return [e for e in root.iter(element) if kind is None or kind in e.get("class", "").split()]


def scale(picture, kind, coordinate):
    """The linear map from a coordinate to a value, from the first and last tick label."""

    def value(text):
        if "/" in text:
            return float(text.split("/")[0]) / 255
        number = float(text.rstrip("%").replace("−", "-").replace(",", ""))
        return number / 100 if text.endswith("%") else number

    ticks = sorted(
        (float(e.get(coordinate)), value(e.text)) for e in parts(picture, "text", kind) if "tick" in e.get("class")
    )
    (p0, v0), (p1, v1) = ticks[0], ticks[-1]
    return lambda p: v0 + (p - p0) / (p1 - p0) * (v1 - v0)


def path_points(path):
    return [tuple(map(float, pair.split())) for pair in re.split("[ML]", path.rstrip("Z"))[1:]]


@pytest.mark.parametrize("picture", ["wide", "narrow"])
def test_the_line_of_a_curve_maps_back_to_its_values(picture):
    drawn = getattr(figures.curve("f", "t", [(0, "a", curve_data())]), picture)
    x, y = scale(drawn, "middle", "x"), scale(drawn, "end", "y")
    (line,) = parts(drawn, "path", "line")
    points = path_points(line.get("d"))
    # a tick's text stands 4 pixels below its line
    assert [x(px) for px, _ in points] == pytest.approx(X, abs=0.02)
    assert [y(py + 4) for _, py in points] == pytest.approx(LINE["y"], abs=0.002)


def test_the_band_of_a_curve_spans_its_interval():
    drawn = figures.curve("f", "t", [(0, "a", curve_data())]).wide
    y = scale(drawn, "end", "y")
    (band,) = parts(drawn, "path", "band")
    found = [y(py + 4) for _, py in path_points(band.get("d"))]
    assert found[:4] == pytest.approx(LINE["low"], abs=0.002)
    assert found[4:] == pytest.approx(LINE["high"][::-1], abs=0.002)


def test_the_diagonal_of_a_curve_is_where_both_axes_read_the_same():
    drawn = figures.curve("f", "t", [(0, "a", curve_data(x=[0.2, 0.4, 0.6, 0.9], diagonal=True))]).wide
    (line,) = [e for e in parts(drawn, "line", "base") if e.get("stroke-dasharray")]
    x, y = scale(drawn, "middle", "x"), scale(drawn, "end", "y")
    for end in "12":
        assert x(float(line.get(f"x{end}"))) == pytest.approx(y(float(line.get(f"y{end}")) + 4), abs=0.005)
    plain = figures.curve("f", "t", [(0, "a", curve_data())]).wide
    assert not [e for e in parts(plain, "line", "base") if e.get("stroke-dasharray")]


def test_a_missing_value_breaks_the_line_and_is_not_drawn_as_zero():
    data = curve_data(series=[{"name": "pgd", "y": [0.9, None, 0.4, 0.1], "low": [None] * 4, "high": [None] * 4}])
    drawing = figures.curve("f", "t", [(0, "a", data)])
    lengths = [len(path_points(e.get("d"))) for e in parts(drawing.wide, "path", "line")]
    assert lengths == [1, 2]
    assert drawing.rows[1] == ["0.25", "—"]
    assert not parts(drawing.wide, "path", "band")


def test_ticks_use_the_given_texts_and_do_not_overlap():
    x = [k / 255 for k in (0, 0.25, 0.5, 1, 2, 4, 8)]
    data = curve_data(x=x, x_ticks=["0", "0.25/255", "0.5/255", "1/255", "2/255", "4/255", "8/255"],
                      series=[{"name": "a", "y": [0.5] * 7}])  # fmt: skip
    drawn = figures.curve("f", "t", [(0, "a", data)]).narrow
    ticks = [(float(e.get("x")), e.text) for e in parts(drawn, "text", "middle") if "tick" in e.get("class")]
    assert ticks[0][1] == "0"
    assert ticks[-1][1] == "8/255"
    for (p, a), (q, b) in itertools.pairwise(ticks):
        assert q - p >= (svg.width_of(a) + svg.width_of(b)) / 2


def test_a_logarithmic_axis_puts_equal_ratios_at_equal_distances_and_zero_left_of_them():
    data = curve_data(x=[0, 10, 100, 1000], log_x=True)
    (line,) = parts(figures.curve("f", "t", [(0, "a", data)]).wide, "path", "line")
    zero, ten, hundred, thousand = (px for px, _ in path_points(line.get("d")))
    assert zero < ten
    assert hundred - ten == pytest.approx(thousand - hundred, abs=0.02)


def test_values_beyond_one_get_an_axis_that_holds_them():
    data = curve_data(series=[{"name": "loss", "y": [1.0, 3.0, -2.0, 40.0]}])
    drawn = figures.curve("f", "t", [(0, "a", data)]).wide
    y = scale(drawn, "end", "y")
    (line,) = parts(drawn, "path", "line")
    points = path_points(line.get("d"))
    assert [y(py + 4) for _, py in points] == pytest.approx([1, 3, -2, 40], abs=0.15)
    assert all(0 <= py <= 330 for _, py in points)


def test_models_are_overlaid_with_colour_marker_and_dash_of_their_own():
    drawing = figures.curve("f", "t", [(k, f"model {k}", curve_data()) for k in range(5)])
    assert [s.name for s in drawing.legend] == [f"model {k}" for k in range(5)]
    lines = parts(drawing.wide, "path", "line")
    assert len({e.get("stroke-dasharray") for e in lines}) == 5
    groups = parts(drawing.wide, "g", "series")
    assert {e.get("class").split()[-1] for e in groups} == {"m0", "m1", "m2", "m3", "m4"}
    shapes = {str(svg.marker(k, 0, 0)) for k in range(5)}
    assert len(shapes) == 5


def test_several_series_of_several_models_are_named_by_both():
    two = curve_data(series=[LINE, {**LINE, "name": "square"}])
    assert [s.name for s in figures.series([(0, "a", two), (1, "b", two)], "y")] == [
        "a, pgd",
        "a, square",
        "b, pgd",
        "b, square",
    ]
    assert [(s.colour, s.dash) for s in figures.series([(0, "a", two), (1, "b", two)], "y")] == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
    ]
    assert [(s.name, s.colour) for s in figures.series([(1, "b", two)], "y")] == [("pgd", 0), ("square", 1)]


def test_direct_labels_keep_apart_and_inside_the_picture():
    drawing = figures.curve("f", "t", [(k, f"a model with a long name, number {k}", curve_data()) for k in range(5)])
    labels = parts(drawing.wide, "text", "label")
    at = sorted(float(e.get("y")) for e in labels)
    assert all(b - a >= 13.9 for a, b in itertools.pairwise(at))
    assert at[0] > 0
    assert at[-1] < 330
    for e in labels:
        assert float(e.get("x")) + svg.width_of(e.text, 12.5) <= figures.WIDE


def test_spread_moves_nothing_that_already_fits_and_keeps_the_order():
    assert svg.spread([10, 50, 90], [10, 10, 10], 0, 100) == [10, 50, 90]
    moved = svg.spread([52, 50, 51], [10, 20, 10], 0, 100)
    assert moved[1] < moved[2] < moved[0]
    assert moved[2] - moved[1] == pytest.approx(15)
    assert max(svg.spread([99, 99, 99], [10] * 3, 0, 100)) == 95


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 0.037), (-3.2, 41), (5, 5.0001), (0, 12345)])
def test_nice_ticks_cover_their_range_in_round_steps(low, high):
    ticks = svg.nice(low, high)
    assert ticks[0] <= low + 1e-9
    assert ticks[-1] >= high - 1e-9
    assert 2 <= len(ticks) <= 9
    steps = {float(f"{b - a:.6g}") for a, b in itertools.pairwise(ticks)}
    assert len(steps) == 1
    assert f"{steps.pop():.0e}"[0] in "125"


def bars_data(values, **changes):
    return {"labels": [f"class {i}" for i in range(len(values))], "y_label": "accuracy",
            "series": [{"name": "pgd", "values": values, "low": [v - 0.1 for v in values],
                        "high": [v + 0.1 for v in values]}], **changes}  # fmt: skip


def test_stems_and_whiskers_of_bars_map_back_to_their_values():
    values = [0.2, 0.85, 0.5]
    drawn = figures.bars("f", "t", [(0, "a", bars_data(values))]).wide
    x = scale(drawn, "middle", "x")
    stems, whiskers = parts(drawn, "line", "stem"), parts(drawn, "line", "whisker")
    assert [x(float(e.get("x1"))) for e in stems] == pytest.approx([0, 0, 0], abs=1e-3)
    assert [x(float(e.get("x2"))) for e in stems] == pytest.approx(values, abs=1e-3)
    assert [x(float(e.get("x1"))) for e in whiskers] == pytest.approx([v - 0.1 for v in values], abs=1e-3)
    assert [x(float(e.get("x2"))) for e in whiskers] == pytest.approx([v + 0.1 for v in values], abs=1e-3)


def test_differences_of_shares_that_are_negative_stay_beside_their_labels():
    drawn = figures.bars("f", "t", [(0, "a", bars_data([-0.05, 0.3], unit="share"))]).wide
    x = scale(drawn, "middle", "x")
    ticks = [e for e in parts(drawn, "text", "middle") if "tick" in e.get("class")]
    first = min(float(e.get("x")) for e in ticks)
    assert all(e.text.endswith("%") for e in ticks)
    assert all(float(e.get("x1")) >= first - 1e-6 for e in parts(drawn, "line", "whisker"))
    assert [x(float(e.get("x2"))) for e in parts(drawn, "line", "stem")] == pytest.approx([-0.05, 0.3], abs=1e-3)


def test_of_many_bars_the_lowest_are_drawn_and_the_table_keeps_all():
    values = [((37 * i) % 100) / 100 for i in range(100)]
    drawing = figures.bars("f", "t", [(0, "a", bars_data(values))])
    x = scale(drawing.wide, "middle", "x")
    found = [x(float(e.get("x2"))) for e in parts(drawing.wide, "line", "stem")]
    assert found == pytest.approx(sorted(values)[:30], abs=1e-3)
    assert len(drawing.rows) == 100
    assert "30 lowest of 100" in drawing.note


def heat(values, **changes):
    rows = [f"row {i}" for i in range(len(values))]
    return {"row_label": "kind", "column_label": "severity", "rows": rows, "columns": list(range(len(values[0]))),
            "values": values, "unit": "share", "better": "higher", **changes}  # fmt: skip


def test_cells_of_a_heat_map_darken_from_good_to_bad():
    data = heat([[1.0, 0.75, 0.5], [0.25, 0.0, None]])
    drawing = heatmaps.heatmap("f", "t", data, heatmaps.scale_of([data]))
    cells = parts(drawing.wide, "rect", "cell")
    opacity = [float(e.get("fill-opacity")) for e in cells[:5]]
    assert opacity == sorted(opacity)
    steps = [b - a for a, b in itertools.pairwise(opacity)]
    assert steps == pytest.approx([steps[0]] * 4, abs=1e-3)
    assert "void" in cells[5].get("class")
    worse = heatmaps.heatmap("f", "t", heat([[0.0, 1.0]], better="lower"), (0, 1))
    first, second = (float(e.get("fill-opacity")) for e in parts(worse.wide, "rect", "cell"))
    assert first < second


def test_cells_of_a_heat_map_lie_in_their_row_and_column_and_carry_their_value():
    data = heat([[0.111, 0.222], [0.333, 0.444]])
    drawn = heatmaps.heatmap("f", "t", data, (0, 1)).wide
    cells = parts(drawn, "rect", "cell")
    texts = {e.text: (float(e.get("x")), float(e.get("y"))) for e in parts(drawn, "text", "in")}
    for cell, text in zip(cells, ("11.1", "22.2", "33.3", "44.4")):
        x, y = texts[text]
        assert float(cell.get("x")) < x < float(cell.get("x")) + float(cell.get("width"))
        assert float(cell.get("y")) < y < float(cell.get("y")) + float(cell.get("height"))
    assert cells[0].get("y") == cells[1].get("y")
    assert cells[0].get("x") == cells[2].get("x")
    assert cells[3].get("data-tip") == "row 1, 1: 44.4%"


def test_labels_of_a_narrow_heat_map_are_written_whole():
    data = heat([[0.5], [0.5]], rows=["elastic_transform", "jpeg_compression"])
    drawing = heatmaps.heatmap("f", "t", data, (0, 1))
    for picture in (drawing.wide, drawing.narrow):
        assert {e.text for e in parts(picture, "text", "end")} == {"elastic transform", "jpeg compression"}


def test_heat_maps_of_several_models_share_their_scale():
    low, high = heat([[2.0, 4.0]], unit="nats"), heat([[3.0, 9.0]], unit="nats")
    assert heatmaps.scale_of([low, high]) == (2.0, 9.0)
    assert heatmaps.scale_of([heat([[0.2, 0.3]])]) == (0.0, 1.0)


def test_of_many_rows_of_a_heat_map_the_worst_are_drawn_in_their_order():
    values = [[((7 * i) % 100) / 100] * 100 for i in range(100)]
    drawing = heatmaps.heatmap("f", "t", heat(values), (0, 1))
    names = [e.text for e in parts(drawing.wide, "text", "end")]
    assert names == [f"row {i}" for i in range(100) if values[i][0] < 0.25]
    assert "25 worst of 100" in drawing.note
    assert len(drawing.rows) == 100


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (19, 5), (40, 40), (300, 300), (2, 1000)])
def test_heat_maps_of_any_size_fit_their_picture(rows, columns):
    data = heat([[0.5] * columns] * rows)
    drawing = heatmaps.heatmap("f", "t", data, (0, 1))
    for picture, width in ((drawing.wide, figures.WIDE), (drawing.narrow, figures.NARROW)):
        root = ElementTree.fromstring(str(picture))
        rights = [float(e.get("x")) + float(e.get("width")) for e in root.iter("rect")]
        assert max(rights) <= float(root.get("width"))
        assert columns > 100 or float(root.get("width")) <= width
        assert len(rights) <= max(columns, 2500)


def test_pictures_have_a_title_a_description_and_a_role():
    for drawing in (
        figures.curve("f1", "Curve", [(0, "a", curve_data())]),
        figures.bars("f2", "Bars", [(0, "a", bars_data([0.1, 0.2]))]),
        heatmaps.heatmap("f3", "Heat", heat([[0.1]]), (0, 1)),
    ):
        for picture in (drawing.wide, drawing.narrow):
            root = ElementTree.fromstring(str(picture))
            title, description = root[0], root[1]
            assert root.get("role") == "img"
            assert (title.tag, description.tag) == ("title", "desc")
            assert root.get("aria-labelledby").split() == [title.get("id"), description.get("id")]
            assert title.text
            assert description.text


def test_text_from_the_data_is_escaped():
    nasty = '<script>alert("x")</script>'
    data = curve_data(x_label=nasty, series=[{**LINE, "name": nasty}])
    drawing = figures.curve("f", nasty, [(0, nasty, data)])
    assert "<script" not in drawing.wide
    assert nasty in ElementTree.fromstring(str(drawing.wide))[0].text


def test_strips_place_value_and_interval_on_their_span():
    root = ElementTree.fromstring(str(figures.strip(0, 0.5, 0.25, 1.0, (0.0, 1.0))))
    (band,) = list(root.iter("rect"))
    (mark,) = list(root.iter("circle"))
    assert float(mark.get("cx")) == 60
    assert float(band.get("x")) == pytest.approx(5 + 0.25 * 110)
    assert float(band.get("x")) + float(band.get("width")) == pytest.approx(115)
    assert "zero" not in str(figures.strip(0, 0.5, None, None, (0.0, 1.0)))
    assert "zero" in str(figures.strip(0, 0.5, None, None, (-1.0, 1.0)))


@pytest.mark.parametrize(
    "data",
    [
        curve_data(x=[], series=[]),
        curve_data(x=[], series=[{"name": "a", "y": []}]),
        curve_data(x=[1.0], series=[{"name": "a", "y": [0.5]}]),
        curve_data(x=[0.0, 0.0], log_x=True, series=[{"name": "a", "y": [None, None]}]),
    ],
)
def test_curves_with_next_to_nothing_are_still_drawn(data):
    assert ElementTree.fromstring(str(figures.curve("f", "t", [(0, "a", data)]).wide)) is not None


def test_bars_and_heat_maps_with_nothing_are_still_drawn():
    empty = {"labels": [], "y_label": "", "series": [{"name": "a", "values": []}]}
    assert figures.bars("f", "t", [(0, "a", empty)]).rows == []
    data = {"row_label": "", "column_label": "", "rows": [], "columns": [], "values": []}
    assert heatmaps.heatmap("f", "t", data, heatmaps.scale_of([data])).rows == []
