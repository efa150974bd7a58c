"""What pairs tell of each other's seeds: recovery of known priors, and coverage in simulated studies."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import special

from ablations.claims import moderation, verdicts
from ablations.claims.moderation import ReferencePair, find_prior, fit_prior
from ablations.claims.spec import Claim
from ablations.claims.statistics import MeanSquares, RowComparison, SeedPrior

SEEDS = 3
PICTURES = 500
ANSWER_VARIANCE = 0.12  # of a row's accuracy at a seed, in points squared: single answers, as in the study
STUDIES = 500

# rows by the stage 1 that they share, and the pairs that claims compare
LAYOUTS = {
    "a few rows": ((0, 1, 2, 2), ((0, 1), (2, 0), (3, 1), (3, 2))),
    "one block": ((0,) * 8, tuple((0, other) for other in range(1, 8))),
    "blocks": (
        (0, 1, 2, 2, 2, 2, 2, 2, 2),
        ((0, 1), (2, 1), (3, 0), (4, 2), (5, 2), (5, 4), (6, 7), (6, 8)),
    ),
    "many rows": (
        tuple(range(30)),
        (*((0, other) for other in range(1, 30)), *((row, row + 1) for row in range(1, 29, 2))),
    ),
}


def draw_nothing(_, count):
    return np.zeros(count)


def draw_equal(_, count):
    return np.full(count, 0.5)


def draw_unequal(rng, count):
    return 0.4 * np.exp(0.5 * rng.normal(size=count))


def draw_heavy_tailed(rng, count):
    return 0.4 / np.sqrt(rng.chisquare(3, count) / 3)


def draw_one_unsteady(rng, count):
    spreads = np.full(count, 0.4)
    spreads[rng.integers(count)] = 5.0  # as the committed study's qformer
    return spreads


SPREADS = {
    "no seed variance": draw_nothing,
    "equal": draw_equal,
    "unequal": draw_unequal,
    "heavy tails": draw_heavy_tailed,
    "one unsteady row": draw_one_unsteady,
}


def make_comparison(row, other, differences, disagreement=2 * ANSWER_VARIANCE):
    """A comparison as its differences per seed (S,) make it; pictures add nothing."""
    seeds = len(differences)
    between = PICTURES * float(np.var(differences, ddof=1)) if seeds > 1 else 0.0
    residual = PICTURES * disagreement
    return RowComparison(
        row=str(row),
        other=str(other),
        seeds=tuple(range(seeds)),
        pictures=PICTURES,
        estimate=float(np.mean(differences)),
        picture_variance=math.nan,
        squares=MeanSquares(between, residual, residual),
    )


def make_references(accuracies, blocks, label_pairs):
    """The pairs of rows of these accuracies (rows, S), which share a stage where they are of one block."""
    references = []
    for row, other in label_pairs:
        comparison = make_comparison(row, other, accuracies[row] - accuracies[other])
        shared = int(blocks[row] == blocks[other])
        references.append(ReferencePair(frozenset((str(row), str(other))), shared, comparison))
    return references


def find_half_width(pair):
    """Half the t-interval over seeds."""
    variance = pair.moderated_squares.seeds / (pair.pictures * len(pair.seeds))
    return special.stdtrit(min(pair.seed_freedom, 1e9), 0.975) * math.sqrt(variance)


def simulate_coverage(layout, draw_spreads, studies):
    """Of each study (studies,): the share of pairs whose interval holds the truth, and the mean half width
    over that from own seeds."""
    rng = np.random.default_rng(0)
    blocks, label_pairs = layout
    blocks = np.array(blocks)
    shares = []
    widths = []
    for _ in range(studies):
        # every row's true accuracy is 0: luck of its stage 1, of its own training, of single answers
        block_luck = rng.normal(size=(blocks.max() + 1, SEEDS))
        block_luck *= 2 * draw_spreads(rng, len(block_luck))[:, None]
        row_luck = rng.normal(size=(len(blocks), SEEDS)) * draw_spreads(rng, len(blocks))[:, None]
        answer_luck = rng.normal(size=(len(blocks), SEEDS)) * math.sqrt(ANSWER_VARIANCE)
        accuracies = block_luck[blocks] + row_luck + answer_luck
        references = make_references(accuracies, blocks, label_pairs)
        hits = []
        half_widths = []
        own_half_widths = []
        for reference in references:
            moderated = replace(reference.comparison, prior=find_prior(reference, references))
            half_widths.append(find_half_width(moderated))
            own_half_widths.append(find_half_width(reference.comparison))
            hits.append(abs(moderated.estimate) <= half_widths[-1])
        shares.append(np.mean(hits))
        widths.append(np.sum(half_widths) / np.sum(own_half_widths))
    return np.array(shares), np.array(widths)


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_moderated_intervals_hold_the_truth_in_93_to_97_percent(layout, spread):
    studies = 200 if layout == "many rows" else STUDIES  # a study of many pairs tells more
    shares, widths = simulate_coverage(LAYOUTS[layout], SPREADS[spread], studies)
    # pairs of a study share rows, so studies are what is drawn
    error = shares.std(ddof=1) / math.sqrt(studies)
    assert error < 0.008
    assert 0.93 - 2 * error <= shares.mean() <= 0.97 + 2 * error
    # where one row of a few is unsteady, there is little to learn
    most_width = 1.1 if spread == "one unsteady row" else 1.0
    assert widths.mean() < most_width
    if layout == "many rows":
        assert widths.mean() < 0.9


@pytest.mark.parametrize("times", [2, 3, 5])
@pytest.mark.parametrize("layout", ["a few rows", "one block", "many rows"])
def test_intervals_of_an_unsteady_row_hold_the_truth_in_90_percent(layout, times):
    """A row whose pairs vary `times` as much as the others' from seed to seed."""
    rng = np.random.default_rng(1)
    blocks, label_pairs = LAYOUTS[layout]
    usual_variance = 0.4**2
    pair_variance = 2 * (usual_variance + ANSWER_VARIANCE)
    spreads = np.full(len(blocks), math.sqrt(usual_variance))
    unsteady = label_pairs[-1][0]
    spreads[unsteady] = math.sqrt((times**2 - 1) * pair_variance + usual_variance)
    hits = []
    for _ in range(200):
        luck = rng.normal(size=(len(blocks), SEEDS))
        answer_luck = rng.normal(size=luck.shape) * math.sqrt(ANSWER_VARIANCE)
        accuracies = luck * spreads[:, None] + answer_luck
        references = make_references(accuracies, blocks, label_pairs)
        for reference in references:
            if str(unsteady) in reference.rows:
                moderated = replace(reference.comparison, prior=find_prior(reference, references))
                hits.append(abs(moderated.estimate) <= find_half_width(moderated))
    error = math.sqrt(0.1 * 0.9 / 200)  # pairs of a study share the row
    assert np.mean(hits) > 0.9 - error


@pytest.mark.parametrize(("ratio", "degrees"), [(1.0, 4.0), (6.0, 12.0), (0.5, 30.0)])
def test_a_known_prior_is_recovered(ratio, degrees):
    rng = np.random.default_rng(1)
    ratios = ratio * rng.f(4, degrees, 100_000)
    prior = fit_prior(ratios, np.full(len(ratios), 4))
    assert prior.ratio == pytest.approx(ratio, rel=0.05)
    assert prior.degrees == pytest.approx(degrees, rel=0.15)


def test_equal_variances_are_pooled_wholly():
    """Ratios that vary no more than chance makes them: infinitely many degrees of freedom."""
    prior = fit_prior(np.full(9, 2.0), np.full(9, 2))
    assert math.isinf(prior.degrees)
    # the mean of log F with 2 degrees of freedom is Euler's constant below log 1
    assert prior.ratio == pytest.approx(2.0 * math.exp(np.euler_gamma))


@pytest.mark.parametrize("value", [1e-4, 0.02, 1.0, 30.0])
def test_inverse_of_trigamma(value):
    assert special.polygamma(1, moderation.invert_trigamma(value)) == pytest.approx(value)


def make_reference(row, other, spread, shared=0, seeds=3):
    differences = spread * np.linspace(-1, 1, seeds)
    return ReferencePair(frozenset((row, other)), shared, make_comparison(row, other, differences))


def test_a_pair_learns_from_others_of_its_kind_alone():
    calm = [make_reference("a", "b", 0.4), make_reference("c", "d", 0.5), make_reference("e", "f", 0.45)]
    wild = [make_reference("g", "h", 3.0, 1), make_reference("i", "j", 2.5, 1)]
    prior = find_prior(calm[0], [*calm, *wild])  # of a pair that is steadier than the others
    assert prior == find_prior(calm[0], calm)
    # nor from itself, by whatever name
    assert prior == find_prior(calm[0], [*calm, make_reference("b", "a", 4.0)])
    # two pairs without a row of its own, 2 degrees each
    assert prior.degrees == 4.0
    assert find_prior(wild[0], [*calm, *wild]) is None  # a single other


def test_unsteady_pairs_keep_their_own_variance():
    calm = [make_reference(f"{n}", f"{n}'", 0.3 + 0.02 * n) for n in range(8)]
    unsteady = make_reference("q", "q'", 8.0)
    assert find_prior(unsteady, [*calm, unsteady]).degrees < 1e-6


def test_reliance_falls_without_a_step():
    calm = [make_reference(f"{n}", f"{n}'", 0.3 + 0.02 * n) for n in range(8)]
    degrees = []
    for spread in np.linspace(0.1, 2.0, 400):
        degrees.append(find_prior(make_reference("q", "q'", spread), calm).degrees)
    assert degrees[0] == degrees[50] == 16.0  # all of eight pairs with two degrees each
    assert all(before >= after for before, after in zip(degrees, degrees[1:]))
    assert max(before - after for before, after in zip(degrees, degrees[1:])) < 1
    assert degrees[-1] < 0.1


def test_nothing_is_learnt_from_pairs_without_spread():
    """One cell under two names, or a single seed."""
    pair = make_reference("a", "b", 0.4)
    twin = make_reference("c", "d", 0.0)
    squares = twin.comparison.squares._replace(residual=0.0)
    twin = twin._replace(comparison=replace(twin.comparison, squares=squares))
    lone = make_reference("e", "f", 0.0, seeds=1)
    others = [make_reference("g", "h", 0.5), make_reference("i", "j", 0.5)]
    assert find_prior(pair, [pair, twin, lone, others[0]]) is None
    assert find_prior(twin, [pair, twin, *others]) is None


def test_seeds_that_agree_by_luck_are_not_taken_at_their_word():
    """Two means over seeds that are equal, of rows that differ in single answers."""
    lucky = make_reference("a", "b", 0.0)
    others = [make_reference("c", "d", 0.4), make_reference("e", "f", 0.5), make_reference("g", "h", 0.45)]
    prior = find_prior(lucky, [lucky, *others])
    assert prior is not None
    assert replace(lucky.comparison, prior=prior).moderated_squares.seeds > 0
    # it has no logarithm that others could learn from
    assert find_prior(others[0], [lucky, *others]) == find_prior(others[0], others)


def test_moderated_squares_are_weighted_by_degrees_of_freedom():
    pair = replace(make_comparison("a", "b", [0.0, 1.0, 2.0]), prior=SeedPrior(2.0, 6.0))
    own = PICTURES * 1.0
    expected = PICTURES * 2 * ANSWER_VARIANCE * 2.0
    assert pair.seed_freedom == 8
    assert pair.moderated_squares.seeds == pytest.approx((2 * own + 6 * expected) / 8)
    assert pair.moderated_squares[1:] == pair.squares[1:]
    assert replace(pair, prior=None).moderated_squares == pair.squares


def test_shared_stages_are_counted_from_the_first():
    assert moderation.count_shared_stages(("p", "f"), ("p", "f")) == 2
    assert moderation.count_shared_stages(("p", "f"), ("p", "g")) == 1
    assert moderation.count_shared_stages(("p", "f"), ("q", "f")) == 0
    assert moderation.count_shared_stages((), ("q", "f")) == 0


# ---- through the verdicts ----


def simulate_table(labels="abcdef", gain=0.0, questions=2000, seed_sd=0.01, rng_seed=0):
    rng = np.random.default_rng(rng_seed)
    outcomes = {}
    for label in labels:
        chance = 0.7 + (gain if label == "a" else 0.0) + seed_sd * rng.normal(size=(3, 1))
        outcomes[label] = dict(enumerate(rng.random((3, questions)) < chance))
    return outcomes, np.full(questions, "presence"), np.arange(questions)


def make_claims(labels="abcdef", **values):
    claims = []
    for other in labels[1:]:
        claims.append(Claim(f"a beats {other}", "test", "better", (("a", other),), **values))
    return claims


def test_verdicts_are_moderated_and_keep_the_own_interval():
    data = simulate_table()
    alone = verdicts.judge_claims(make_claims("ab"), *data)[0]
    assert (alone.low, alone.high) == (alone.own_low, alone.own_high)  # no other pair, nothing to learn
    together = verdicts.judge_claims(make_claims(), *data)
    own_interval = (together[0].own_low, together[0].own_high)
    assert own_interval == pytest.approx((alone.low, alone.high))
    widths = []
    own_widths = []
    for rng_seed in range(8):
        for verdict in verdicts.judge_claims(make_claims(), *simulate_table(rng_seed=rng_seed)):
            widths.append(verdict.high - verdict.low)
            own_widths.append(verdict.own_high - verdict.own_low)
    assert np.mean(widths) < 0.9 * np.mean(own_widths)
    # pairs that share their training are of another kind
    keys = {label: ("p", label) for label in "abc"} | {label: (label, label) for label in "def"}
    apart = verdicts.judge_claims(make_claims(), *data, training_keys=keys)
    assert apart[0].pairs[0].prior is None and apart[2].pairs[0].prior is not None


def test_rows_that_are_one_cell_inform_once():
    outcomes, families, picture = simulate_table()
    twins = outcomes | {"twin": outcomes["c"], "twin of it": outcomes["c"]}
    claims = make_claims()
    more = [*claims, Claim("", "test", "best", (("a", "twin"), ("a", "twin of it")))]
    plain = verdicts.judge_claims(claims, outcomes, families, picture)
    doubled = verdicts.judge_claims(more, twins, families, picture)
    assert [v.pairs[0].prior for v in plain] == [v.pairs[0].prior for v in doubled[:-1]]


def test_a_tie_is_a_verdict():
    data = simulate_table(seed_sd=0.002, questions=6000)
    words = [verdict.word for verdict in verdicts.judge_claims(make_claims(tie=4.0, tie_reason="so"), *data)]
    assert words == [verdicts.TIE] * 5
    narrow = verdicts.judge_claims(make_claims(tie=0.01, tie_reason="so"), *data)
    assert {verdict.word for verdict in narrow} == {verdicts.UNRESOLVED}
    # what holds is no tie, however wide the margin
    better = verdicts.judge_claims(
        make_claims(tie=50.0, tie_reason="so"), *simulate_table(gain=0.15, questions=6000)
    )
    assert {verdict.word for verdict in better} == {verdicts.HOLDS}


def test_advice_reckons_with_ties():
    """A tie is nearer than a verdict where two rows are alike."""
    data = simulate_table("ab", rng_seed=4, seed_sd=0.004, questions=20_000)
    plain = verdicts.judge_claims(make_claims("ab"), *data)[0]
    tied = verdicts.judge_claims(make_claims("ab", tie=1.5, tie_reason="so"), *data)[0]
    assert plain.word == tied.word == verdicts.UNRESOLVED
    assert abs(plain.estimate) < 0.5
    assert tied.note.endswith(" seeds would show a tie")
    seeds = int(tied.note.split()[1])
    assert 3 < seeds < 20
    # a margin that the questions cannot show is no advice
    narrow = verdicts.judge_claims(make_claims("ab", tie=0.1, tie_reason="so"), *data)[0]
    assert narrow.note == plain.note


def test_equal_rows_are_a_tie_and_different_ones_hardly_ever():
    """A difference as large as the margin: at most a fortieth of verdicts, by the upper end."""
    words = []
    for number in range(60):
        data = simulate_table(gain=0.03, rng_seed=number, seed_sd=0.005)
        words += [v.word for v in verdicts.judge_claims(make_claims(tie=3.0), *data)]
    assert words.count(verdicts.TIE) / len(words) < 0.05
    assert words.count(verdicts.FAILS) == 0


def test_the_own_word_says_what_moderation_changed():
    claim = Claim("a beats b", "test", "better", (("a", "b"),))
    pair = replace(make_comparison("a", "b", [1.0, 2.0, 3.0]), low=0.5, high=3.5, own_low=-0.5, own_high=4.5)
    verdict = verdicts.Verdict(claim, verdicts.HOLDS, "", 2.0, 0.5, 3.5, (pair,))
    assert verdict.own_word == verdicts.UNRESOLVED
    assert verdicts.Verdict(claim, verdicts.NO_RESULTS).own_word == verdicts.NO_RESULTS
