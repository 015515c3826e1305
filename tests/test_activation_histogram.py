"""The chart of a feature's activations: its bars, and what its axis says."""

from __future__ import annotations

from scopenote.flows.dashboard.activation_histogram import HEIGHT, WIDTH, make_histogram

EDGES = (0.5, 1.0, 2.0, 4.0, 8.0)


def test_empty_bins_at_the_ends_are_left_out() -> None:
    chart = make_histogram((0, 50, 0, 1, 0), EDGES, 6.5)
    assert chart is not None
    assert len(chart.bars) == 3
    assert (chart.low, chart.high, chart.most) == (1.0, 6.5, 50)
    assert [bar.title for bar in chart.bars] == [
        "1.00 to 2.00: 50 tokens",
        "2.00 to 4.00: 0 tokens",
        "4.00 to 6.50: 1 token",
    ]


def test_bars_are_as_high_as_they_count_and_what_is_there_is_seen() -> None:
    chart = make_histogram((100, 50, 0, 1), EDGES, 6.5)
    assert chart is not None
    assert [bar.height for bar in chart.bars] == [HEIGHT, HEIGHT / 2, 0.0, 1.5]
    assert all(bar.y + bar.height == HEIGHT for bar in chart.bars)
    assert chart.bars[-1].x + chart.bars[-1].width <= WIDTH


def test_counts_without_edges_are_still_shown() -> None:
    chart = make_histogram((3, 4), None, 6.5)
    assert chart is not None
    assert (chart.low, chart.bars[0].title) == (None, "3 tokens")


def test_nothing_is_drawn_of_nothing() -> None:
    assert make_histogram((0, 0), EDGES, None) is None
    assert make_histogram((), EDGES, None) is None
