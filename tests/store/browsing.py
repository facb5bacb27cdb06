"""What every page of avtd3 must stand when a browser shows it: the questions, and the browser."""

import pytest

from avtd3.tests.store.chromium import Chromium, find_chromium

WIDTHS = {"desk": 1280, "phone": 390}

STICKS_OUT = """
[...document.body.querySelectorAll('*')].filter(e => {
  const box = e.getBoundingClientRect();
  return box.width && !e.closest('.scroll, svg, .hidden')
    && (box.right > innerWidth + 0.5 || box.left < -0.5);
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


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    executable = find_chromium()
    if executable is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    chromium = Chromium(executable, tmp_path_factory.mktemp("profile"))
    yield chromium
    chromium.close()
