"""List the links of the documents that lead to other sites; with ``--check``, ask for each.

Without a network, ``--check`` reports that nothing was reached and still succeeds. It exits with 1
if a site answers that a page does not exist.
"""

import concurrent.futures
import re
import sys
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parents[2]
URL = re.compile(r"https?://[^\s)>\]\"'`]+")
TIMEOUT_S = 10.0
GONE = (404, 410)


def external_links() -> dict[str, list[str]]:
    """Return each URL in the documents, with the documents that contain it."""
    found: dict[str, list[str]] = {}
    for path in (*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/**/*.md"))):
        for url in sorted(set(URL.findall(path.read_text("utf-8")))):
            found.setdefault(url.rstrip(".,;:"), []).append(path.relative_to(ROOT).as_posix())
    return found


def ask(url: str) -> tuple[bool, str]:
    """Ask for a page; return whether it is known not to exist, and the answer."""
    request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "avtd3-docs"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            return False, str(answer.status)
    except urllib.error.HTTPError as error:
        return error.code in GONE, str(error.code)
    except OSError as error:
        return False, f"not reached ({getattr(error, 'reason', error)})"


def main() -> int:
    """Print the links; return the exit code."""
    links = external_links()
    if "--check" not in sys.argv[1:]:
        for url, documents in sorted(links.items()):
            print(url, *documents)
        return 0
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, links))
    for url, (_, answer) in sorted(zip(links, answers, strict=True)):
        print(answer, url, *links[url])
    return int(any(is_gone for is_gone, _ in answers))


if __name__ == "__main__":
    sys.exit(main())
