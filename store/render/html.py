"""Render HTML from the templates in ``store/render/templates`` and the style sheet beside them.

Datasets and event files may come from untrusted sources: every string is escaped, control
characters too, and each page forbids scripts, the network and other files.
"""

import functools
import re
from importlib import metadata
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from avtd3.store.errors import escape
from avtd3.store.render import text

FOLDER = Path(__file__).parent
MAX_ROWS = 300
"""Rows of a table; one more row counts the others."""


@functools.cache
def environment() -> Environment:
    """Return the environment that all templates share: autoescape, filters and style sheet."""
    made = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals |= {
        "style": Markup((FOLDER / "style.css").read_text("utf-8")),
        "version": metadata.version("avtd3"),
        "MAX_ROWS": MAX_ROWS,
    }
    made.filters |= {
        "breakable": breakable,
        "shorten": text.shorten,
        "number": text.number,
        "integer": text.integer,
        "percent": text.percent,
        "file_size": text.file_size,
        "duration": text.duration,
        "plural": text.plural,
    }
    return made


def render_page(template: str, **context: object) -> str:
    """Render the template of a whole page, as ``gate.html.j2``."""
    return environment().get_template(template).render(context)


def render(template: str, **context: object) -> Markup:
    """Render the template of a part, which a page then shows unchanged."""
    return Markup(render_page(template, **context))


def breakable(name: str) -> Markup:
    """Allow line breaks in a name after the signs that join its parts."""
    return Markup("<wbr>").join(re.split(r"(?<=[/+_=:-])", _clean(name)))


def _clean(value: str) -> str:
    """Escape the control characters, which HTML forbids."""
    return escape(value, keep="\n\t")


def _finalize(value: object) -> object:
    return _clean(value) if isinstance(value, str) and not hasattr(value, "__html__") else value
