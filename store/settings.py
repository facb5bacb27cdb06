"""Compare settings: what a resumed run, or a resumed collection, changed."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from avtd3.store.errors import abbreviate


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A setting with two different values."""

    setting: str
    """Its key: ``learn.td3.bc_alpha``."""
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.setting}: {abbreviate(self.before)} -> {abbreviate(self.after)}"


def differences(
    before: Mapping[str, Any], after: Mapping[str, Any], prefix: str
) -> list[Difference]:
    """Return the settings that are in both documents, with different values, as JSON has them."""
    before, after, found = as_json(before), as_json(after), list[Difference]()
    for key in (key for key in after if key in before):
        old, new = before[key], after[key]
        if isinstance(old, dict) and isinstance(new, dict) and old.keys() & new.keys():
            found += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(Difference(setting=f"{prefix}{key}", before=old, after=new))
    return found


def as_json(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a document as it is after it was stored as JSON: with lists in place of tuples."""
    stored: dict[str, Any] = json.loads(json.dumps(document, default=str))
    return stored
