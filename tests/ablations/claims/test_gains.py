"""Differences of differences and trends: what they compare, against least squares, and how sure they are."""

import dataclasses
import json
import math

import numpy as np
import pytest

from ablations import report_files
from ablations.claims import gains, spec, verdicts
from ablations.claims.gains import Gain, GainSum
from compressors.errors import UsageError
from experiments.config import tables

RATES = (36, 16, 9, 4)
TABLE = """
rows:
- {label: a, overrides: [compressor=sap]}
- {label: a+embq, overrides: [compressor=sap+embq]}
- {label: b, overrides: [compressor=random]}
- {label: b+embq, overrides: [compressor=random+embq]}
- {label: c, overrides: [compressor=avg_pool]}
- {label: c+embq, overrides: [compressor=avg_pool+embq]}
tie: {points: 1, reason: so}
claims:
- text: words
  source: somebody
"""
A, B, C = (f"{{row: {label}+embq, over: {label}}}" for label in "abc")


def read_claim(tmp_path, claim: str):
    path = tmp_path / "mine.yaml"
    path.write_text(TABLE + claim)
    return spec.read_claims(tables.load_table_file(str(path), {}))[0]


def make_trend_claim(names=RATES):
    series = [Gain(f"sap+embq at {name}", f"sap at {name}") for name in names]
    late, early = gains.make_trend(series)
    return spec.Claim("", "test", spec.GAINS_GROW, ((late.name, early.name),), gain_sums=(late, early))


def test_a_difference_of_differences_is_written_out(tmp_path):
    claim = read_claim(tmp_path, f"  gains_more: {{row: b+embq, over: b, than: {A}}}")
    assert claim.statement == "(b+embq - b) > (a+embq - a)"
    assert claim.row_labels == ("b+embq", "b", "a+embq", "a")
    assert claim.row_pairs == (("b+embq", "b"), ("a+embq", "a"))
    assert claim.tie == 1.0


def test_a_trend_is_written_out(tmp_path):
    claim = read_claim(tmp_path, f"  gains_grow: [{A}, {B}, {C}]")
    # the middle one of three tells nothing of a line's rise
    assert claim.statement == "(c+embq - c) > (a+embq - a)"
    assert make_trend_claim().statement == (
        "0.9 (sap+embq at 4 - sap at 4) + 0.3 (sap+embq at 9 - sap at 9) > "
        "0.9 (sap+embq at 36 - sap at 36) + 0.3 (sap+embq at 16 - sap at 16)"
    )


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        (f"  gains_more: {A}", "gains_more: .*expected {row: ..., over: ..., than: {row: ..., over: ...}}"),
        (f"  gains_more: {{row: a+embq, over: a, than: {A}}}", "gain of 'a.embq' is compared with itself"),
        (f"  gains_more: {{row: b, over: b, than: {A}}}", "gains_more: 'b' is compared with itself"),
        ("  gains_more: {row: b+embq, over: b, than: a}", "gains_more, than: 'a': expected {row:"),
        (f"  gains_more: {{row: b+embq, of: b, than: {A}}}", "gains_more: .*expected {row: ..., over: ...}"),
        (f"  gains_grow: [{A}, {B}]", "gains_grow: .*expected a list of 3 gains or more"),
        (f"  gains_grow: {A}", "gains_grow: .*expected a list of 3 gains or more"),
        (f"  gains_grow: [{A}, {B}, {{row: d, over: a}}]", "claim 'words': no row 'd'"),
    ],
)
def test_bad_claims(tmp_path, claim, message):
    with pytest.raises(UsageError, match=message) as caught:
        read_claim(tmp_path, claim)
    assert "\n" not in str(caught.value) and "mine.yaml" in str(caught.value)


@pytest.mark.parametrize("count", [3, 4, 5, 8])
def test_a_trend_is_the_rise_of_the_least_squares_line(count):
    rng = np.random.default_rng(count)
    values = rng.normal(size=count)
    series = [Gain(f"row {number}", f"base {number}") for number in range(count)]
    value_by_gain = dict(zip(series, values))
    rise = 0.0
    for sign, gain_sum in zip((1, -1), gains.make_trend(series)):
        assert min(gain_sum.weights) > 0
        for gain, weight in zip(gain_sum.gains, gain_sum.weights):
            rise += sign * weight * value_by_gain[gain]
    slope = np.polyfit(np.arange(count), values, 1)[0]
    assert rise == pytest.approx(slope * (count - 1))


def test_seeds_are_those_that_all_rows_have():
    outcomes = {
        "a": {0: np.array([True, False]), 1: np.array([True, True])},
        "b": {1: np.array([False, True])},
    }
    combined = gains.combine_outcomes(GainSum("", (Gain("a", "b"),), (2.0,)), outcomes)
    assert list(combined) == [1] and combined[1].tolist() == [2.0, 0.0]
    assert gains.combine_outcomes(GainSum("", (Gain("a", "c"),), (1.0,)), outcomes) == {}


# ---- verdicts ----


def simulate_rates(rng, gain_points=(0, 0, 0, 0), seeds=3, pictures=300, stage_sd=0.02, seed_sd=0.01):
    """Rows with and without a query module at each rate; a pair shares the luck of its stage 1."""
    difficulty = np.clip(0.2 * rng.standard_normal(pictures), -0.2, 0.2)
    outcomes = {}
    keys = {}
    for rate, points in zip(RATES, gain_points):
        stage_luck = stage_sd * rng.standard_normal((seeds, 1))
        for label, more in ((f"sap at {rate}", 0.0), (f"sap+embq at {rate}", points / 100)):
            luck = stage_luck + seed_sd * rng.standard_normal((seeds, 1))
            chance = 0.6 + difficulty + np.clip(luck, -0.1, 0.1) + more
            outcomes[label] = dict(enumerate(rng.random((seeds, pictures)) < chance))
            keys[label] = (f"stage 1 at {rate}", label)
    return outcomes, np.full(pictures, "presence"), np.arange(pictures), keys


def judge(data, claim):
    outcomes, families, picture, keys = data
    return verdicts.judge_claims([claim], outcomes, families, picture, training_keys=keys)[0]


def test_a_growing_gain_is_seen_and_an_even_one_is_not():
    data = simulate_rates(np.random.default_rng(0), (0, 5, 10, 15), pictures=4000)
    growing = judge(data, make_trend_claim())
    assert growing.word == verdicts.HOLDS
    assert growing.low < 15 < growing.high
    data = simulate_rates(np.random.default_rng(1), (15, 10, 5, 0), pictures=4000)
    assert judge(data, make_trend_claim()).word == verdicts.FAILS
    data = simulate_rates(np.random.default_rng(2), (5, 5, 5, 5), pictures=4000)
    assert judge(data, make_trend_claim()).word == verdicts.UNRESOLVED


def test_gains_are_moderated_by_other_gains_and_not_by_their_own():
    data = simulate_rates(np.random.default_rng(3))
    larger = gains.sum_gains([(1, Gain("sap+embq at 4", "sap at 4"))])
    smaller = gains.sum_gains([(1, Gain("sap+embq at 36", "sap at 36"))])
    difference = spec.Claim(
        "", "test", spec.GAINS_MORE, ((larger.name, smaller.name),), gain_sums=(larger, smaller)
    )
    assert judge(data, difference).pairs[0].prior is None  # both are its own
    outcomes, families, picture, keys = data
    claims = [difference, make_trend_claim()]
    both = verdicts.judge_claims(claims, outcomes, families, picture, training_keys=keys)
    assert both[0].pairs[0].prior is not None  # the gains at 16 and 9
    assert both[1].pairs[0].prior is None  # all four are its own


def test_a_difference_of_gains_can_be_more_than_a_hundred_points():
    """A gain from nothing to all beside a loss of all: 200."""
    all_right = np.ones(50, bool)
    rng = np.random.default_rng(5)
    outcomes = {}
    for label in ("sap+embq at 4", "sap at 36"):
        outcomes[label] = {seed: all_right & (rng.random(50) < 0.97) for seed in range(2)}
    for label in ("sap at 4", "sap+embq at 36"):
        outcomes[label] = {seed: ~all_right for seed in range(2)}
    larger = gains.sum_gains([(1, Gain("sap+embq at 4", "sap at 4"))])
    smaller = gains.sum_gains([(1, Gain("sap+embq at 36", "sap at 36"))])
    claim = spec.Claim(
        "", "test", spec.GAINS_MORE, ((larger.name, smaller.name),), gain_sums=(larger, smaller)
    )
    verdict = judge((outcomes, np.full(50, "presence"), np.arange(50), {}), claim)
    assert 150 < verdict.low < verdict.estimate < verdict.high <= 200


def test_intervals_of_a_difference_of_gains_hold_the_truth():
    """With the prior of the trend's other gains."""
    rng = np.random.default_rng(4)
    larger = gains.sum_gains([(1, Gain("sap+embq at 4", "sap at 4"))])
    smaller = gains.sum_gains([(1, Gain("sap+embq at 36", "sap at 36"))])
    pair = ((larger.name, smaller.name),)
    claims = [
        spec.Claim("", "test", spec.GAINS_MORE, pair, gain_sums=(larger, smaller)),
        make_trend_claim(),
    ]
    hits = []
    for _ in range(300):
        outcomes, families, picture, keys = simulate_rates(rng, (0, 2, 4, 6))
        for verdict in verdicts.judge_claims(claims, outcomes, families, picture, training_keys=keys):
            hits.append(verdict.low <= 6 <= verdict.high)
    assert 0.92 <= np.mean(hits[::2]) <= 0.985  # three standard errors of 300 runs are 0.04
    assert 0.92 <= np.mean(hits[1::2]) <= 0.99


def test_a_missing_row_is_named():
    outcomes, families, picture, keys = simulate_rates(np.random.default_rng(5))
    del outcomes["sap at 9"]
    verdict = judge((outcomes, families, picture, keys), make_trend_claim())
    assert verdict.word == verdicts.NO_RESULTS and verdict.note == "no results of sap at 9"
    assert math.isnan(verdict.estimate)


def test_a_report_keeps_them():
    claim = make_trend_claim()
    entry = json.loads(json.dumps(dataclasses.asdict(claim)))
    assert report_files.load_claim(entry) == claim
    del entry["gain_sums"]  # as an earlier version wrote it
    assert report_files.load_claim(entry).gain_sums == ()
