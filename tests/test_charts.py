"""Values lie where a drawing says they do."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scopenote.flows.dashboard.charts import (
    SHADES,
    Frame,
    Scale,
    draw_areas,
    draw_histogram,
    round_values,
    shade_limits,
    shade_of,
    share_words,
)
from scopenote.flows.dashboard.health_grid import MOST_ROWS, Measure, kind_of, lay_out_health
from scopenote.flows.dashboard.overview_charts import density_chart
from scopenote.store.overview import SaeHealth
from scopenote.store.records import FeatureId
from scopenote.store.score_spread import DENSITY_BINS, Cell, DensityPlot, Dot


def test_an_axis_that_goes_up_has_its_low_end_below() -> None:
    scale = Scale(0, 1, 100, 10)
    assert [scale.place(value) for value in (0, 0.5, 1)] == [100, 55, 10]


def test_what_lies_beyond_an_axis_is_put_at_its_end() -> None:
    scale = Scale(0, 1, 0, 10)
    assert (scale.place(-3), scale.place(7)) == (0, 10)


def test_powers_of_ten_are_equally_far_apart_on_a_logarithmic_axis() -> None:
    scale = Scale(1e-4, 1e-1, 0, 300, is_log=True)
    assert [scale.place(10.0**power) for power in (-4, -3, -2, -1)] == [0, 100, 200, 300]


def test_an_axis_of_one_value_has_it_in_the_middle() -> None:
    assert Scale(0.5, 0.5, 0, 10).place(0.5) == 5


@given(
    low=st.floats(-1e6, 1e6),
    length=st.floats(1e-3, 1e6),
    n=st.integers(2, 12),
)
def test_round_values_lie_within_and_equally_far_apart(low: float, length: float, n: int) -> None:
    high = low + length
    values = round_values(low, high, n)
    slack = 1e-6 * max(abs(low), abs(high), 1)
    assert all(low - slack <= value <= high + slack for value in values)
    steps = [b - a for a, b in pairwise(values)]
    assert all(step == pytest.approx(steps[0], rel=1e-3, abs=1e-9) for step in steps)
    assert n / 2 - 1 <= len(values) <= 2 * n + 1


def test_ticks_are_written_as_people_write_them() -> None:
    assert [tick.words for tick in Scale(-0.2, 1, 0, 1).ticks(6)] == [
        "−0.2", "0", "0.2", "0.4", "0.6", "0.8", "1",
    ]  # fmt: skip
    assert [share_words(share) for share in (1, 0.05, 1e-3, 2e-7)] == [
        "100%",
        "5%",
        "0.1%",
        "0.00002%",
    ]


def spoken(low: float, high: float, n: int = 6) -> list[str]:
    return [tick.words for tick in Scale(low, high, 0, 1, is_log=True).ticks(n) if tick.words]


def test_a_logarithmic_axis_names_as_many_values_as_it_has_room_for() -> None:
    assert spoken(1e-5, 1e-1) == ["0.001%", "0.01%", "0.1%", "1%", "10%"]
    assert spoken(1e-3, 2e-2) == ["0.1%", "0.2%", "0.5%", "1%", "2%"]
    assert len(spoken(1e-30, 1)) <= 9


@given(first=st.floats(1e-12, 1e-2), decades=st.floats(0.2, 12))
def test_marks_of_a_logarithmic_axis_lie_on_it_in_order(first: float, decades: float) -> None:
    scale = Scale(first, first * 10**decades, 0, 100, is_log=True)
    places = [tick.at for tick in scale.ticks(6)]
    assert places == sorted(places)
    assert all(0 <= place <= 100 for place in places)


def test_the_highest_bar_reaches_the_top_and_the_lowest_can_be_seen() -> None:
    drawing = draw_histogram({0: 1, 5: 100_000, 19: 50_000}, 20)
    low, high, middle = drawing.bars
    assert high.y == drawing.top
    assert low.height > 1
    assert middle.height == pytest.approx((drawing.base - drawing.top) / 2, abs=0.01)


def test_bars_say_from_where_to_where_they_count() -> None:
    (bar,) = draw_histogram({7: 3}, 20).bars
    assert (bar.low, bar.high, bar.n) == (0.35, 0.4, 3)


def test_scores_below_zero_make_room_for_themselves() -> None:
    drawing = draw_histogram({-3: 1, 0: 5}, 20)
    assert drawing.bars[0].low == -0.15
    assert all(bar.x >= 0 and bar.x + bar.width <= drawing.width for bar in drawing.bars)
    (mark,) = draw_histogram({0: 5}, 20, [("shuffled", -0.3)]).marks
    assert mark.at == 10


def test_marked_values_stand_in_lines_of_their_own_within_the_drawing() -> None:
    marks = [("median", 0.9), ("null", None), ("shuffled", 0.0), ("other", 0.3), ("high", 0.95)]
    drawing = draw_histogram({10: 5}, 20, marks)
    assert [(mark.name, mark.line, mark.is_left) for mark in drawing.marks] == [
        ("shuffled", 0, False),
        ("other", 1, False),
        ("high", 2, True),
        ("median", 3, True),
    ]


def test_a_histogram_of_nothing_has_no_bars() -> None:
    assert draw_histogram({}, 20).bars == ()


@given(most=st.integers(1, 10_000_000))
def test_the_legend_says_from_which_count_a_shade_is_used(most: int) -> None:
    limits = shade_limits(most)
    assert limits[0] == (1, 1) or most < SHADES**2
    for shade, least in limits:
        assert shade_of(least, most) == shade
        assert least == 1 or shade_of(least - 1, most) < shade
    assert shade_of(most, most) == limits[-1][0]


def test_cells_touch_each_other() -> None:
    frame = Frame.of((1e-4, 1e-1), (0.0, 1.0))
    one, right, above = draw_areas(frame, [(-24, 3, 1), (-23, 3, 1), (-24, 4, 1)], 8, 20)
    assert one.x + one.width == pytest.approx(right.x, abs=0.02)
    assert above.y + above.height == pytest.approx(one.y, abs=0.02)
    assert (one.low_x, one.low_y) == (pytest.approx(1e-3), 0.15)


def plot_of(points: list[tuple[float, float]], n: int) -> DensityPlot:
    """Some of these points as dots, all of them in cells."""
    counts: dict[tuple[int, int], int] = {}
    for density, score in points:
        place = (
            math.floor(math.log10(density) * DENSITY_BINS),
            min(19, math.floor(score * 20)),
        )
        counts[place] = counts.get(place, 0) + 1
    cells = tuple(Cell(*place, count) for place, count in counts.items())
    dots = tuple(Dot(FeatureId("toy/1", i), *point, None) for i, point in enumerate(points[:n]))
    return DensityPlot(len(points), cells, dots)


_POINTS = st.lists(
    st.tuples(st.floats(1e-8, 0.99), st.floats(-1, 1)), min_size=2, max_size=40
)  # fmt: skip


@given(points=_POINTS)
def test_every_dot_lies_in_a_cell_that_counts_it(points: list[tuple[float, float]]) -> None:
    chart = density_chart(plot_of(points, len(points) - 1))
    assert chart is not None
    assert sum(area.n for area in chart.areas) == len(points)
    assert sum(sum(row.counts) for row in chart.rows) == len(points)
    for placed in chart.dots:
        assert any(
            area.x - 0.1 <= placed.x <= area.x + area.width + 0.1
            and area.y - 0.1 <= placed.y <= area.y + area.height + 0.1
            for area in chart.areas
        )
    frame = chart.frame
    assert all(area.x >= frame.left and area.y >= frame.top for area in chart.areas)


def test_a_plot_of_every_feature_needs_no_cells() -> None:
    chart = density_chart(plot_of([(0.01, 0.5), (0.02, 0.6)], 2))
    assert chart is not None and (chart.areas, chart.limits) == ((), ())
    assert density_chart(DensityPlot(0, (), ())) is None


def sae(layer: int, source: str, site: str = "res", median: float | None = 0.5) -> SaeHealth:
    name = f"gemma-2-2b/{source}"
    return SaeHealth(name, "gemma-2-2b", site, layer, 16_384, 71.0, 0.2, 100, 90, 80, 70, median)


def test_few_saes_need_no_grid() -> None:
    saes = [sae(layer, f"{layer}-gemmascope-res-16k") for layer in range(MOST_ROWS)]
    assert lay_out_health(saes, None, has_scores=True) is None


def test_saes_of_a_kind_stand_in_a_row_and_those_of_a_layer_in_a_column() -> None:
    saes = [
        sae(layer, f"{layer}-gemmascope-{site}-16k", site, layer / 26)
        for layer in range(26)
        for site in ("res", "mlp")
    ]
    grid = lay_out_health([*saes, sae(3, "3-gemmascope-res-16k-l0-22")], None, has_scores=True)
    assert grid is not None and grid.measure is Measure.MEDIAN
    assert grid.layers == tuple(range(26))
    assert [name for name, _ in grid.rows] == ["gemmascope-mlp-16k", "gemmascope-res-16k"]
    _, residual = grid.rows[1]
    assert [len(squares) for squares in residual[:5]] == [1, 1, 1, 2, 1]
    assert (residual[0][0].shade, residual[25][0].shade) == (1, 5)
    assert residual[13][0].words == ".50"


def test_a_grid_shows_what_it_is_asked_for() -> None:
    saes = [sae(layer, f"{layer}-x", median=None) for layer in range(26)]
    shown = {each: lay_out_health(saes, each, has_scores=False) for each in Measure}
    words = {each: grid.rows[0][1][0][0].words for each, grid in shown.items() if grid}
    assert words == {
        Measure.MEDIAN: "–",
        Measure.LABELLED: "89",
        Measure.ALIVE: "90",
        Measure.FVU: ".20",
        Measure.L0: "71",
    }


def test_an_sae_of_ones_own_is_of_the_kind_of_its_site() -> None:
    assert kind_of(sae(3, "my-own")) == "res, 16,384 wide"
