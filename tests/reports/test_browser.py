"""The page in a real browser: nothing is logged, nothing overlaps, tables sort and filter."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess

import pytest

import stowplan as sp

pytest.importorskip("matplotlib", reason="matplotlib is not installed")
pytest.importorskip("jinja2", reason="Jinja2 is not installed")

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next((found for found in map(shutil.which, NAMES) if found), None)
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no Chromium on this machine: apt-get install -y chromium"
)
LOOK = """
<script>
"use strict";
const seen = { width: innerWidth, scrolls: document.documentElement.scrollWidth, faults: [] };
seen.paper = getComputedStyle(document.body).backgroundColor;
seen.ink = getComputedStyle(document.querySelector("svg text")).fill;
const boxes = (elements) => [...elements].map((e) => [e, e.getBoundingClientRect()]);
const within = (a, b) =>
  a.left >= b.left - 1 && a.right <= b.right + 1 && a.top >= b.top - 1 && a.bottom <= b.bottom + 1;
const meet = (a, b) =>
  a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 2 && b.top < a.bottom - 2;
for (const svg of document.querySelectorAll("svg")) {
  const frame = svg.getBoundingClientRect(), title = svg.getAttribute("aria-label");
  if (frame.width < 250) seen.faults.push(`${title} is ${frame.width} wide`);
  const texts = boxes(svg.querySelectorAll("text"));
  texts.forEach(([one, box], number) => {
    if (!within(box, frame)) seen.faults.push(`${title}: ${one.textContent} is clipped`);
    if (Math.max(box.width, box.height) < 9)
      seen.faults.push(`${title}: ${one.textContent} is ${box.height} high`);
    for (const [other, there] of texts.slice(number + 1))
      if (meet(box, there))
        seen.faults.push(`${title}: ${one.textContent} meets ${other.textContent}`);
  });
}
const parts = boxes(document.querySelectorAll(".tiles > div, figure, h1, .table, .summary"));
parts.forEach(([one, box], number) => {
  if (box.left < 0 || box.right > innerWidth) seen.faults.push(`${one.tagName} leaves the page`);
  for (const [other, there] of parts.slice(number + 1))
    if (meet(box, there)) seen.faults.push(`${one.textContent} meets ${other.textContent}`);
});
for (const e of document.querySelectorAll(".tiles dd, .tiles small, h3, figcaption, th, td"))
  if (e.scrollWidth > e.clientWidth + 1) seen.faults.push(`${e.textContent} is cut off`);
const table = [...document.querySelectorAll(".table")].find((t) => t.querySelector("input"));
const column = (name) =>
  [...table.querySelectorAll("th")].findIndex((head) => head.textContent === name);
const shown = (name) =>
  [...table.querySelectorAll("tbody tr")]
    .filter((row) => !row.hidden)
    .map((row) => row.cells[column(name)].textContent);
const click = (name) => table.querySelectorAll("th button")[column(name)].click();
click("k");
seen.rising = shown("k");
click("k");
seen.falling = shown("k");
click("name");
seen.names = shown("name");
const filter = table.querySelector("input");
filter.value = "STRUCTURE 11";
filter.dispatchEvent(new Event("input"));
seen.filtered = shown("name");
seen.left = table.querySelector("output").textContent;
console.log("looked at");
parent.postMessage(JSON.stringify(seen), "*");
</script>
"""
FRAME = """<!doctype html>
<html style="color-scheme: light dark"><body style="margin: 0">
<iframe src="report.html" style="width: {width}px; height: 900px; border: 0"></iframe>
<script>onmessage = (event) => { document.body.dataset.seen = event.data; };</script>
</body></html>
"""
"""A window is no narrower than 500 pixels; a frame is."""


@pytest.fixture(scope="module")
def page(finished, tmp_path_factory):
    path = tmp_path_factory.mktemp("browser") / "report.html"
    names = [f"structure-{item:04d}" for item in range(3200)]
    sp.report(finished, path, names=names)
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("</body>", LOOK + "</body>"), encoding="utf-8")
    return path


def look_at(page, width, scheme, tmp_path):
    """What the page says of itself, and what the browser logs."""
    frame = page.with_name("frame.html")
    frame.write_text(FRAME.replace("{width}", str(width)), encoding="utf-8")
    command = [
        BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
        "--no-first-run", "--disable-extensions", "--enable-logging=stderr",
        f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1500,1000",
        f"--blink-settings=preferredColorScheme={scheme}", "--virtual-time-budget=4000",
        "--dump-dom", frame.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    found = re.search(r'data-seen="([^"]*)"', done.stdout)
    logged = re.findall(r"CONSOLE[^\n]*", done.stderr)
    assert found, done.stderr[-2000:]
    return json.loads(html.unescape(found[1])), logged


@pytest.mark.parametrize(
    ("width", "scheme"), [(400, 0), (1400, 1)], ids=["400 pixels, dark", "1400 pixels, light"]
)
def test_the_page_shows_all_and_works(page, width, scheme, finished, tmp_path):
    seen, logged = look_at(page, width, scheme, tmp_path)
    assert [line for line in logged if "looked at" not in line] == []
    assert any("looked at" in line for line in logged)  # so that errors would be seen, too
    assert seen["width"] == width
    assert seen["scrolls"] <= width
    assert seen["faults"] == []
    dark = scheme == 0
    paper, ink = (sum(map(int, re.findall(r"\d+", seen[name])[:3])) for name in ("paper", "ink"))
    assert (paper < 100) == dark
    assert (ink > 400) == dark
    rising = [int(text.replace("\xa0", "")) for text in seen["rising"]]
    assert rising == sorted(rising)
    assert len(rising) == 200
    assert [int(text.replace("\xa0", "")) for text in seen["falling"]] == rising[::-1]
    assert seen["names"] == sorted(seen["names"])
    wanted = [name for name in seen["names"] if "11" in name]
    assert seen["filtered"] != []
    assert set(wanted) <= set(seen["filtered"])
    assert seen["left"] == f"{len(seen['filtered'])} of 200"
