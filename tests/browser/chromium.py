"""A real browser, headless: loads a page and tells what it made of it."""

from __future__ import annotations

import json
import re
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

from tests.tooling import program

_SECONDS = 100

# What a reader's eyes would do: is it there, is it large enough, does it stay inside, has it colours.
_MEASURE = """
const seen = (node) => { const box = node.getBoundingClientRect(); return box.width + box.height > 0; };
const colour = (node, what) => getComputedStyle(node)[what];
const plots = [...document.querySelectorAll('svg.plot')].map((svg) => {
  const box = svg.getBoundingClientRect(), outside = [];
  for (const text of svg.querySelectorAll('text')) {
    const own = text.getBoundingClientRect();
    if (own.left < box.left - 1 || own.right > box.right + 1 || own.top < box.top - 1 || own.bottom > box.bottom + 1)
      outside.push(text.textContent);
  }
  const texts = [...svg.querySelectorAll('text')].map((one) => [one.textContent, one.getBoundingClientRect()]);
  const overprinted = [];
  texts.forEach(([words, a], number) => texts.slice(number + 1).forEach(([others, b]) => {
    const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    // Line boxes are higher than letters: a few pixels of them may meet.
    if (wide > 1 && high > 0.35 * Math.min(a.height, b.height)) overprinted.push(`${words} / ${others}`);
  }));
  const marks = [...svg.querySelectorAll('circle, rect, polyline')];
  return {
    name: svg.getAttribute('aria-label'), title: svg.closest('figure').querySelector('figcaption').textContent,
    width: box.width, height: box.height, marks: marks.length, seen: marks.filter(seen).length, outside, overprinted,
    smallest_text: Math.min(...[...svg.querySelectorAll('text')].map((one) => one.getBoundingClientRect().height)),
    colours: [...new Set(marks.map((one) => colour(one, 'fill') + '/' + colour(one, 'stroke')))],
  };
});
const flags = [...document.querySelectorAll('article.flag')].map((flag) => ({
  id: flag.id, seen: seen(flag), title: flag.querySelector('h3').textContent, text: flag.innerText,
}));
const made = {
  plots, flags, raised: Number(document.querySelector('.flags').dataset.raised),
  background: colour(document.body, 'backgroundColor'), ink: colour(document.body, 'color'),
  width: document.documentElement.clientWidth, content_width: document.documentElement.scrollWidth,
  headings: [...document.querySelectorAll('h1, h2')].map((one) => one.textContent),
  resources: performance.getEntriesByType('resource').map((one) => one.name),
};
const pre = document.createElement('pre');
pre.id = 'measured'; pre.textContent = JSON.stringify(made); document.body.append(pre);
"""


def measure(page: Path, folder: Path, *, width: int = 1200, dark: bool = False) -> dict[str, Any]:
    """Return what a browser window of that width shows of the page. `folder` takes the copy with the script in it."""
    # The page lets no script run: the copy lets this one.
    text = page.read_text(encoding="utf-8")
    copy = folder / f"measured-{width}-{'dark' if dark else 'light'}.html"
    assert text.count("default-src 'none';") == 1
    text = text.replace("default-src 'none';", "default-src 'none'; script-src 'unsafe-inline';")
    copy.write_text(text.replace("</body>", f"<script>{_MEASURE}</script></body>"), encoding="utf-8")
    out = _run(copy, folder, "--dump-dom", f"--window-size={width},900", *_dark(dark)).stdout
    found = re.search(r'<pre id="measured">(.*?)</pre>', out, re.DOTALL)
    assert found is not None, out[-2000:]
    made: dict[str, Any] = json.loads(unescape(found[1]))
    return made


def complaints(page: Path, folder: Path) -> list[str]:
    """Return what the browser's console says of the page as it is."""
    done = _run(page, folder, "--dump-dom", "--enable-logging=stderr", "--v=0")
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def _dark(dark: bool) -> list[str]:
    return [f"--blink-settings=preferredColorScheme={0 if dark else 1}"]


def _run(page: Path, folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    # A profile of its own. No sandbox: as root in a container there is none to be had, and the page is ours.
    fixed = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    command = [program("chromium"), *fixed, f"--user-data-dir={folder / 'profile'}", *flags, page.absolute().as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True)
