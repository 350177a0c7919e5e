"""The page in a real browser: it runs without a complaint, obeys the keyboard, and fits narrow and wide windows.

Each test writes a copy of the page with a script that acts on it and leaves what it saw in the document, which the
browser then prints.
"""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from withstand.report import render

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on this machine"),
]
OPTIONS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
    *("--enable-logging=stderr", "--v=0", "--virtual-time-budget=3000"),
]
PROBE = """
<script>
addEventListener("load", async () => {
  const said = {};
  const all = (selector) => [...document.querySelectorAll(selector)];
  const press = (key) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
  try { %s } catch (error) { said.error = String(error); }
  parent.postMessage(JSON.stringify(said), "*");
});
</script>
"""
FRAME = """<!doctype html><body><iframe src="page.html" style="width: %dpx; height: 900px; border: 0"></iframe>
<script>
addEventListener("message", (event) => {
  const note = document.createElement("pre");
  note.id = "probe";
  note.textContent = event.data;
  document.body.append(note);
});
</script>
"""


def browse(path: Path, *options: str) -> tuple[str, str]:
    """What Chromium prints of a page, and what it complains of."""
    assert CHROMIUM
    profile = path.parent / f"profile-{path.stem}"
    done = subprocess.run(
        [CHROMIUM, *OPTIONS, f"--user-data-dir={profile}", *options, path.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    shutil.rmtree(profile, ignore_errors=True)
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


def probe(text: str, script: str, where: Path, width: int = 1400) -> dict[str, Any]:
    """What a script found out on a copy of the page, in a frame of this width (windows have a least width)."""
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)  # it would refuse the added script
    (where / "page.html").write_text(text.replace("</body>", PROBE % script + "</body>"), encoding="utf-8")
    frame = where / "frame.html"
    frame.write_text(FRAME % width, encoding="utf-8")
    shown, complaints = browse(frame, f"--window-size={width + 100},1000", "--dump-dom")
    assert complaints == ""
    found = re.search(r'<pre id="probe">(.*?)</pre>', shown, re.DOTALL)
    assert found, "the page's script did not reach its end"
    said = json.loads(found.group(1).replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert "error" not in said, said
    return said


@pytest.fixture(scope="module")
def text(run) -> str:
    return render(*run)


def test_the_page_as_written_runs_its_script_without_a_complaint(text, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(text, encoding="utf-8")
    shown, complaints = browse(path, "--dump-dom")
    assert complaints == ""
    assert re.search(r'<button type="button" id="theme">', shown)  # the script takes `hidden` away
    assert re.search(r'<button type="button" id="copy">', shown)


def test_the_policy_of_the_page_refuses_scripts_that_are_not_its_own(text, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(text.replace("</body>", "<script>document.title = 'taken'</script></body>"), encoding="utf-8")
    shown, complaints = browse(path, "--dump-dom")
    assert "Content Security Policy" in complaints
    assert "<title>taken</title>" not in shown


def test_the_theme_button_goes_round_and_changes_the_colours(text, tmp_path):
    script = """
      const button = document.getElementById("theme");
      const look = () => [button.textContent, getComputedStyle(document.body).backgroundColor];
      said.seen = [look()];
      for (let i = 0; i < 3; i++) { button.click(); said.seen.push(look()); }
    """
    system, light, dark, again = probe(text, script, tmp_path)["seen"]
    assert [look[0] for look in (system, light, dark, again)] == [
        "Theme: system", "Theme: light", "Theme: dark", "Theme: system"]  # fmt: skip
    assert light[1] != dark[1]
    assert again == system


def test_galleries_obey_the_keyboard(text, tmp_path):
    script = """
      const shots = [...document.querySelector("[data-gallery]").querySelectorAll(".shot")];
      const at = () => shots.indexOf(document.activeElement);
      const visible = () => shots.filter((s) => s.offsetParent !== null).length;
      said.stops = shots.filter((s) => s.tabIndex === 0).length;
      said.visible = [visible()];
      shots[0].focus();
      const row = shots.filter((s) => s.offsetTop === shots[0].offsetTop).length;
      said.row = row;
      const keys = ["ArrowRight", "ArrowDown", "ArrowLeft", "ArrowUp", "ArrowLeft", "End", "Home"];
      said.at = keys.map((key) => { press(key); return at(); });
      said.visible.push(visible());
      said.stopsAfter = shots.filter((s) => s.tabIndex === 0).length;
      document.activeElement.click();
      const zoom = document.getElementById("zoom");
      said.open = zoom.open;
      said.title = [document.getElementById("zoom-h").textContent];
      said.images = zoom.querySelectorAll("img").length;
      zoom.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight", bubbles: true}));
      said.title.push(document.getElementById("zoom-h").textContent);
      zoom.close();
      await new Promise((done) => setTimeout(done, 50));
      said.back = at();
      said.pixels = getComputedStyle(shots[0].querySelector("img")).imageRendering;
    """
    said = probe(text, script, tmp_path)
    row = said["row"]
    assert row > 1
    assert said["at"] == [1, 1 + row, row, 0, 0, 29, 0]
    assert said["visible"] == [12, 30]  # going to the last one opens the fold
    assert (said["stops"], said["stopsAfter"]) == (1, 1)
    assert said["open"]
    assert said["images"] == 3
    assert said["title"][0] != said["title"][1]
    assert said["back"] == 1
    assert said["pixels"] == "pixelated"


def test_points_of_figures_tell_their_numbers_and_names_bring_their_lines_forward(text, tmp_path):
    script = """
      const hover = (node) => node.dispatchEvent(new PointerEvent("pointerover", {bubbles: true}));
      hover(document.querySelector(".curve .wide .point"));
      const tip = document.getElementById("tip");
      said.tip = tip.hidden ? null : tip.textContent;
      hover(document.querySelector("main"));
      said.gone = tip.hidden;
      said.dim = all(".verdict .model").map((name) => {
        hover(name);
        return [...new Set(all(".curve .wide .series.dim").map((s) => s.dataset.series))];
      });
    """
    said = probe(text, script, tmp_path)
    assert re.fullmatch(r"cnn-a, 0: 87\.0% \(84\.8–88\.9%\)", said["tip"])
    assert said["gone"]
    assert said["dim"] == [["cnn-a, adversarially trained 2/255"], ["cnn-a"]]


def test_printing_opens_what_is_folded_and_closes_it_again(text, tmp_path):
    script = """
      const open = () => all("details[open]").length;
      said.open = [open()];
      dispatchEvent(new Event("beforeprint"));
      said.open.push(open());
      dispatchEvent(new Event("afterprint"));
      said.open.push(open());
      said.all = all("details").length;
    """
    said = probe(text, script, tmp_path)
    assert said["open"] == [said["open"][0], said["all"], said["open"][0]]
    assert said["open"][0] < said["all"]


@pytest.mark.parametrize("models", [2, 5])
@pytest.mark.parametrize("width", [360, 768, 1400])
def test_the_page_never_scrolls_sideways(sample, tmp_path, width, models):
    script = """
      for (const one of all("details")) one.open = true;
      said.inner = innerWidth;
      said.scroll = document.documentElement.scrollWidth;
      const inScroll = (e) => e.closest(".scroll, .sr, dialog, #tip, svg, .skip");
      said.out = all("body *").filter((e) => !inScroll(e) && e.getBoundingClientRect().right > innerWidth + 0.5)
        .map((e) => e.tagName + "." + e.className).slice(0, 5);
      said.narrow = all(".curve .narrow").filter((e) => getComputedStyle(e).display !== "none").length;
    """
    said = probe(render(sample.card(tmp_path, models, shots=4), tmp_path), script, tmp_path, width)
    assert said["inner"] == width
    assert said["scroll"] <= width
    assert said["out"] == []
    assert bool(said["narrow"]) == (width < 752)


def test_labels_of_curves_stay_inside_their_picture(sample, tmp_path):
    script = """
      said.out = all(".wide text").filter((t) => {
        const box = t.getBoundingClientRect(), frame = t.ownerSVGElement.getBoundingClientRect();
        return box.width && (box.right > frame.right + 1 || box.left < frame.left - 1 || box.bottom > frame.bottom + 1);
      }).map((t) => t.textContent);
      said.count = all(".wide text").length;
    """
    said = probe(render(sample.card(models=5, shots=0), ""), script, tmp_path)
    assert said["count"] > 100
    assert said["out"] == []


def test_text_stands_out_from_its_ground_in_both_themes(text, tmp_path):
    """WCAG contrast of at least 4.5 for words, 4.4 for numbers inside of heat maps, whose ground takes every shade."""
    script = """
      const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
      const paint = (colour, alpha = 1) => {
        canvas.globalAlpha = alpha;
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
      };
      const light = () => {
        const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((v) => v / 255)
          .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
      };
      const contrast = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
      for (const theme of ["light", "dark"]) {
        document.documentElement.dataset.theme = theme;
        const paper = getComputedStyle(document.body).backgroundColor;
        said[theme] = {};
        const texts = ["p.sentence", ".quiet", ".level.pass", ".level.warn", ".level.fail", "a", "small", ".caution"];
        for (const selector of [...texts, "svg .label", "svg .tick", ".outcome"]) {
          for (const node of all(selector)) {
            paint(paper); const ground = light();
            const style = getComputedStyle(node);
            paint(node.closest("svg") ? style.fill : style.color);
            const found = contrast(light(), ground);
            said[theme][selector] = Math.min(said[theme][selector] ?? 99, found);
          }
        }
        let cells = 99;
        for (const number of all(".heatmap .wide text.in")) {
          const cell = number.previousElementSibling;
          paint(paper); paint(getComputedStyle(cell).fill, Number(cell.getAttribute("fill-opacity")));
          const ground = light();
          paint(getComputedStyle(number).fill);
          cells = Math.min(cells, contrast(light(), ground));
        }
        said[theme].cells = cells;
      }
    """
    said = probe(text, script, tmp_path)
    for theme in ("light", "dark"):
        cells = said[theme].pop("cells")
        assert cells >= 4.4, (theme, cells)
        assert {k: v for k, v in said[theme].items() if v < 4.5} == {}, theme


def test_the_page_prints(text, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(text, encoding="utf-8")
    paper = tmp_path / "report.pdf"
    _, complaints = browse(path, f"--print-to-pdf={paper}")
    assert complaints == ""
    raw = paper.read_bytes()
    assert raw.startswith(b"%PDF")
    assert raw.count(b"/Type /Page\n") + raw.count(b"/Type /Page ") + raw.count(b"/Type /Page/") > 5
