"""Show the examples of docstrings as code."""

from typing import Any

from griffe import Extension, Object


class Examples(Extension):
    """Names the sections ``Example:`` as griffe expects them, in the plural."""

    def on_object(self, *, obj: Object, **_: Any) -> None:  # noqa: ANN401 - griffe's own arguments
        """Change the docstring of an object that was read."""
        if obj.docstring is not None:
            obj.docstring.value = obj.docstring.value.replace("Example:\n", "Examples:\n")
