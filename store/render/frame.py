"""What every HTML page of avtd3 has around its content.

A policy in the page forbids the browser to load anything: no script, no network, no other file.
"""

from avtd3.store.render.markup import Markup, element
from avtd3.store.render.style import STYLE

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'"


def html_page(title: str, *body: Markup, style: str = "") -> str:
    """A whole page.

    Args:
        title: What it is called.
        body: Its content.
        style: Rules of its own, after those that all pages share.
    """
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", name="referrer", content="no-referrer"),
        element("title", title),
        element("style", Markup(STYLE + style)),
    )
    return f"<!DOCTYPE html>\n{element('html', head, element('body', *body), lang='en')}\n"


def section(title: str, content: Markup) -> Markup:
    """A part of a page, under a heading."""
    name = title.lower().replace(" ", "-")
    heading = element("h2", title, id=name)
    return element("section", heading, content, aria_labelledby=name)
