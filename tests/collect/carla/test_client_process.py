import pickle

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from avtd3.collect.carla.client_process import pack, unpack
from avtd3.collect.driving.world import VehicleState, WorldFrame

NUMBERS = st.floats(allow_nan=False)  # including infinite ones, as the gap has without a vehicle
VEHICLES = st.builds(
    VehicleState,
    x_m=NUMBERS,
    y_m=NUMBERS,
    yaw_rad=NUMBERS,
    speed_mps=NUMBERS,
    acceleration_mps2=NUMBERS,
    lateral_acceleration_mps2=NUMBERS,
    steer=NUMBERS,
)
FRAMES = st.builds(
    WorldFrame,
    frame_id=st.integers(),
    sim_time_s=NUMBERS,
    image=arrays.arrays(np.uint8, arrays.array_shapes(min_dims=3, max_dims=3)),
    vehicle=VEHICLES,
    collision=st.text(),
    off_road=st.booleans(),
    wrong_way=st.booleans(),
    lane_invasions=st.integers(),
    lead_gap_m=NUMBERS,
    lead_speed_mps=NUMBERS,
)


def values(frame):
    """All of a frame in a form that can be compared."""
    names = sorted(set(WorldFrame.__slots__) - {"image"})
    return [getattr(frame, name) for name in names], frame.image.shape, frame.image.tobytes()


@given(FRAMES)
def test_a_frame_comes_out_of_the_pipe_as_it_went_in(frame):
    assert values(unpack(pickle.loads(pickle.dumps(pack(frame))))) == values(frame)
