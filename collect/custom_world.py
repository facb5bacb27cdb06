"""Worlds that users bring: load one by name, recognise its kind, and check what it returns.

A world is named ``module:factory``, or by an entry point in the group ``avtd3.worlds``. The factory
returns a driving `World`, on which avtd3 puts the driving task, or an `Environment` with actions,
observations and a reward of its own. docs/worlds.md is the tutorial.

Only a name that the user gives is imported. Datasets and policies never name code to import.
"""

import dataclasses
import functools
import importlib.metadata
import inspect
import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.checks import MOST
from avtd3.collect.drivers import Driver, is_expert_driving
from avtd3.collect.driving.driving_env import DrivingEnvironment
from avtd3.collect.driving.expert import ExpertConfig, TakeoverConfig
from avtd3.collect.driving.task import TaskConfig
from avtd3.collect.driving.world import Surroundings, VehicleState, World, WorldFrame, WorldStart
from avtd3.collect.environment import Environment, ResetResult
from avtd3.collect.foreign import SEE, ForeignCode, check_actions, check_images, type_name
from avtd3.collect.maps.route import Route
from avtd3.collect.maps.scenarios import Scenario, ScenarioConfig
from avtd3.collect.rollout import Rollout
from avtd3.collect.scores import EpisodeScore
from avtd3.store.episode_table import OWN_ATTRIBUTES, EpisodeInfo
from avtd3.store.errors import Avtd3Error, ConfigError, SpecError, WorldError, abbreviate
from avtd3.store.events import Event, check_events
from avtd3.store.spec import IMAGE, EpisodeSpec, ImageSpec
from avtd3.store.step import Observation, Step
from avtd3.store.step_labels import StepLabels
from avtd3.store.writer import StepChecker, as_bool

if TYPE_CHECKING:
    from PIL import Image

ENTRY_POINT_GROUP = "avtd3.worlds"
REFERENCE = re.compile(r"(?P<module>[^\W\d]\w*(\.[^\W\d]\w*)*):(?P<factory>[^\W\d]\w*(\.\w+)*)")
"""``package.module:factory``."""
_T = TypeVar("_T")
_MISSING = object()
_ORDER = "(channels, rows, columns)"
_FRAME_NUMBERS = ("frame_id", "sim_time_s", "lane_invasions", "lead_gap_m", "lead_speed_mps")
_NO_VEHICLE = ("lead_gap_m", math.inf)
_OWN_ATTRIBUTES = (
    {field.name for field in dataclasses.fields(EpisodeInfo)} | OWN_ATTRIBUTES.keys()
) - {"town", "weather"}
_SCORE_NAMES = {field.name for field in dataclasses.fields(EpisodeScore)}

# Name, expected value, and number of positional arguments of a method.
_ENVIRONMENT_MEMBERS = (
    ("spec", "an EpisodeSpec", None),
    ("reset", "a method reset(seed, index) that returns a ResetResult", 2),
    ("step", "a method step(action) that returns a Step", 1),
)
_WORLD_MEMBERS = (
    ("control_period_s", "a number of seconds above 0", None),
    ("image_shape", "a tuple (channels, height, width)", None),
    ("reset", "a method reset(scenario, seed) that returns a WorldStart", 2),
    ("step", "a method step(action) that returns a WorldFrame", 1),
)


def installed_worlds() -> dict[str, importlib.metadata.EntryPoint]:
    """Return the entry points of all installed worlds, by name."""
    return {point.name: point for point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)}


def open_custom_world(
    name: str, options: Mapping[str, Any], worker: int = 0
) -> "CustomWorld | CustomEnvironment":
    """Import a user's factory, call it, and wrap what it returns in checks."""
    point = None if REFERENCE.fullmatch(name) else installed_worlds().get(name)
    reference = point.value if point else name
    match = REFERENCE.fullmatch(reference)
    if match is None:
        raise ConfigError(f"world {name!r} is {reference!r}, expected MODULE:FACTORY; {SEE}")
    code = ForeignCode(name, match["module"])
    factory = code.load(match["factory"])
    if not callable(factory):
        raise ConfigError(
            f"world {name}: {match['factory']} is {type(factory).__name__}, expected a function "
            f"or class that makes the world; {SEE}"
        )
    fitting = _fitting_options(name, factory, options, worker)
    try:
        made = code.call("its factory", factory, **fitting)
    except WorldError as error:
        if isinstance(error.__cause__, Avtd3Error):  # a user may refuse options by our errors
            raise error.__cause__ from None
        raise
    version = _distribution(match["module"])
    try:
        return _wrap(made, code, f"{reference} ({version})" if version else reference)
    except Avtd3Error:
        code.discard(made)
        raise


def check_environment(
    environment: object, *, episodes: int = 2, steps: int = 200, reproducible: bool = True
) -> None:
    """Check an environment or a driving world of your own by driving it at random.

    Use it in your tests: it calls `reset` and `step` as avtd3 does and checks all that they return.

    Args:
        environment: An `Environment`, a `World`, or an object with the same methods.
        episodes: Number of episodes.
        steps: Most steps of each episode.
        reproducible: Whether to drive each episode twice and require the same bytes.

    Raises:
        ConfigError: If a method or attribute is missing.
        WorldError: If a returned value is invalid, an error is raised, or the two drives differ.

    Example:
        >>> from avtd3.collect import RoadWorld
        >>> check_environment(RoadWorld(), episodes=1, steps=20)
    """
    kind = type(environment)
    made = _wrap(environment, ForeignCode(kind.__qualname__, kind.__module__), kind.__qualname__)
    checked = as_environment(made, TaskConfig(), ScenarioConfig(), ExpertConfig())
    for index in range(episodes):
        first = _drive(checked, index, steps)
        if reproducible and (second := _drive(checked, index, steps)) != first:
            pairs = enumerate(zip(first, second, strict=False))
            step = next((n for n, (a, b) in pairs if a != b), min(len(first), len(second)))
            raise WorldError(
                f"world {kind.__qualname__}: episode seed {index} differs in observation {step} "
                "when it is driven again, expected the same bytes; in reset(), make all state "
                "anew and take random numbers from np.random.default_rng(seed)"
            )


def as_environment(
    made: World | Environment,
    task: TaskConfig,
    scenario: ScenarioConfig,
    expert: ExpertConfig,
    takeover: TakeoverConfig | None = None,
) -> Environment:
    """Return an environment as it is, and a driving world with the driving task on it."""
    if isinstance(made, Environment):
        return made
    simulator = made.simulator if isinstance(made, CustomWorld) else ""
    return DrivingEnvironment(made, task, scenario.resolve(), expert, simulator, takeover)


def _drive(environment: Environment, seed: int, steps: int) -> list[object]:
    """Drive an episode at random; return a comparable value for each observation."""
    rollout = Rollout(environment, seed, seed)
    driver, rng = environment.driver("random"), np.random.default_rng(seed)
    seen: list[object] = [(_bytes(rollout.start.observation), dict(rollout.start.attributes))]
    for step in itertools.islice(rollout.drive(driver, "random", rng), steps):
        terms = None if step.reward_terms is None else step.reward_terms.tolist()
        end = (step.terminated, step.truncated, step.end_reason)
        seen.append((_bytes(step.observation), step.reward, terms, end))
    return seen


def _bytes(observation: Observation) -> tuple[bytes | None, ...]:
    parts = (*observation.images.values(), observation.vector)
    return tuple(None if part is None else part.tobytes() for part in parts)


def _fitting_options(
    name: str, factory: Callable[..., object], options: Mapping[str, Any], worker: int
) -> dict[str, Any]:
    """Return the keyword arguments for a factory: the options, and the worker if it wants it."""
    try:
        signature = inspect.signature(factory)
    except ValueError:  # a built-in without a signature
        return dict(options)
    given = dict(options)
    if "worker" in signature.parameters:
        given.setdefault("worker", worker)
    try:
        signature.bind(**given)
    except TypeError as error:
        raise ConfigError(
            f"world {name}: world_options do not fit its factory: {error}; "
            f"found {', '.join(given) or 'none'}, expected {signature}"
        ) from error
    return given


@functools.cache
def _distribution(module: str) -> str:
    """Return name and version of the distribution that installs a module; empty if none does."""
    names = importlib.metadata.packages_distributions().get(module.partition(".")[0], [])
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in sorted(set(names)))


def _wrap(made: object, code: ForeignCode, origin: str) -> "CustomWorld | CustomEnvironment":
    """Recognise what a user's factory returned by its attributes, and wrap it."""
    if code.get(made, "spec", _MISSING) is not _MISSING:
        return CustomEnvironment(made, code, origin)
    if any(code.get(made, name, _MISSING) is not _MISSING for name, _, _ in _WORLD_MEMBERS[:2]):
        return CustomWorld(made, code, origin)
    raise ConfigError(
        f"world {code.name}: found {type_name(made)}, expected an environment (with spec, reset, "
        f"step) or a driving world (with control_period_s, image_shape, reset, step); {SEE}"
    )


def _check_members(
    made: object, code: ForeignCode, members: tuple[tuple[str, str, int | None], ...]
) -> None:
    """Check that an object has all required attributes and methods."""
    for name, expected, arguments in members:
        value = code.get(made, name, _MISSING)
        problem = ""
        if value is _MISSING:
            problem = f"has no {name}"
        elif arguments is not None and not callable(value):
            problem = f"has {name} = {type_name(value)}"
        elif arguments is not None:
            try:
                inspect.signature(value).bind(*range(arguments))
            except TypeError:
                problem = f"has {name}{inspect.signature(value)}"
            except ValueError:  # a built-in without a signature
                continue
        if problem:
            found = f"{type(made).__qualname__} {problem}"
            raise ConfigError(f"world {code.name}: {found}, expected {expected}; {SEE}")


def _of_user(name: str, kind: type) -> Any:  # noqa: ANN401 - as in `Environment`
    """Return a property whose value is that of the user's environment, or our default."""

    def read(environment: "CustomEnvironment") -> object:
        default = getattr(super(CustomEnvironment, environment), name)
        return environment.read_attribute(kind, name, default)

    return property(read)


class CustomEnvironment(Environment):
    """A user's environment: every call is guarded and every returned value is checked."""

    setting = _of_user("setting", str)
    scenario = _of_user("scenario", int)
    scenario_count = _of_user("scenario_count", int)
    has_time_limit = _of_user("has_time_limit", bool)

    def __init__(self, made: object, code: ForeignCode, origin: str) -> None:
        _check_members(made, code, _ENVIRONMENT_MEMBERS)
        self._made: Any = made
        self._code, self._origin = code, origin
        self.spec: EpisodeSpec = code.get(made, "spec")
        if not isinstance(self.spec, EpisodeSpec):
            raise ConfigError(
                f"world {code.name}: spec is {type_name(self.spec)}, expected an EpisodeSpec; {SEE}"
            )
        name = code.get(made, "name", Environment.name)
        self.name = code.name if name == Environment.name else code.call("its name", str, name)
        check_actions(f"world {code.name}", self.spec.action_low, self.spec.action_high)
        self._notices = check_images(f"world {code.name}", self.spec.images, _ORDER)
        self._checker = StepChecker(self.spec)
        self._steps = 0

    def reset(self, seed: int, index: int = 0) -> ResetResult:
        """Start an episode, and check the first observation and the attributes."""
        self._steps = 0
        result = self._code.call("reset()", self._made.reset, seed, index)
        result = self._code.expect(ResetResult, result, "reset()")
        try:
            self._checker.check_observation(result.observation, 0)
            EpisodeInfo(attributes=result.attributes)
        except (SpecError, AttributeError, TypeError) as error:
            raise self._code.invalid("reset()", str(error)) from error
        if wrong := sorted(_OWN_ATTRIBUTES & result.attributes.keys()):
            problem = f"avtd3 sets the attribute {wrong[0]} itself; rename it"
            raise self._code.invalid("reset()", problem)
        return result

    def step(self, action: NDArray[np.float32]) -> Step:
        """Apply an action, and check the step."""
        place = f"step() after {self._steps} steps"
        step = self._code.call(place, self._made.step, action)
        step = self._code.expect(Step, step, place)
        self._steps += 1
        try:
            self._checker.check_action(step.action)
            self._checker.check_reward(step.reward, step.reward_terms)
            self._checker.check_observation(step.observation, self._steps)
            is_over = as_bool(step.terminated), as_bool(step.truncated)
        except (SpecError, TypeError, ValueError, OverflowError) as error:
            raise self._code.invalid(place, str(error)) from error
        if all(is_over):
            raise self._code.invalid(place, "both terminated and truncated are true")
        if step.end_reason and not any(is_over):
            problem = f"end_reason is {step.end_reason!r} before the last step"
            raise self._code.invalid(place, problem)
        return step

    @property
    def simulator(self) -> str:
        """The user's description, and the module, factory and version that were loaded."""
        return f"{self.read_attribute(str, 'simulator', super().simulator)}, from {self._origin}"

    @property
    def notices(self) -> tuple[str, ...]:
        """Sentences about the current episode."""
        return (*self._notices, *map(str, self.read_attribute(tuple, "notices", super().notices)))

    def driver(self, base: str) -> Driver:
        """Make one of the user's drivers, or a random one."""
        driver = self._code.call("driver()", self._get("driver", super().driver), base)
        return _CustomDriver(driver, base, self._code)

    def teacher(self) -> Driver | None:
        """Make the user's expert that says what it would have done, if there is one."""
        found = self._code.call("teacher()", self._get("teacher", super().teacher))
        return None if found is None else _CustomDriver(found, "teacher", self._code)

    def takeover(self, policy: Driver) -> Driver:
        """Make the user's driver that replaces a policy outside its bounds, if there is one."""
        make = self._get("takeover", None)
        if make is None:
            return super().takeover(policy)
        return _CustomDriver(self._code.call("takeover()", make, policy), "takeover", self._code)

    def labels(self) -> StepLabels | None:
        """Return what else the user knows of the steps so far; the writer checks it."""
        found = self._code.call("labels()", self._get("labels", super().labels))
        return None if found is None else self._code.expect(StepLabels, found, "labels()")

    def measures(self) -> Mapping[str, float]:
        """Return measurements of the episode so far."""
        found = self._code.call("measures()", self._get("measures", super().measures))
        if not isinstance(found, Mapping) or not all(
            isinstance(name, str) and isinstance(value, int | float) and abs(value) <= MOST
            for name, value in found.items()
        ):
            problem = f"found {abbreviate(found)}, expected finite numbers"
            raise self._code.invalid("measures()", problem)
        if wrong := sorted(_SCORE_NAMES & found.keys()):
            problem = f"avtd3 sets {wrong[0]} itself; rename it"
            raise self._code.invalid("measures()", problem)
        return dict(found)

    def events(self) -> tuple[Event, ...]:
        """Return what happened in the episode so far."""
        events = self._get("events", super().events)
        found = self._code.call("events()", lambda: tuple(events()))
        for event in found:
            self._code.expect(Event, event, "events()")
        try:
            check_events(found, self._steps)
        except (SpecError, TypeError) as error:
            raise self._code.invalid("events()", str(error)) from error
        return tuple(found)

    @property
    def legend(self) -> Sequence[tuple[tuple[int, int, int], str]]:
        """Return the colours of the user's pictures."""
        found = self._get("legend", ())
        try:
            return [((int(r), int(g), int(b)), str(text)) for (r, g, b), text in found]
        except (TypeError, ValueError, OverflowError) as error:
            expected = "expected pairs of a colour (red, green, blue) and a text"
            raise self._code.invalid("legend", f"found {abbreviate(found)}, {expected}") from error

    def picture(self, action: NDArray[np.float32], title: str) -> "Image.Image":
        """Draw the present moment."""
        from PIL import Image

        function = self._get("picture", super().picture)
        picture = self._code.call("picture()", function, action, title)
        return self._code.expect(Image.Image, picture, "picture()")

    def close(self) -> None:
        """Release the simulator."""
        self._code.call("close()", self._get("close", super().close))

    def _get(self, name: str, default: Any) -> Any:  # noqa: ANN401 - any attribute
        """Return an attribute of the user's object; a default if it has none or inherits ours."""
        if inspect.getattr_static(self._made, name, None) is vars(Environment)[name]:
            return default
        return self._code.get(self._made, name, default)

    def read_attribute(self, kind: type[_T], name: str, default: object) -> _T:
        """Return an attribute of the user's object as another type."""
        found: _T = self._code.call(f"its attribute {name}", kind, self._get(name, default))
        return found


class _CustomDriver:
    """A user's driver, with guarded calls."""

    def __init__(self, driver: Any, base: str, code: ForeignCode) -> None:  # noqa: ANN401 - of the user
        self._driver, self._place, self._code = driver, f"act() of driver {base}", code

    @property
    def expert_drove(self) -> bool:
        return is_expert_driving(self._driver)

    def reset(self, rng: np.random.Generator) -> None:
        self._code.call(f"reset() before {self._place}", self._driver.reset, rng)

    def act(self, observation: Observation) -> NDArray[np.float32]:
        action: NDArray[np.float32] = self._code.call(
            self._place, lambda: np.asarray(self._driver.act(observation), np.float32)
        )
        return action


class CustomWorld:
    """A user's driving world: every call is guarded and every returned value is checked."""

    def __init__(self, made: object, code: ForeignCode, origin: str) -> None:
        _check_members(made, code, _WORLD_MEMBERS)
        self._made: Any = made
        self._code = code
        self.name = code.call("its name", str, code.get(made, "name", code.name))
        self.simulator = f"{self.name}, from {origin}"
        self.control_period_s: float = code.get(made, "control_period_s")
        self.image_shape: tuple[int, int, int] = code.get(made, "image_shape")
        period, shape = self.control_period_s, self.image_shape
        is_shape = isinstance(shape, tuple) and len(shape) == 3
        is_valid = (
            isinstance(period, int | float) and 0.0 < period <= MOST,
            is_shape and all(isinstance(size, int) and size > 0 for size in shape),
        )
        for (name, expected, _), is_ok in zip(_WORLD_MEMBERS, is_valid, strict=False):
            if not is_ok:
                found = f"{name} is {abbreviate(getattr(self, name))}"
                raise ConfigError(f"world {code.name}: {found}, expected {expected}; {SEE}")
        image = ImageSpec(channels=shape[0], height=shape[1], width=shape[2])
        self._notices = check_images(f"world {code.name}", {IMAGE: image}, _ORDER)
        self._route: Route | None = None
        self._steps = 0

    @property
    def notices(self) -> tuple[str, ...]:
        """Sentences about the current episode's roads and traffic."""
        found = self._code.get(self._made, "notices", ())
        return (*self._notices, *self._code.call("its attribute notices", tuple, found))

    def reset(self, scenario: Scenario, seed: int) -> WorldStart:
        """Start an episode, and check its route and first frame."""
        self._steps = 0
        start = self._code.call("reset()", self._made.reset, scenario, seed)
        start = self._code.expect(WorldStart, start, "reset()")
        self._route = self._code.expect(Route, start.route, "reset(), route")
        self._check_frame(start.frame, "reset()")
        for name in ("town", "weather"):
            self._code.expect(str, getattr(start, name), f"reset(), {name}")
        return start

    def step(self, action: NDArray[np.float32]) -> WorldFrame:
        """Apply an action, and check the frame."""
        place = f"step() after {self._steps} steps"
        frame = self._code.call(place, self._made.step, action)
        self._steps += 1
        return self._check_frame(frame, place)

    def surroundings(self) -> Surroundings:
        """Return what is around the car; the route alone if the user's world does not say."""
        function = self._code.get(self._made, "surroundings", None)
        if function is not None:
            found = self._code.call("surroundings()", function)
            return self._code.expect(Surroundings, found, "surroundings()")
        assert self._route is not None, "reset() comes first"
        return Surroundings(lanes=(self._route.points,), others=np.zeros((0, 3)))

    def close(self) -> None:
        """Release the simulator."""
        self._code.call("close()", self._code.get(self._made, "close", lambda: None))

    def _check_frame(self, frame: object, place: str) -> WorldFrame:
        code, checked = self._code, self._code.expect(WorldFrame, frame, place)
        image = code.expect(np.ndarray, checked.image, f"{place}, image")
        if image.shape != self.image_shape or image.dtype != np.uint8:
            found = f"{image.dtype} {image.shape}"
            raise code.invalid(place, f"image is {found}, expected uint8 {self.image_shape}")
        vehicle = code.expect(VehicleState, checked.vehicle, f"{place}, vehicle")
        code.expect(str, checked.collision, f"{place}, collision")
        numbers = {name: getattr(vehicle, name) for name in VehicleState.__slots__}
        numbers |= {name: getattr(checked, name) for name in _FRAME_NUMBERS}
        if checked.collision_frame_id is not None:
            numbers["collision_frame_id"] = checked.collision_frame_id
        for name, value in numbers.items():
            is_number = isinstance(value, int | float | np.integer | np.floating)
            if not is_number or not (abs(value) <= MOST or (name, value) == _NO_VEHICLE):
                problem = f"{name} is {abbreviate(value)}, expected a finite number"
                raise code.invalid(place, problem)
        return checked
