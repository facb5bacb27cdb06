"""XML from strangers: no document types, so no entities that grow when they are expanded."""

import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import NoReturn


class PlainTree(ET.TreeBuilder):
    """A tree builder that stops at a document type, before any entity is declared.

    Args:
        refuse: Makes the error to raise, from the document type's name.
    """

    def __init__(self, refuse: Callable[[str], Exception]) -> None:
        super().__init__()
        self._refuse = refuse

    def doctype(self, name: str, pubid: str | None, system: str | None) -> NoReturn:
        """Refuse."""
        raise self._refuse(name)
