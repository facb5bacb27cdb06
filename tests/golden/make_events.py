"""Make the golden dataset with events: ``python tests/golden/make_events.py``.

Events came after format 1 had its golden dataset, which has none and stays as it is.
"""

from pathlib import Path

import numpy as np

from avtd3.store.dataset import Dataset
from avtd3.store.events import Event
from avtd3.store.spec import EpisodeSpec
from avtd3.store.step import Observation
from avtd3.store.writer import SegmentWriter

LENGTH = 3
EVENTS = (
    Event(step=0, kind="route", value=200.0, x_m=0.0, y_m=1.75),
    Event(step=1, kind="wrong_way", value=0.5, x_m=0.5, y_m=-1.75),
    Event(step=2, kind="collision", subject="vehicle.audi.tt", value=7.5, x_m=1.0, y_m=-2.0),
    Event(step=2, kind="completion", value=1.0, x_m=1.0, y_m=-2.0),
)
"""Of the second episode; the first has none."""


def main() -> None:
    """Write the dataset, if it is not there."""
    path = Path(__file__).parent / "events-v1"
    spec = EpisodeSpec(
        image=None,
        vector_names=("speed_mps",),
        vector_scales=(10.0,),
        action_names=("steer",),
        action_low=(-1.0,),
        action_high=(1.0,),
        reward_terms=(),
        control_period_s=0.05,
    )
    dataset = Dataset.create(path, spec)
    if dataset.segment_ids():
        raise SystemExit(f"{path} exists; a golden dataset is never made again")
    with SegmentWriter(
        dataset, collector="golden", provenance={}, clock=lambda: 1_800_000_000.0
    ) as writer:
        for episode, events in enumerate(((), EVENTS)):
            writer.begin(
                Observation(vector=np.zeros(1, np.float32)),
                index=episode,
                seed=2 * episode,
                scenario=0,
                world="road",
                town="town-000007",
                weather="clear",
                driver="expert",
            )
            for row in range(LENGTH):
                after = Observation(vector=np.full(1, 0.1 * (row + 1), np.float32))
                writer.step(np.zeros(1, np.float32), 1.0, after, terminated=row == LENGTH - 1)
            writer.end("collision", events)


if __name__ == "__main__":
    main()
