"""`docs/faults.md` names tests that exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_test_that_the_list_of_faults_names_exists():
    named = 0
    file = ""
    for path, test in re.findall(
        r"`((?:(?:\w+/)+\w+\.py)?)(?:::(\w+))?`", (ROOT / "docs" / "faults.md").read_text()
    ):
        file = path or file
        if path or test:
            source = (ROOT / "tests" / file).read_text()
            assert f"def {test}(" in source if test else source, f"{file}::{test}"
            named += 1
    assert named > 40
