"""Formatters and lines of text, against results known by hand."""

import math

import numpy as np
import pytest

from avtd3.store.render.text import (
    bars,
    columns,
    duration,
    file_size,
    frame_blocks,
    largest,
    number,
    percent,
    plural,
    printable,
    shade_strip,
    shorten,
    sparkline,
    wrap,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0.0, "0"),
        (-0.0, "0"),
        (0.25, "0.25"),
        (324.4, "324"),
        (999.6, "1,000"),
        (5171.4, "5,171"),
        (9999.6, "10k"),
        (12345.0, "12.3k"),
        (999_960.0, "1M"),
        (-3e6, "-3M"),
        (1e-9, "1.0e-09"),
        (1e20, "1.0e+20"),
        (math.inf, "inf"),
        (math.nan, "nan"),
    ],
)
def test_numbers_are_short(value, text):
    assert number(value) == text


def test_numbers_have_as_many_digits_as_asked():
    assert number(123.456, 4) == "123.5"
    assert number(150.2, 2) == "150"
    assert number(1.2345e-7, 4) == "1.23e-07"


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.0, "0%"),
        (0.002, "0.2%"),
        (0.0994, "9.9%"),
        (0.0996, "10%"),
        (0.5, "50%"),
        (0.997, "99.7%"),
        (1.0, "100%"),
        (-0.06, "-6.0%"),
    ],
)
def test_shares_are_whole_percents_except_near_the_ends(share, text):
    assert percent(share) == text


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (999.7, "1 kB"), (26_512_345, "26.5 MB"), (2.5e12, "2.50 TB")],
)
def test_sizes_have_decimal_units(size_bytes, text):
    assert file_size(size_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.5, "0.5 s"), (90.0, "1.5 min"), (4_500_000.0, "1,250.0 h")]
)
def test_durations_have_the_largest_fitting_unit(seconds, text):
    assert duration(seconds) == text


def test_nouns_agree_with_their_count():
    assert plural(1, "step") == "1 step"
    assert plural(1200, "step") == "1,200 steps"
    assert plural(0, "quantity", "quantities") == "0 quantities"


def test_names_from_files_are_short_and_harmless():
    assert shorten("x" * 500, 10) == "x" * 9 + "…"
    assert printable("a\x1b[2J\n" + "x" * 1000) == r"a\x1b[2J\n" + "x" * 394


def test_lines_are_wrapped_without_breaking_names():
    name = "a-b" * 40
    assert wrap(f"see {name} for more", "  ") == ["see", f"  {name}", "  for more"]


def test_cells_are_aligned():
    assert columns([("a", "10", "x"), ("bcd", "5", "")], "<><") == ["a    10  x", "bcd   5"]


def test_the_rest_of_many_values_is_one_row():
    counts = {f"n{n}": 10 - n for n in range(5)}
    assert largest(counts, 3) == [("n0", 10), ("n1", 9), ("n2", 8), ("2 others", 13)]
    assert largest(counts, 5)[-1] == ("n4", 6)


def test_the_longest_bar_is_the_largest_value_and_none_is_empty():
    assert bars([("a", 100.0, "100"), ("bb", 1.0, "1"), ("c", 0.0, "0")]) == [
        "a   100  " + "#" * 24,
        "bb    1  #",
        "c     0",
    ]


@pytest.mark.parametrize(
    ("counts", "width", "drawn"),
    [
        # every bin with a value is seen, and none without
        ([1, 9, 4], 3, ".@="),
        ([2, 0, 1], 3, "@ +"),
        ([1], 4, "@@@@"),
        ([1, 2], 4, "++@@"),
    ],
)
def test_a_strip_is_darkest_where_most_values_are(counts, width, drawn):
    assert shade_strip(np.array(counts, np.float64), width) == drawn


def test_a_sparkline_never_hides_a_spike():
    values = np.zeros(1000)
    values[437] = 5.0
    line = sparkline(values, 50)
    assert len(line) == 50
    assert line.count("█") == 1
    assert line.index("█") == 437 // 20


def test_a_sparkline_skips_what_is_not_finite():
    assert sparkline(np.array([0.0, np.nan, 1.0, np.inf]), 4) == "▁ █ "
    assert sparkline(np.full(3, np.nan), 4) == ""
    assert sparkline(np.ones(3), 9, unicode=False) == "___"


def test_frames_become_blocks_of_colour_or_shades():
    frame = np.zeros((3, 22, 22), np.uint8)
    frame[0, :, 11:] = 255
    rows = frame_blocks(frame, colours=True)
    assert len(rows) == 11
    assert "38;5;196" in rows[0]
    assert "38;5;232" in rows[0]
    (shades,) = set(frame_blocks(frame, colours=False))
    assert shades == " " * 11 + "@" * 11
