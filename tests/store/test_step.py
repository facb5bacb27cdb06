import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from avtd3.store.step import FrameStack


@given(st.integers(1, 5), st.integers(1, 3), st.integers(0, 9))
def test_frame_stack_equals_clamping_to_the_first_frame(size, channels, steps):
    frames = np.arange((steps + 1) * channels * 4).reshape(-1, channels, 2, 2).astype(np.uint8)
    stack = FrameStack(size)
    stack.reset(np.full((channels, 2, 2), 255, np.uint8))  # an episode before must leave no trace
    stack.reset(frames[0])
    for t in range(steps + 1):
        if t:
            stack.push(frames[t])
        places = np.maximum(0, t - (size - 1) + np.arange(size))
        expected = frames[places].reshape(size * channels, 2, 2)
        np.testing.assert_array_equal(stack.stacked(), expected)


def test_frame_stack_survives_a_world_that_reuses_its_buffer():
    stack, frame = FrameStack(2), np.zeros((1, 2, 2), np.uint8)
    stack.reset(frame)
    frame[:] = 7
    stack.push(frame)
    assert stack.stacked()[:, 0, 0].tolist() == [0, 7]
