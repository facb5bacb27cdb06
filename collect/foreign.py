"""`ForeignCode`: the one boundary to code that is not avtd3's.

Gymnasium environments and worlds of users may raise any exception, also ones of their own and
`SystemExit`, return anything, and print. Every call into them goes through here and ends with a
value or with one `WorldError` that names the call, the error, the file and the line.
"""

import contextlib
import ctypes
import importlib
import importlib.util
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from avtd3.store.errors import CheckpointError, ConfigError, RoadError, WorldError
from avtd3.store.render.text import shorten
from avtd3.store.spec import ImageSpec

SEE = "see docs/worlds.md"
LEAST_SIDE = 16  # pixels: no common CNN accepts less
LEARNER_SIDE = 36  # what the CNN of `avtd3.learn.networks` accepts
MOST_ACTION = 1e18  # its square is finite in float32
_MOST_TEXT = 1000
_T = TypeVar("_T")


class ForeignCode:
    """Calls code that is not ours, and turns whatever it raises into one error."""

    def __init__(self, name: str, module: str) -> None:
        self.name, self._module = name, module

    def call(self, place: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:  # noqa: ANN401 - any function
        """Call a function, at a place that messages name."""
        try:
            return function(*args, **options)
        except (CheckpointError, RoadError, WorldError):  # the first is of a policy that it uses
            raise
        except KeyboardInterrupt as error:
            # It is Ctrl-C only under Python's own handler: the command line installs another one.
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                raise
            raise self._failure(place, error) from error
        except BaseException as error:
            raise self._failure(place, error) from error

    def load(self, path: str) -> object:
        """Import the module and return an attribute of it, ``factory`` or ``Class.method``."""
        try:
            found = self.call("its import", importlib.import_module, self._module)
        except WorldError as error:
            missing = getattr(error.__cause__, "name", None)
            is_absent = isinstance(error.__cause__, ModuleNotFoundError) and missing
            if is_absent and f"{self._module}.".startswith(f"{missing}."):
                raise ConfigError(
                    f"world {self.name}: there is no module {missing}; install its package, "
                    "start avtd3 in the directory of the file, or add that directory to PYTHONPATH"
                ) from error
            raise
        for part in path.split("."):
            found = self.get(found, part)
            if found is None:
                problem = f"{self._module} has no {path}"
                expected = "a function or class that makes the world"
                raise ConfigError(f"world {self.name}: {problem}, expected {expected}; {SEE}")
        return found

    def get(self, made: object, attribute: str, default: object = None) -> Any:  # noqa: ANN401 - any attribute
        """Return an attribute of a foreign object, or a default if it has none."""
        return self.call(f"its attribute {attribute}", getattr, made, attribute, default)

    def discard(self, made: object) -> None:
        """Close a foreign object that cannot be used; ignore one that cannot be closed."""
        with contextlib.suppress(WorldError):
            self.call("close()", self.get(made, "close", lambda: None))

    def expect(self, kind: type[_T], value: object, place: str) -> _T:
        """Return a value that foreign code returned; raise `WorldError` if it has another type."""
        if not isinstance(value, kind):
            raise self.invalid(place, f"found {type_name(value)}, expected {kind.__name__}")
        return value

    def invalid(self, place: str, problem: str) -> WorldError:
        """Make the error for an invalid value."""
        return WorldError(f"world {self.name}: invalid result of {place}: {problem}; {SEE}")

    def _failure(self, place: str, error: BaseException) -> WorldError:
        try:
            text = f"{type(error).__name__}: {error}"
        except Exception:  # noqa: BLE001 - even its text is foreign code
            text = type(error).__name__
        text = shorten(" ".join(text.split()), _MOST_TEXT)
        return WorldError(f"world {self.name} failed in {place}: {text}{self._location(error)}")

    def _location(self, error: BaseException) -> str:
        """Return file and line of an exception, in the module's code if a frame of it is there."""
        if isinstance(error, SyntaxError):
            return f" ({error.filename}:{error.lineno})"
        frames = traceback.extract_tb(error.__traceback__)[1:]  # the first is ours
        frames = [frame for frame in frames if not frame.filename.startswith("<frozen")]
        found = None
        with contextlib.suppress(ImportError, ValueError):  # __main__ has no spec
            found = importlib.util.find_spec(self._module.partition(".")[0])
        file = Path(found.origin if found and found.origin else "")
        is_package = file.name == "__init__.py"
        theirs = [
            frame
            for frame in frames
            if Path(frame.filename) == file
            or (is_package and file.parent in Path(frame.filename).parents)
        ]
        last = (theirs or frames)[-1:]
        return f" ({last[0].filename}:{last[0].lineno})" if last else ""


def check_actions(name: str, low: Iterable[float], high: Iterable[float]) -> None:
    """Raise `ConfigError` if the bounds of the actions are too wide for a network to learn."""
    for least, most in zip(low, high, strict=True):
        if not max(-least, most) <= MOST_ACTION:  # NaN and infinity are not, either
            raise ConfigError(
                f"{name} has actions from {least:g} to {most:g}, expected finite bounds; wrap it "
                f"in RescaleAction, or rescale the actions to at most {MOST_ACTION:g}"
            )


def check_images(name: str, images: Mapping[str, ImageSpec], order: str) -> tuple[str, ...]:
    """Check that a network can be trained on the images of a foreign world; return notices."""
    return tuple(notice for image in images.values() for notice in _check_image(name, image, order))


def _check_image(name: str, image: ImageSpec, order: str) -> tuple[str, ...]:
    if min(image.height, image.width) >= LEARNER_SIDE:
        return ()
    found = f"{name} has images of {image.height}x{image.width} pixels, {image.channels} channels"
    if min(image.height, image.width) < LEAST_SIDE:
        raise ConfigError(
            f"{found}, expected at least {LEAST_SIDE} pixels on each side: no network accepts "
            f"less; check the channel order (they were read as {order}) or enlarge them"
        )
    return (f"{found}; avtd3 learn needs at least {LEARNER_SIDE} pixels on each side",)


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Send what foreign code prints, also natively and in workers, to standard error."""
    if sys.stdout is None:  # closed by the caller
        yield
        return
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        ctypes.CDLL(None).fflush(None)  # what native code has printed but not written
        os.dup2(saved, 1)
        os.close(saved)


def type_name(value: object) -> str:
    """Return the name of a value's type, for messages."""
    return "None" if value is None else type(value).__qualname__
