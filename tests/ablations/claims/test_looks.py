"""Looking several times: what the looks spend, and how often they decide by chance."""

import math
from dataclasses import replace

import numpy as np
import pytest

from ablations.claims import looks, verdicts
from ablations.claims.spec import Claim
from ablations.outcomes import ReportRow, ReportTable
from ablations.writing.grids import claims_grid

BETTER = Claim("a beats b", "test", "better", (("a", "b"),))
SEEDS = 10
STUDIES = 300


def simulate_study(rng, gain=0.0, pictures=150, seed_sd=0.03):
    """Outcomes of rows a and b at ten seeds; a is `gain` more often right in truth."""
    outcomes = {}
    for row, more in (("a", gain), ("b", 0.0)):
        chance = 0.6 + more + np.clip(seed_sd * rng.standard_normal((SEEDS, 1)), -0.2, 0.2)
        outcomes[row] = dict(enumerate(rng.random((SEEDS, pictures)) < chance))
    return outcomes


def judge_first_seeds(outcomes, seeds, confidence, claim=BETTER):
    pictures = len(outcomes["a"][0])
    first_seeds = {}
    for row, row_outcomes in outcomes.items():
        first_seeds[row] = {seed: row_outcomes[seed] for seed in range(seeds)}
    families = np.full(pictures, "presence")
    return verdicts.judge_claims([claim], first_seeds, families, np.arange(pictures), confidence=confidence)[
        0
    ]


def find_decision(outcomes, planned_looks):
    """The first verdict, and the seeds that it took."""
    for look in planned_looks:
        verdict = judge_first_seeds(outcomes, look.seeds, look.confidence)
        if verdict.word != verdicts.UNRESOLVED:
            return verdict.word, look.seeds
    return verdicts.UNRESOLVED, SEEDS


@pytest.mark.parametrize(
    ("first", "limit", "counts"),
    [(3, 10, [3, 6, 10]), (5, 10, [5, 10]), (2, 20, [2, 4, 8, 16, 20]), (4, 4, [4])],
)
def test_looks_double_and_spend_5_percent_together(first, limit, counts):
    planned_looks = looks.plan_looks(first, limit)
    assert [look.seeds for look in planned_looks] == counts
    assert sum(1 - look.confidence for look in planned_looks) == pytest.approx(0.05)


# without a spread of seeds, and with one of 0.03 and 0.1: mean squares of 1, 1.6 and 7 times the answers'
@pytest.mark.parametrize(("first", "pictures", "seed_sd"), [(3, 150, 0.03), (3, 150, 0.1), (2, 150, 0.1)])
def test_equal_rows_are_told_apart_in_5_percent_of_studies_at_most(first, pictures, seed_sd):
    rng = np.random.default_rng(0)
    planned_looks = looks.plan_looks(first, SEEDS)
    corrected = 0
    uncorrected = 0
    for _ in range(STUDIES):
        outcomes = simulate_study(rng, 0.0, pictures, seed_sd)
        corrected += find_decision(outcomes, planned_looks)[0] != verdicts.UNRESOLVED
        if first == 2:  # what happens to those who add a seed until it is significant
            naive_looks = [looks.Look(seeds, 0.95) for seeds in range(2, SEEDS + 1)]
            uncorrected += find_decision(outcomes, naive_looks)[0] != verdicts.UNRESOLVED
    assert corrected / STUDIES <= 0.05
    assert uncorrected / STUDIES > 0.08 or first != 2


def test_large_differences_need_few_seeds_and_smaller_ones_are_found():
    rng = np.random.default_rng(1)
    planned_looks = looks.plan_looks(3, SEEDS)
    large = [find_decision(simulate_study(rng, 0.3, 600, 0.005), planned_looks) for _ in range(20)]
    assert set(large) == {(verdicts.HOLDS, 3)}
    small = [find_decision(simulate_study(rng, 0.08, 600), planned_looks) for _ in range(40)]
    words = [word for word, _ in small]
    assert words.count(verdicts.HOLDS) >= 30 and verdicts.FAILS not in words
    assert np.mean([seeds for _, seeds in small]) < SEEDS - 1


def test_claims_that_no_look_would_decide_get_no_seeds():
    rng = np.random.default_rng(2)
    later_looks = looks.plan_looks(3, SEEDS)[1:]
    equal = judge_first_seeds(simulate_study(rng), 3, 0.985)
    assert equal.word == verdicts.UNRESOLVED
    assert not looks.can_seeds_decide(equal, later_looks)
    studies = [judge_first_seeds(simulate_study(rng, 0.08, 1000), 3, 0.985) for _ in range(10)]
    near = next(verdict for verdict in studies if verdict.word == verdicts.UNRESOLVED)
    assert looks.can_seeds_decide(near, later_looks)
    assert not looks.can_seeds_decide(near, [])  # none is to come
    # not known how much seeds differ
    alone = judge_first_seeds(simulate_study(rng), 1, 0.985)
    assert alone.pairs[0].squares is None and math.isfinite(alone.estimate)
    assert looks.can_seeds_decide(alone, later_looks)


def test_a_tie_in_reach_is_worth_seeds():
    rng = np.random.default_rng(3)
    tied = Claim("a beats b", "test", "better", (("a", "b"),), tie=6.0, tie_reason="so")
    outcomes = simulate_study(rng, pictures=3000, seed_sd=0.01)
    verdict = judge_first_seeds(outcomes, 2, 0.99, tied)
    assert verdict.word == verdicts.UNRESOLVED
    assert looks.can_seeds_decide(verdict, looks.plan_looks(3, SEEDS))
    plain = judge_first_seeds(outcomes, 2, 0.99)
    assert not looks.can_seeds_decide(plain, looks.plan_looks(3, SEEDS))


@pytest.mark.parametrize("counts", [(2, 3, 5), (3, 5, 7), (2, 3, 4, 5, 6, 7, 8, 9, 10)])
def test_looks_that_nobody_planned_share_5_percent_too(counts):
    """Also where the next look is only made because the last one has decided nothing."""
    planned_looks = looks.share_error(counts, 10)
    assert sum(1 - look.confidence for look in planned_looks) <= 0.05 + 1e-9
    rng = np.random.default_rng(4)
    wrong = 0
    for _ in range(STUDIES):
        wrong += find_decision(simulate_study(rng, 0.0, 150, 0.1), planned_looks)[0] != verdicts.UNRESOLVED
    assert wrong / STUDIES <= 0.05


def test_looks_so_far():
    """What a look spends does not depend on those that follow; a single seed shows no spread, and is none."""
    outcomes = simulate_study(np.random.default_rng(5))
    first_seven = {row: dict(list(by_seed.items())[:7]) for row, by_seed in outcomes.items()}
    seen = replace(BETTER, looks=looks.recall_looks(BETTER, first_seven, [5, 1, 3, 3, 7, 9]))
    assert seen.looks == (3, 5)
    counts = [
        (look.seeds, round(1 - look.confidence, 4)) for look in looks.plan_past_looks(seen, first_seven)
    ]
    assert counts == [(3, 0.015), (5, 0.01), (7, 0.01)]
    assert looks.plan_past_looks(BETTER, first_seven) == [looks.Look(7, 0.95)]
    fifteen = {row: dict.fromkeys(range(15), np.ones(2, bool)) for row in "ab"}
    assert sum(1 - look.confidence for look in looks.plan_past_looks(seen, fifteen)) == pytest.approx(0.05)


def test_the_first_seeds_of_a_claim_are_those_its_rows_share():
    seeds = {"a": (0, 3, 4), "b": range(5), "c": range(5)}
    outcomes = {row: dict.fromkeys(row_seeds, np.ones(2, bool)) for row, row_seeds in seeds.items()}
    found = looks.take_first_seeds(BETTER, outcomes, 2)
    assert {row: list(by_seed) for row, by_seed in found.items()} == {"a": [0, 3], "b": [0, 3], "c": [0, 1]}


def make_table(outcomes, claim):
    pictures = np.arange(len(outcomes["a"][0])).astype(str)
    rows = [ReportRow("", row, outcomes=by_seed) for row, by_seed in outcomes.items()]
    families = np.full(len(pictures), "presence")
    return ReportTable("mine", "Mine", "", (claim,), rows, pictures, families, pictures)


def test_a_verdict_says_what_it_would_be_without_the_looks_before_it():
    rng = np.random.default_rng(6)
    found = []
    for _ in range(40):
        outcomes = simulate_study(rng, 0.04, 600, 0.005)
        first_five = {row: dict(list(by_seed.items())[:5]) for row, by_seed in outcomes.items()}
        [verdict] = claims_grid.judge_own_claims(make_table(first_five, replace(BETTER, looks=(3,))))
        [alone] = claims_grid.judge_own_claims(make_table(first_five, BETTER))
        assert alone.corrected_word == "" and alone.word == verdict.word
        found.append((verdict.word, verdict.corrected_word))
        remarks = claims_grid.make_claim_line(verdict)[-1]
        is_said = "corrected for looks with 3 seeds" in remarks
        assert is_said == (verdict.word != verdict.corrected_word)
    assert (verdicts.HOLDS, verdicts.UNRESOLVED) in found and (verdicts.HOLDS, verdicts.HOLDS) in found
