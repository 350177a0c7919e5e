"use strict";
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const byId = (id) => document.getElementById(id);

// Theme: system, light, dark; kept where the browser allows it.
const themes = ["system", "light", "dark"];
const themeButton = byId("theme");
function setTheme(name) {
  if (name === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  themeButton.textContent = "Theme: " + name;
  try { localStorage.setItem("withstand-theme", name); } catch { /* a file may have no storage */ }
}
let theme = "system";
try { theme = localStorage.getItem("withstand-theme") ?? theme; } catch { /* the same */ }
setTheme(themes.includes(theme) ? theme : "system");
themeButton.hidden = false;
themeButton.addEventListener("click", () => {
  const now = document.documentElement.dataset.theme ?? "system";
  setTheme(themes[(themes.indexOf(now) + 1) % themes.length]);
});

// Copying the command.
const copy = byId("copy");
if (copy) {
  copy.hidden = false;
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(byId("command").textContent);
      copy.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(byId("command"));
      copy.textContent = "Selected: press Ctrl+C";
    }
    setTimeout(() => { copy.textContent = "Copy"; }, 2000);
  });
}

// Galleries: one stop for Tab, arrow keys inside; a dozen examples until all are asked for; Enter enlarges.
const zoom = byId("zoom");
let zoomed = null;
function enlarge(shot) {
  zoomed = shot;
  byId("zoom-h").textContent = shot.getAttribute("aria-label").split(":")[0];
  byId("zoom-body").replaceChildren(...[...shot.childNodes].map((node) => node.cloneNode(true)));
  byId("zoom-body").classList.toggle("fooled", shot.classList.contains("fooled"));
  if (!zoom.open) zoom.showModal();
}
for (const list of all("[data-gallery]")) {
  const shots = all(".shot", list);
  const go = (to) => {
    const shot = shots[Math.max(0, Math.min(shots.length - 1, to))];
    if (hidden(shot)) unfold();
    shot.focus();
    return shot;
  };
  let more = null;
  const hidden = (shot) => getComputedStyle(shot.closest("li")).display === "none";
  const unfold = () => { list.classList.remove("folded"); more?.remove(); };
  if (shots.length > 12) {
    list.classList.add("folded");
    more = document.createElement("button");
    more.type = "button";
    more.className = "more";
    more.textContent = "Show all " + shots.length;
    more.addEventListener("click", () => go(shots.findIndex(hidden)));
    list.after(more);
  }
  shots.forEach((shot, i) => {
    shot.tabIndex = i ? -1 : 0;
    shot.addEventListener("focus", () => shots.forEach((other) => { other.tabIndex = other === shot ? 0 : -1; }));
    shot.addEventListener("click", () => enlarge(shot));
    shot.addEventListener("keydown", (event) => {
      const row = shots.filter((s) => s.offsetTop === shots[0].offsetTop).length;
      const to = { ArrowRight: i + 1, ArrowLeft: i - 1, ArrowDown: i + row, ArrowUp: i - row, Home: 0, End: shots.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      go(to);
    });
  });
  zoom.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const i = shots.indexOf(zoomed);
    if (step && i >= 0) enlarge(go(i + step));
  });
}
zoom.addEventListener("click", (event) => { if (event.target === zoom) zoom.close(); });
zoom.addEventListener("close", () => zoomed?.focus());

// Readings under the pointer, and one model's lines brought forward while its name is pointed at.
const tip = byId("tip");
document.addEventListener("pointerover", (event) => {
  const at = event.target.closest?.("[data-tip]");
  tip.hidden = !at;
  if (at) {
    tip.textContent = at.dataset.tip;
    const box = at.getBoundingClientRect();
    const left = box.left + box.width / 2 - tip.offsetWidth / 2;
    tip.style.left = Math.max(4, Math.min(innerWidth - tip.offsetWidth - 4, left)) + "px";
    tip.style.top = (box.top > 60 ? box.top - tip.offsetHeight - 8 : box.bottom + 8) + "px";
  }
  const lit = event.target.closest?.("[data-lit]")?.dataset.lit;
  for (const picture of all("svg[role=img]")) {
    const series = all(".series", picture);
    const isLit = (one) => one.dataset.series === lit || one.dataset.model === lit;
    const dims = lit !== undefined && series.some(isLit);
    for (const one of series) one.classList.toggle("dim", dims && !isLit(one));
  }
});
document.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true, capture: true });

// Where one is, in the contents.
const entries = all(".contents a").map((link) => [link, byId(link.hash.slice(1))]);
const spy = () => {
  const current = entries.findLast(([, section]) => section.getBoundingClientRect().top < innerHeight / 3) ?? entries[0];
  for (const [link] of entries) {
    if (link === current[0]) link.setAttribute("aria-current", "location");
    else link.removeAttribute("aria-current");
  }
};
addEventListener("scroll", spy, { passive: true });
spy();

// Paper has no fold: everything is open while printing.
let closed = [];
addEventListener("beforeprint", () => {
  closed = all("details:not([open])");
  for (const one of closed) one.open = true;
});
addEventListener("afterprint", () => { for (const one of closed) one.open = false; });
