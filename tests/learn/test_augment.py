import pytest
import torch
from torch.nn import functional

from avtd3.learn.batch import draw_shifts, shift_frames
from avtd3.learn.networks import to_pixels

PAD = 4


def frames_of(size=5, planes=4, height=36, width=40):
    generator = torch.Generator().manual_seed(0)
    shape = (size, planes, height, width)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def as_published(frames, shift, pad):
    """DrQ-v2's `RandomShiftsAug` for given draws: pad, then sample bilinearly (square images)."""
    size, _, height, _ = frames.shape
    x = functional.pad(frames.double(), (pad,) * 4, "replicate")
    eps = 1.0 / (height + 2 * pad)
    line = torch.linspace(-1.0 + eps, 1.0 - eps, height + 2 * pad, dtype=torch.float64)[:height]
    line = line[None].repeat(height, 1)[..., None]
    base = torch.cat([line, line.transpose(0, 1)], dim=2)[None].repeat(size, 1, 1, 1)
    drawn = (shift.flip(1) + pad)[:, None, None, :].double() * 2.0 / (height + 2 * pad)
    return functional.grid_sample(x, base + drawn, padding_mode="zeros", align_corners=False)


def test_it_is_the_published_shift():
    frames = frames_of(40, height=36, width=36)
    shift, _ = draw_shifts(PAD, 40, torch.Generator().manual_seed(2), torch.device("cpu"))
    wanted = as_published(frames, shift, PAD)
    torch.testing.assert_close(shift_frames(frames, shift, PAD).double(), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("planes", [1, 3, 4])
@pytest.mark.parametrize("move", [(0, 0), (4, -4), (-4, 4), (-3, -1), (2, 0)])
def test_every_pixel_comes_from_the_shifted_place_or_the_border(planes, move):
    frames = frames_of(2, planes)
    moved = shift_frames(frames, torch.tensor([move, (1, 1)]), PAD)
    for y in range(36):
        for x in range(0, 40, 3):
            row, column = min(max(y + move[0], 0), 35), min(max(x + move[1], 0), 39)
            assert torch.equal(moved[0, :, y, x], frames[0, :, row, column])


def test_parts_of_a_window_are_shifted_and_widened_like_any_frames():
    window = frames_of(planes=5)
    shift = torch.tensor([[1, 2]] * 5)
    part = shift_frames(window[:, 1:], shift, PAD)
    assert torch.equal(part, shift_frames(window[:, 1:].contiguous(), shift, PAD))
    pixels = to_pixels(part, torch.float32)
    assert pixels.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(pixels.to(torch.uint8), part)


def test_shifts_are_uniform_independent_and_follow_the_generator():
    device = torch.device("cpu")
    one, other = draw_shifts(PAD, 20_000, torch.Generator().manual_seed(1), device)
    for drawn in (one, other):
        for axis in range(2):
            counts = torch.bincount(drawn[:, axis] + PAD, minlength=9)
            assert len(counts) == 9
            assert (counts - 20_000 / 9).abs().max() < 300
    together = torch.corrcoef(torch.cat([one, other], 1).T.double()) - torch.eye(4)
    assert together.abs().max() < 0.05
    again, _ = draw_shifts(PAD, 20_000, torch.Generator().manual_seed(1), device)
    assert torch.equal(one, again)
