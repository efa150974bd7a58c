"""Looking several times: what the looks spend, and how often they decide by chance."""

import math
from dataclasses import replace

import numpy as np
import pytest

from ablations.claims import looks, verdicts
from ablations.claims.gains import Gain, sum_gains
from ablations.claims.spec import Claim
from ablations.outcomes import ReportRow, ReportTable
from ablations.writing.grids import claims_grid

BETTER = Claim("a beats b", "test", "better", (("a", "b"),))
BEST = Claim("a is best", "test", "best", (("a", "b"), ("a", "c")))
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


def make_rows(**seeds):
    """Rows with so many seeds each."""
    return {row: dict.fromkeys(range(count), np.ones(2, bool)) for row, count in seeds.items()}


def note_all_looks(claim, *studies):
    """The claim, reported at each of these outcomes in turn."""
    earlier_looks = set()
    for outcomes in studies:
        claim = replace(claim, looks=looks.recall_looks(claim, outcomes, {}, earlier_looks))
        earlier_looks = looks.note_look(claim, outcomes, {})
    return claim


def spell_plan(claim, outcomes):
    """The looks so far: seeds of each pair, and what its interval leaves out in percent."""
    plan = []
    for pair_looks in looks.plan_past_looks(claim, outcomes):
        plan.append([(look.seeds, round(100 * (1 - look.confidence), 2)) for look in pair_looks])
    return plan


def test_looks_so_far():
    """What a look spends does not depend on those that follow; a single seed shows no spread, and is none."""
    studies = [make_rows(a=seeds, b=9) for seeds in (1, 3, 3, 5, 7)]
    seen = note_all_looks(BETTER, *studies)
    assert seen.looks == ((3,), (5,))
    assert spell_plan(seen, studies[-1]) == [[(3, 1.5)], [(5, 1.0)], [(7, 1.0)]]
    assert looks.plan_past_looks(BETTER, studies[-1]) == [(looks.Look(7, 0.95),)]
    fifteen = looks.plan_past_looks(seen, make_rows(a=15, b=15))
    assert sum(1 - look.confidence for [look] in fifteen) == pytest.approx(0.05)


def test_seeds_of_one_pair_are_a_look():
    """Each pair shares its 5 % among its own looks; one whose seeds stay spends nothing more."""
    studies = [make_rows(a=9, b=2, c=seeds) for seeds in (0, 1, 2, 3, 5)]
    seen = note_all_looks(BEST, *studies)
    assert seen.looks == ((2, 2), (2, 3))
    plan = [[(2, 1.0), (2, 1.0)], [(2, 1.0), (3, 0.5)], [(2, 1.0), (5, 1.0)]]
    assert spell_plan(seen, studies[-1]) == plan


def test_a_report_with_fewer_seeds_forgets_no_look():
    three, five, seven = (make_rows(a=seeds, b=seeds) for seeds in (3, 5, 7))
    seen = note_all_looks(BETTER, three, five, three)
    assert seen.looks == ((5,),)
    assert spell_plan(seen, three) == [[(3, 5.0)]]  # the look with five seeds came after this one
    assert note_all_looks(BETTER, three, five, three, seven).looks == ((3,), (5,))
    # of a look with more seeds of one pair, that pair has those that there are
    mixed = replace(BEST, looks=((5, 3),))
    assert spell_plan(mixed, make_rows(a=9, b=3, c=5)) == [[(3, 1.5), (3, 1.5)], [(3, 1.5), (5, 1.0)]]


def test_a_pair_that_joins_a_claim_was_not_looked_at():
    alone = replace(BEST, pairs=(("a", "b"),), looks=((2,),))
    earlier_looks = looks.note_look(alone, make_rows(a=9, b=3), {})
    now = make_rows(a=9, b=5, c=3)
    for outcomes in (make_rows(a=9, b=3), now):  # at first without results
        seen = replace(BEST, looks=looks.recall_looks(BEST, outcomes, {}, earlier_looks))
        assert seen.looks == ((2, 0), (3, 0))
        earlier_looks = looks.note_look(seen, outcomes, {})
    assert spell_plan(seen, now) == [[(5, 1.0), (3, 1.5)]]
    # and nobody has added seeds after a look
    assert spell_plan(seen, make_rows(a=2, b=2, c=3)) == [[(2, 5.0), (2, 5.0)]]


def test_two_sums_of_gains_have_the_seeds_of_all_their_rows():
    gains = [Gain("a", "b"), Gain("c", "d")]
    sums = tuple(sum_gains([(1, gain)]) for gain in gains)
    claim = replace(BETTER, kind="gains_more", pairs=((sums[0].name, sums[1].name),), gain_sums=sums)
    outcomes = make_rows(a=5, b=4, c=3, d=5)
    assert looks.count_seeds(claim, outcomes) == (3,)
    found = looks.take_first_seeds(claim, outcomes, (2,))
    assert {row: list(by_seed) for row, by_seed in found.items()} == dict.fromkeys("abcd", [0, 1])


def test_seeds_that_are_added_to_one_pair_do_not_decide_by_chance():
    """Until the claim is decided; the other pair holds clearly, and keeps its seeds."""
    rng = np.random.default_rng(7)
    claim = replace(BEST, looks=((2, 4), (5, 4)))
    wrong = 0
    for _ in range(60):
        outcomes = simulate_study(rng)
        outcomes["c"] = {seed: outcomes["b"][seed] & (rng.random(150) < 0.1) for seed in range(4)}
        wrong += claims_grid.find_corrected_word(make_table(outcomes, claim), claim) != verdicts.UNRESOLVED
    assert wrong / 60 <= 0.05


def test_the_first_seeds_of_a_claim_are_those_its_pairs_share():
    seeds = {"a": (0, 3, 4), "b": range(5), "c": range(5), "d": range(5)}
    outcomes = {row: dict.fromkeys(row_seeds, np.ones(2, bool)) for row, row_seeds in seeds.items()}
    found = looks.take_first_seeds(BEST, outcomes, (1, 2))
    kept = {row: list(by_seed) for row, by_seed in found.items()}
    assert kept == {"a": [0, 3], "b": [0], "c": [0, 3], "d": [0, 1]}


def make_table(outcomes, claim):
    pictures = np.arange(len(outcomes["a"][0])).astype(str)
    rows = [ReportRow("", row, outcomes=by_seed) for row, by_seed in outcomes.items()]
    families = np.full(len(pictures), "presence")
    return ReportTable("mine", "Mine", "", (claim,), rows, pictures, families, pictures)


def test_a_remark_says_between_which_seeds_the_pairs_of_a_look_were():
    claim = replace(BEST, looks=((3, 3), (3, 5), (5, 5), (9, 9)))
    outcomes = simulate_study(np.random.default_rng(8))
    outcomes["c"] = outcomes["b"]
    first_seven = {row: dict(list(by_seed.items())[:7]) for row, by_seed in outcomes.items()}
    [verdict] = claims_grid.judge_own_claims(make_table(first_seven, claim))
    remarks = claims_grid.make_claim_line(replace(verdict, corrected_word="other"))[-1]
    assert "corrected for looks with 3, 3 to 5, 5 seeds other" in remarks


def test_a_verdict_says_what_it_would_be_without_the_looks_before_it():
    rng = np.random.default_rng(6)
    found = []
    for _ in range(40):
        outcomes = simulate_study(rng, 0.04, 600, 0.005)
        first_five = {row: dict(list(by_seed.items())[:5]) for row, by_seed in outcomes.items()}
        [verdict] = claims_grid.judge_own_claims(make_table(first_five, replace(BETTER, looks=((3,),))))
        [alone] = claims_grid.judge_own_claims(make_table(first_five, BETTER))
        assert alone.corrected_word == "" and alone.word == verdict.word
        found.append((verdict.word, verdict.corrected_word))
        remarks = claims_grid.make_claim_line(verdict)[-1]
        is_said = "corrected for looks with 3 seeds" in remarks
        assert is_said == (verdict.word != verdict.corrected_word)
    assert (verdicts.HOLDS, verdicts.UNRESOLVED) in found and (verdicts.HOLDS, verdicts.HOLDS) in found
