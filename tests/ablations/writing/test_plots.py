"""Pictures: names that can be read, and nothing drawn where there is nothing to see."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from ablations.claims.spec import Claim
from ablations.outcomes import ReportRow, ReportTable
from ablations.writing.grids import gains_grid
from ablations.writing.grids.claims_grid import judge_table
from ablations.writing.plots import curves, family_bars, gains, intervals, pareto, plotted_rows, ranking
from experiments.figures import labels
from experiments.figures.style import GREY, render_files, render_svg


def table(rows):
    """{label: (accuracy, visual tokens, query tokens)} at two seeds."""
    rng, made = np.random.default_rng(0), []
    for label, (rate, visual, queries) in rows.items():
        outcomes = {seed: rng.random(400) < rate for seed in range(2)}
        made.append(
            ReportRow("", label, "", outcomes, [], {"visual_tokens": visual, "query_tokens": queries})
        )
    ids = np.array([f"{i // 4}#{i % 4}" for i in range(400)])
    families = np.where(np.arange(400) % 2, "reading", "presence")
    chance = {"overall": 0.3, "families": {"reading": 0.1, "presence": 0.5}}
    pictures = np.arange(400) // 4
    return ReportTable("x", "Table x", "", (), made, ids, families, pictures, chance)


@pytest.mark.parametrize("count", [1, 8, 20])
def test_no_name_covers_another_or_a_point(count):
    rng = np.random.default_rng(count)
    points = np.stack([rng.choice([100.0, 160.0, 400.0], count), rng.uniform(60, 340, count)], 1)
    taken = [labels.LabelBox(x - 4, y - 10, x + 4, y + 10) for x, y in points]
    frame = labels.LabelBox(0, 0, 600, 400)
    found = labels.arrange_labels(points, [(80.0, 12.0)] * count, taken, frame)
    assert not any(a.overlaps_box(b) for a, b in combinations(found, 2))
    assert not any(a.overlaps_box(b) for a in found for b in taken)
    assert all(box.lies_inside(frame) for box in found)
    assert all(abs((box.low + box.high) / 2 - y) < 130 for box, (_, y) in zip(found, points))


def test_a_name_stands_beside_its_point_where_there_is_room():
    (box,) = labels.arrange_labels(
        np.array([[100.0, 100.0]]),
        [(50.0, 12.0)],
        [labels.LabelBox(96, 90, 104, 110)],
        labels.LabelBox(0, 0, 300, 300),
    )
    assert box == (108, 94, 158, 106)


def test_names_of_equal_points_between_long_intervals_cover_no_other():
    """Three rows at one place beside a fourth, whose intervals are as high as the plot."""
    points = np.array([[100.0, 150.0]] * 3 + [[150.0, 140.0]])
    bars = [labels.LabelBox(x - 4, 0, x + 4, 400) for x in (100, 150)]
    frame = labels.LabelBox(60, 0, 700, 400)
    found = labels.arrange_labels(points, [(90.0, 12.0)] * 4, bars, frame)
    assert not any(a.overlaps_box(b) for a, b in combinations(found, 2))
    markers = [labels.make_marker_box(x, y) for x, y in points]
    assert not any(box.overlaps_box(marker) for box in found for marker in markers)
    assert all(box.lies_inside(frame) for box in found)


def test_pareto_needs_rows_of_different_cost():
    assert pareto.draw_pareto(table({"a": (0.5, 16, 0), "b": (0.6, 16, 0)})) is None
    assert render_svg(pareto.draw_pareto(table({"a": (0.5, 16, 0), "b": (0.6, 16, 4)}))).count("<svg") == 1


RATES = {
    "identity": (0.95, 144, 0),
    "a at 9": (0.5, 9, 0),
    "a at 36": (0.8, 36, 0),
    "a+embq at 36": (0.8, 36, 4),
    "a+embq at 9": (0.7, 9, 4),
    "b b.rate=2": (0.6, 36, 0),
    "b b.rate=4": (0.4, 9, 0),
    "c at 9": (0.6, 9, 0),
}


def test_rows_of_several_rates_are_curves():
    found = table(RATES)
    names = {curve.name: [row.label for row in curve.rows] for curve in curves.find_curves(found)}
    assert names == {  # the best with few tokens first; one rate alone is no curve
        "a+embq": ["a+embq at 9", "a+embq at 36"],
        "a": ["a at 9", "a at 36"],
        "b": ["b b.rate=4", "b b.rate=2"],
    }
    assert list(names) == ["a+embq", "a", "b"]
    panels = curves.draw_curves(found).axes
    assert [axes.get_xlabel() for axes in panels] == ["visual tokens", "visual + query tokens"]
    dashed_line, line = panels[1].lines[:2]
    assert list(dashed_line.get_xdata()) == [13, 40] and list(line.get_xdata()) == [9, 36]
    assert dashed_line.get_linestyle() == "--" and line.get_linestyle() == "-"
    assert dashed_line.get_color() == line.get_color() != panels[1].lines[2].get_color()
    assert {text.get_text() for text in panels[0].texts} == {"identity", "c at 9"}
    assert pareto.draw_pareto(found) is None  # its points would be those of the curves


def test_no_line_is_drawn_past_a_rate_that_has_no_results_yet():
    """It would seem to lie on the line."""
    found = table({**RATES, "a at 16": (0.9, 16, 0), "a at 4": (0.3, 4, 0)})
    order = ["a at 36", "a at 16", "a at 9", "a at 4"]
    found.rows.sort(key=lambda row: order.index(row.label) if row.label in order else len(order))
    curve = next(curve for curve in curves.find_curves(found) if curve.name == "a")
    assert [[row.label for row in rows] for rows in curves.split_at_gaps(found, curve)] == [order[::-1]]
    found.rows[1].outcomes.clear()
    curve = next(curve for curve in curves.find_curves(found) if curve.name == "a")
    pieces = [[row.label for row in rows] for rows in curves.split_at_gaps(found, curve)]
    assert pieces == [["a at 4", "a at 9"], ["a at 36"]]
    names = [text.get_text() for text in curves.draw_curves(found).legends[0].get_texts()]
    assert sorted(names) == ["a", "a+embq", "b", "with query module"]


def test_a_single_rate_looks_like_its_compressor():
    found = table({**RATES, "b+embq at 36": (0.7, 36, 4)})
    styles = curves.pick_styles(curves.find_curves(found))
    assert list(styles) == ["a", "b"]
    axes = curves.draw_curves(found).axes[1]
    looks = {}
    for container in axes.containers:
        point = container.lines[0]
        looks[float(point.get_xdata()[0])] = (point.get_color(), point.get_marker())
    assert looks == {40: styles["b"], 144: (GREY, "o"), 9: (GREY, "o")}


def test_the_legend_says_what_dashed_is():
    def list_names(rows):
        return [text.get_text() for text in curves.draw_curves(table(rows)).legends[0].get_texts()]

    assert list_names(RATES) == ["a+embq", "a", "b", "with query module"]
    plain = {label: row for label, row in RATES.items() if "+" not in label}
    assert "with query module" not in list_names(plain)


def test_names_of_single_rates_leave_lines_free():
    rows = {"c at 16": (0.62, 16, 0)}
    for name, rate in (("a", 0.58), ("b", 0.66)):
        rows |= {f"{name} at {tokens}": (rate, tokens, 0) for tokens in (9, 36)}
    figure = curves.draw_curves(table(rows))
    FigureCanvasAgg(figure).draw()
    axes = figure.axes[0]
    [name] = axes.texts
    box = labels.LabelBox(*Text.get_window_extent(name).extents)
    lines = labels.cover_lines(axes, axes.lines)
    assert len(lines) > 2 * labels.LINE_STEPS and not any(map(box.overlaps_box, lines))


def test_boxes_cover_a_line():
    axes = Figure().add_axes((0, 0, 1, 1))
    [line] = axes.plot([0, 1, 1], [0, 1, 0])
    boxes = labels.cover_lines(axes, [line])
    for place in ((0, 0), (0.3, 0.3), (0.77, 0.77), (1, 0.4), (1, 0)):
        x, y = axes.transData.transform(place)
        assert any(labels.LabelBox(x - 1, y - 1, x + 1, y + 1).overlaps_box(box) for box in boxes)
    x, y = axes.transData.transform((0.5, 0.3))
    assert not any(labels.LabelBox(x - 1, y - 1, x + 1, y + 1).overlaps_box(box) for box in boxes)


def test_the_picture_of_claims_says_what_its_colours_mean():
    found = table({"a": (0.2, 16, 0), "b": (0.8, 16, 0), "c": (0.8, 16, 0)})
    pairs = [("b", "a"), ("a", "c"), ("b", "c")]
    claims = [Claim(f"{row} beats {other}", "me", "better", ((row, other),)) for row, other in pairs]
    judged = judge_table(found, claims)
    assert [verdict.word for verdict in judged] == ["holds", "does not hold", "not resolved"]
    for count in (3, 2):
        figure = intervals.draw_claims([("Table x", verdict) for verdict in judged[:count]])
        drawn = {}
        for handle, text in zip(figure.legends[0].legend_handles, figure.legends[0].get_texts()):
            drawn[text.get_text()] = handle.get_color()
        words = [verdict.word for verdict in judged[:count]]
        assert drawn == {word: intervals.VERDICT_COLOURS[word] for word in words}


def test_query_tokens_are_no_rate():
    rows = {}
    for rate, tokens in ((2, 36), (4, 9)):
        for queries in (2, 8):
            rows[f"sap+embq sap.rate={rate} embq.num_queries={queries}"] = (0.5, tokens, queries)
        rows[f"qformer qformer.num_queries={tokens}"] = (0.4, tokens, 0)
    names = {curve.name: len(curve.rows) for curve in curves.find_curves(table(rows))}
    assert names == {"sap+embq embq.num_queries=2": 2, "sap+embq embq.num_queries=8": 2, "qformer": 2}


def test_costs_that_all_rows_have_are_drawn():
    found = table({label: row for label, row in RATES.items() if row[2] == 0})
    for number, row in enumerate(found.rows):
        row.efficiency.update(prefill_flops=number * 1e6, ttft_ms=5.0)
    words = ["visual tokens", "MFLOP of a prefill", "ms to the first token"]
    assert [axes.get_xlabel() for axes in curves.draw_curves(found).axes] == words
    del found.rows[0].efficiency["ttft_ms"]
    assert [axes.get_xlabel() for axes in curves.draw_curves(found).axes] == words[:2]


def test_one_compressor_has_no_curves():
    assert curves.draw_curves(table({"a at 9": (0.5, 9, 0), "a at 36": (0.8, 36, 0)})) is None
    assert curves.draw_curves(table({"a": (0.5, 9, 0), "b": (0.8, 36, 0)})) is None


def test_many_of_one_cost_are_ranked_instead():
    rows = {name: (0.3 + 0.05 * i, 16, 0) for i, name in enumerate("abcdefg")}
    few = {name: rows[name] for name in "abcdef"}
    more = {"b+embq": (0.9, 16, 4), "identity": (0.95, 144, 0), "blind": (0.1, 0, 0)}
    assert pareto.draw_pareto(
        table({**rows, "identity": more["identity"]})
    )  # nothing beside it with a module
    assert pareto.draw_pareto(table({**few, **more})) and ranking.draw_ranking(table({**few, **more})) is None
    found = table({**rows, **more})
    assert pareto.draw_pareto(found) is None and render_svg(ranking.draw_ranking(found)).count("<svg") == 1
    assert [(host, len(there)) for host, there in ranking.group_by_compressor(found).items()] == [
        ("identity", 1),
        ("b", 2),
        ("g", 1),
        ("f", 1),
        ("e", 1),
        ("d", 1),
        ("c", 1),
        ("a", 1),
        ("blind", 1),
    ]
    warmed = ranking.group_by_compressor(table({**rows, **more, "b+embq warmed": (0.5, 16, 4)}))
    assert [row.label for row in warmed["b"]] == ["b", "b+embq"]
    assert [row.label for row in warmed["b warmed"]] == ["b+embq warmed"]
    fused = ranking.group_by_compressor(table({**rows, **more, "b+llava_mini": (0.5, 16, 1)}))
    assert [row.label for row in fused["b"]] == ["b", "b+embq"]
    assert [row.label for row in fused["b+llava_mini"]] == ["b+llava_mini"]
    for row in found.rows[:3]:
        del row.outcomes[1]  # one seed: no interval
    assert render_svg(ranking.draw_ranking(found)).count("<svg") == 1


def test_rows_of_one_cell_are_one_point():
    found = table({"a": (0.5, 16, 0), "b": (0.5, 16, 0), "blind": (0.3, 0, 0)})
    found.rows[1].outcomes = found.rows[0].outcomes
    found.rows[0].keys, found.rows[1].keys = {0: "x", 1: "y"}, {0: "x", 1: "y"}
    assert [row.label for row in plotted_rows.find_distinct_rows(found)] == ["a"]
    found.rows[1].keys = {0: "x", 1: "z"}  # other cells, whose answers happen to be equal
    assert [row.label for row in plotted_rows.find_distinct_rows(found)] == ["a", "b"]


def test_gains_pair_rows_by_name():
    rows = {
        "a": (0.4, 16, 0),
        "a+embq": (0.8, 16, 4),
        "b": (0.6, 16, 0),
        "b+embq": (0.6, 16, 4),
        "c": (0.5, 16, 0),
    }
    found = {each.claim.text: each for each in gains_grid.judge_gains(table(rows))}
    assert list(found) == ["a", "b"]
    assert found["a"].low > 15 and found["b"].low < 0 < found["b"].high
    assert [gains_grid.is_decided(each) for each in found.values()] == [True, False]
    assert gains.draw_gain(table({"a": (0.5, 16, 0), "a+embq": (0.6, 16, 4)})) is None
    warmed = gains_grid.judge_gains(table({**rows, "a+embq warmed": (0.9, 16, 4)}))
    assert {each.claim.text: each.pairs[0].other for each in warmed}["a warmed"] == "a"
    fused = table({**rows, "a+llava_mini": (0.7, 16, 1)})
    assert {each.claim.text for each in gains_grid.judge_gains(fused)} == {"a", "b", "a+llava_mini"}
    assert "EmbQ" not in gains.draw_gain(fused).axes[0].get_title(loc="left")
    assert "EmbQ" in gains.draw_gain(table(rows)).axes[0].get_title(loc="left")
    rates = {"a at 9": (0.4, 9, 0), "a+embq at 9": (0.7, 9, 4), "a, 6 epochs": (0.5, 16, 0)}
    rates["a+embq, 6 epochs"] = (0.9, 16, 4)
    at_rates = gains_grid.judge_gains(table({**rows, **rates}))
    assert {each.claim.text: each.pairs[0].other for each in at_rates} == {
        "a": "a",
        "b": "b",
        "a at 9": "a at 9",
        "a, 6 epochs": "a, 6 epochs",
    }
    longer = {"a+embq warmed, 6 epochs": (0.9, 16, 4), "a+embq warmed, 9 epochs": (0.9, 16, 4)}
    of_longer = gains_grid.judge_gains(table({**rows, **rates, **longer}))
    partners = {each.claim.text: each.pairs[0].other for each in of_longer}
    assert partners["a warmed, 6 epochs"] == "a, 6 epochs"
    assert "a warmed, 9 epochs" not in partners  # "a" has not been trained as long
    # other settings would be part of the gain
    settings = {"a+embq a.rate=9": (0.7, 9, 4), "a.rate=3": (0.5, 16, 0)}
    assert {each.claim.text for each in gains_grid.judge_gains(table({**rows, **settings}))} == {"a", "b"}
    alone = table(rows)
    for row in alone.rows:
        del row.outcomes[1]
    assert not any(map(gains_grid.is_decided, gains_grid.judge_gains(alone))) and gains.draw_gain(alone)


def test_a_gain_has_the_interval_that_its_claim_has():
    rows = {"a": (0.4, 16, 0), "a+embq": (0.6, 16, 4), "b": (0.5, 16, 0), "b+embq": (0.6, 16, 4)}
    made = table({**rows, "c": (0.5, 16, 0), "d": (0.7, 16, 0), "e": (0.6, 16, 0)})
    pairs = [("a+embq", "a"), ("c", "b"), ("d", "e")]
    made = replace(made, claims=tuple(Claim(row, "", "better", ((row, other),)) for row, other in pairs))
    claimed = judge_table(made, made.claims)[0]
    gain = gains_grid.judge_gains(made)[0]
    assert claimed.pairs[0].prior is not None
    assert gain.pairs == claimed.pairs and (gain.low, gain.high) == (claimed.low, claimed.high)


def test_gains_are_written_at_the_seeds_that_both_rows_have():
    rows = {"a": (0.4, 16, 0), "a+embq": (0.6, 16, 4), "b": (0.5, 16, 0), "b+embq": (0.6, 16, 4)}
    made = table(rows)
    a, with_queries, b, _ = made.rows
    a.outcomes[2] = np.ones(400)  # no such seed of the other row
    a.block = with_queries.block = "16 tokens"
    del b.outcomes[1]
    grid = gains_grid.make_gains_grid(made)
    assert grid.title == "Table x: what EmbQ adds"
    assert grid.header[-2:] == ["presence", "reading"]
    (block, first), (_, second) = grid.lines
    assert (block, first[0], first[1]) == ("16 tokens", "a", "2")
    without = np.mean([a.outcomes[seed].mean() for seed in range(2)])
    gained = np.mean([row.mean() for row in with_queries.outcomes.values()]) - without
    assert first[2] == f"{100 * without:.1f}"
    assert first[4] == f"{100 * gained:+.1f}"
    assert second[1] == "1" and second[5].endswith("*")
    reading = made.families == "reading"
    read = with_queries.outcomes[0][reading].mean() + with_queries.outcomes[1][reading].mean()
    read -= a.outcomes[0][reading].mean() + a.outcomes[1][reading].mean()
    assert first[-1] == f"{50 * read:+.1f}"
    assert any(note.startswith("*: one seed in common") for note in grid.notes)
    assert gains_grid.make_gains_grid(table({"a": (0.5, 16, 0)})) is None


def test_families_need_several():
    found = table({"a": (0.5, 16, 0)})
    assert render_svg(family_bars.draw_families(found)).count("<svg") == 1
    found.families[:] = "reading"
    assert family_bars.draw_families(found) is None


def test_the_same_picture_has_the_same_bytes():
    rows = {"a": (0.5, 16, 0), "b": (0.6, 20, 4)}
    for draw_plot in (pareto.draw_pareto, family_bars.draw_families):
        assert render_files(draw_plot(table(rows))) == render_files(draw_plot(table(rows)))
    assert render_files(curves.draw_curves(table(RATES))) == render_files(curves.draw_curves(table(RATES)))
