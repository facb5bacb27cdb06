"""What every page of avtd3 must stand when a browser shows it: the questions, and the browser."""

import functools
import itertools
from pathlib import Path

import pytest

AXE = Path(__file__).parents[1] / "data" / "axe-core" / "axe.min.js"
"""axe-core 4.14.1 of Deque Systems, from npm, under the MPL 2.0: tests only."""
WIDTHS = {"phone": 360, "tablet": 768, "desk": 1280}
THEMES = ("light", "dark")
VIEWS = [*itertools.product(WIDTHS, THEMES)]
FEW_VIEWS = [("phone", "light"), ("desk", "dark")]
"""The others are slow."""

STICKS_OUT = """
[...document.body.querySelectorAll('*')].filter(e => {
  const box = e.getBoundingClientRect();
  return box.width && !e.closest('.scroll, svg, .hidden')
    && (box.right > WIDTH + 0.5 || box.left < -0.5);
}).map(e => e.outerHTML.slice(0, 120))
"""

FAINT = """
(() => {
  const pen = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
  const over = (below, colour) => {
    pen.globalCompositeOperation = 'copy'; pen.fillStyle = `rgb(${below.join()})`;
    pen.fillRect(0, 0, 1, 1);
    pen.globalCompositeOperation = 'source-over'; pen.fillStyle = colour;
    pen.fillRect(0, 0, 1, 1);
    return [...pen.getImageData(0, 0, 1, 1).data.slice(0, 3)];
  };
  const light = rgb => {
    const [r, g, b] = rgb.map(v => v / 255).map(
      v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const faint = [];
  for (const e of document.body.querySelectorAll('*')) {
    const text = [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
    if (!text || e.closest('.hidden, title') || !e.getBoundingClientRect().width) continue;
    const chain = []; for (let p = e; p; p = p.parentElement) chain.unshift(p);
    let below = [255, 255, 255];
    for (const p of chain) below = over(below, getComputedStyle(p).backgroundColor);
    const style = getComputedStyle(e);
    const ink = over(below, e.namespaceURI.endsWith('svg') ? style.fill : style.color);
    const [high, low] = [light(below), light(ink)].sort((a, b) => b - a);
    if ((high + 0.05) / (low + 0.05) < 4.5) faint.push(e.outerHTML.slice(0, 120));
  }
  return faint;
})()
"""

SMALL = """
[...document.querySelectorAll('svg text')].filter(e => {
  const scale = e.getScreenCTM().a;
  return scale * parseFloat(getComputedStyle(e).fontSize) < 9;
}).length
"""


RUN_AXE = """
axe.run(document, {resultTypes: ['violations'], elementRef: false}).then(found =>
  found.violations.flatMap(v => v.nodes.map(
    n => `${v.id}: ${v.help}: ${n.html.slice(0, 160)} ${n.failureSummary}`)))
"""

STOPS = """
[...document.querySelectorAll('a[href], button, input, summary, [tabindex="0"]')].filter(
  e => e.checkVisibility()).length
"""

FOCUSED = """
(() => {
  const e = document.activeElement, style = getComputedStyle(e), box = e.getBoundingClientRect();
  if (e === document.body) return null;
  const seen = style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 1;
  return [e.outerHTML.slice(0, 120), seen && box.width > 0, e.tagName];
})()
"""


def views(*, few=True):
    """Parameters of a test: width and theme by name; all of them, of which most are slow."""
    return pytest.mark.parametrize(
        ("device", "theme"),
        [
            pytest.param(*view, marks=() if not few or view in FEW_VIEWS else pytest.mark.slow)
            for view in VIEWS
        ],
    )


def page_faults(browser, path, device, theme):
    """Open a page and unfold it; return what is wrong with it by kind, nothing if it is well."""
    width = WIDTHS[device]
    browser.open(path, width=width, theme=theme, phone=device == "phone")
    events = list(browser.events)
    browser.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    asked = [e["params"]["request"]["url"] for e in events if e["method"].endswith("WillBeSent")]
    noisy = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
    found = {
        "wider than the screen": browser.evaluate(
            f"document.documentElement.scrollWidth > {width} || innerWidth !== {width}"
        ),
        "sticks out": browser.evaluate(STICKS_OUT.replace("WIDTH", str(width))),
        "small": browser.evaluate(SMALL),
        "faint": browser.evaluate(FAINT),
        "asks the network": [
            url for url in asked if not url.startswith("data:image/") and url != path.as_uri()
        ],
        "complains": [event for event in events if event["method"] in noisy],
        "scripts": browser.evaluate("document.scripts.length"),
        "broken images": browser.evaluate(
            "[...document.images].filter(i => !i.naturalWidth).map(i => i.outerHTML.slice(0, 80))"
        ),
        "script ran": browser.evaluate("document.title === 'run'"),
    }
    browser.evaluate(_axe())
    found["axe"] = browser.evaluate(RUN_AXE)
    return {name: what for name, what in found.items() if what}


@functools.cache
def _axe():
    return AXE.read_text("utf-8") + "; 0"


def keyboard_faults(browser, path):
    """Walk through a page with the keyboard; return what cannot be reached, seen or opened."""
    browser.open(path, width=WIDTHS["desk"])
    stops, found = browser.evaluate(STOPS), []
    reached = []
    for _ in range(stops):
        browser.press("Tab", 9)
        focused = browser.evaluate(FOCUSED)
        if focused is None:
            break
        reached.append(focused[0])
        if not focused[1]:
            found.append(f"focus cannot be seen: {focused[0]}")
        if focused[2] == "SUMMARY":
            toggled = "document.activeElement.parentElement.open"
            before = browser.evaluate(toggled)
            browser.press("Enter", 13)
            if browser.evaluate(toggled) == before:
                found.append(f"Enter does nothing: {focused[0]}")
            browser.press("Enter", 13)
    if len(reached) < stops:
        found.append(f"{len(reached)} of {stops} reached, the last one is {reached[-1:]}")
    return found
