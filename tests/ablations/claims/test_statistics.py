"""Intervals and verdicts against simulated runs whose truth is known, and against slow, plain code."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from ablations.claims import verdicts
from ablations.claims.spec import Claim
from ablations.claims.statistics import (
    MeanSquares,
    RowComparison,
    average_by_picture,
    compute_mean_squares,
    compute_seed_interval,
)

BETTER = Claim("a beats b", "test", "better", (("a", "b"),))


def simulate(rng, gain=0.0, seeds=3, pictures=150, per_picture=2, seed_sd=0.0, difficulty=0.25):
    """Outcomes of rows a and b; a is `gain` more often right in truth. Pictures share their difficulty, each
    row's seeds have luck of their own."""
    questions = pictures * per_picture
    picture = np.repeat(np.arange(pictures), per_picture)
    hard = np.clip(difficulty * rng.standard_normal(pictures), -0.2, 0.2)[picture]
    found = {}
    for row, more in (("a", gain), ("b", 0.0)):
        luck = np.clip(seed_sd * rng.standard_normal(seeds), -0.2, 0.2)
        chance = 0.5 + hard + more + luck[:, None]
        found[row] = dict(enumerate(rng.random((seeds, questions)) < chance))
    return found, np.full(questions, "presence"), picture


def judged(data, claim=BETTER):
    return verdicts.judge_claims([claim], *data)[0]


def plain_two_way(data, rng, resamples=800):
    """The textbook interval: questions and seeds both drawn with replacement."""
    difference = np.stack([100.0 * data[0]["a"][s] - 100.0 * data[0]["b"][s] for s in data[0]["a"]])
    values = average_by_picture(difference, data[2])
    seeds, pictures = values.shape
    drawn = rng.integers(0, pictures, (resamples, pictures)) + pictures * np.arange(resamples)[:, None]
    of_pictures = np.bincount(drawn.ravel(), minlength=resamples * pictures).reshape(-1, pictures) / pictures
    of_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), resamples) / seeds
    return np.quantile(((of_pictures @ values.T) * of_seeds).sum(1), [0.025, 0.975])


@pytest.mark.parametrize(("seeds", "seed_sd"), [(2, 0.0), (3, 0.0), (3, 0.015), (3, 0.05), (6, 0.05)])
def test_the_interval_holds_the_truth_in_95_percent_of_runs(seeds, seed_sd):
    rng = np.random.default_rng(1)
    found = [judged(simulate(rng, 0.05, seeds, seed_sd=seed_sd)) for _ in range(300)]
    share = np.mean([v.low <= 5 <= v.high for v in found])
    assert share >= 0.92  # three standard errors of 300 runs are 0.04


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("ratio", [1, 3, 10, 30])
@pytest.mark.parametrize("confidence", [0.95, 0.985])
def test_it_does_wherever_seeds_matter(seeds, ratio, confidence):
    """The mean square between seeds from as much as single answers explain to 31 times that."""
    rng = np.random.default_rng(2)
    residual = 100.0
    studies = 20_000
    # of the mean squares' own distributions, so that many studies cost nothing
    between = residual * (1 + ratio) * rng.chisquare(seeds - 1, studies) / (seeds - 1)
    left_freedom = (seeds - 1) * 499
    left = residual * rng.chisquare(left_freedom, studies) / left_freedom
    pictures = 1.5 * residual * rng.chisquare(499, studies) / 499
    true_variance = residual * (1 + ratio) + 0.5 * residual
    estimates = rng.normal(size=studies) * math.sqrt(true_variance / (seeds * 500))
    hits = []
    level = (1 + confidence) / 2
    for estimate, *squares in zip(estimates, between, pictures, left):
        pair = RowComparison("a", "b", tuple(range(seeds)), 500, estimate, math.nan, MeanSquares(*squares))
        hits.append(abs(estimate) <= pair.compute_distance(1 - level))
    assert confidence - 0.005 <= np.mean(hits)


def test_drawing_three_seeds_with_replacement_would_not():
    """Why the seeds' part is Student's t."""
    rng = np.random.default_rng(2)
    both = []
    for _ in range(300):
        data = simulate(rng, pictures=300, seed_sd=0.1)
        low, high = plain_two_way(data, rng)
        ours = judged(data)
        both.append((low <= 0 <= high, ours.low <= 0 <= ours.high))
    plain, ours = np.mean(both, 0)
    assert plain < 0.85 and ours > 0.91


def test_verdicts_are_wrong_as_rarely_as_promised():
    """Equal rows: each side at most in a fortieth of runs. A real difference: found, and never denied."""
    rng = np.random.default_rng(3)
    words = [judged(simulate(rng)).word for _ in range(400)]
    assert words.count(verdicts.HOLDS) / 400 < 0.05 and words.count(verdicts.FAILS) / 400 < 0.05
    words = [judged(simulate(rng, 0.2)).word for _ in range(100)]
    assert words.count(verdicts.HOLDS) > 85 and verdicts.FAILS not in words
    words = [judged(simulate(rng, -0.2)).word for _ in range(100)]
    assert words.count(verdicts.FAILS) > 85 and verdicts.HOLDS not in words


@pytest.mark.parametrize(
    ("truth", "word"),
    [((0.1, 0.1), verdicts.HOLDS), ((0.1, -0.1), verdicts.FAILS), ((0.1, 0.0), verdicts.UNRESOLVED)],
)
def test_best_holds_if_every_pair_does(truth, word):
    rng = np.random.default_rng(4)
    data = simulate(rng, 0.0, pictures=1500)
    for label, less in zip("bc", truth):
        chance = 0.5 - less + 0.25 * np.sin(np.arange(3000) // 2)
        data[0][label] = dict(enumerate(rng.random((3, 3000)) < chance))
    chance = 0.5 + 0.25 * np.sin(np.arange(3000) // 2)
    data[0]["a"] = dict(enumerate(rng.random((3, 3000)) < chance))
    found = judged(data, Claim("a is best", "test", "best", (("a", "b"), ("a", "c"))))
    assert found.word == word
    assert found.estimate == min(p.estimate for p in found.pairs)
    assert found.low == min(p.low for p in found.pairs)


def test_best_of_equals_is_refuted_as_rarely_as_a_pair():
    """Four equal others: without care for their number, one of them would too often seem better."""
    rng = np.random.default_rng(5)
    claim = Claim("a is best", "test", "best", tuple(("a", other) for other in "bcde"))
    words = []
    for _ in range(300):
        data = simulate(rng)
        for other in "cde":
            data[0][other] = simulate(rng)[0]["b"]
        words.append(judged(data, claim).word)
    assert words.count(verdicts.FAILS) / 300 < 0.06


def test_within_allows_its_points():
    rng = np.random.default_rng(6)
    data = simulate(rng, -0.02, pictures=4000)
    claims = {points: Claim("", "", "within", (("a", "b"),), points) for points in (0, 2, 5)}
    words = {points: judged(data, claim).word for points, claim in claims.items()}
    assert words == {0: verdicts.FAILS, 2: verdicts.UNRESOLVED, 5: verdicts.HOLDS}


def test_pairing_narrows_the_interval():
    """The same answers, but b's questions in another order: what is hard for both no longer drops out."""
    rng = np.random.default_rng(7)
    data = simulate(rng, difficulty=0.2, pictures=1000, per_picture=1, seeds=8)
    paired = judged(data)
    order = rng.permutation(1000)
    data[0]["b"] = {seed: right[order] for seed, right in data[0]["b"].items()}
    apart = judged(data)
    assert paired.estimate == pytest.approx(apart.estimate)
    assert paired.high - paired.low < 0.9 * (apart.high - apart.low)


def test_questions_of_a_picture_stand_together():
    """Every question asked four times: nothing new is known, and the interval does not shrink."""
    rng = np.random.default_rng(8)
    outcomes, families, picture = simulate(rng, 0.05, per_picture=1)
    once = judged((outcomes, families, picture))
    four = {row: {s: np.repeat(x, 4) for s, x in of.items()} for row, of in outcomes.items()}
    found = judged((four, np.repeat(families, 4), np.repeat(picture, 4)))
    assert (found.low, found.high) == pytest.approx((once.low, once.high))
    one = {row: {0: of[0]} for row, of in four.items()}
    naive = judged((one, np.repeat(families, 4), np.arange(600)))
    together = judged((one, np.repeat(families, 4), np.repeat(picture, 4)))
    assert naive.high - naive.low == pytest.approx((together.high - together.low) / 2, rel=0.1)


def compute_slow_distance(difference, picture):
    """How far the ends are from the estimate, one number at a time."""
    seeds, questions = len(difference), len(picture)
    pictures = sorted(set(picture))
    members = {p: [q for q in range(questions) if picture[q] == p] for p in pictures}
    mean = sum(sum(row) for row in difference) / (seeds * questions)
    value = {
        (s, p): mean
        + (sum(difference[s][q] for q in members[p]) - mean * len(members[p])) * len(pictures) / questions
        for s in range(seeds)
        for p in pictures
    }
    of_seed = [sum(value[s, p] for p in pictures) / len(pictures) for s in range(seeds)]
    of_picture = {p: sum(value[s, p] for s in range(seeds)) / seeds for p in pictures}
    left = sum((value[s, p] - of_seed[s] - of_picture[p] + mean) ** 2 for s, p in value)
    left /= (seeds - 1) * (len(pictures) - 1)
    between = len(pictures) * sum((m - mean) ** 2 for m in of_seed) / (seeds - 1)
    between_pictures = seeds * sum((m - mean) ** 2 for m in of_picture.values()) / (len(pictures) - 1)
    of_seeds = stats.t.ppf(0.975, seeds - 1) ** 2
    of_pictures = stats.t.ppf(0.975, len(pictures) - 1) ** 2
    widened = of_seeds * between + of_pictures * (between_pictures - left)
    return math.sqrt(max(widened, of_pictures * between_pictures) / (seeds * len(pictures)))


@pytest.mark.parametrize("seed_sd", [0.0, 0.08])
def test_agrees_with_plain_code(seed_sd):
    rng = np.random.default_rng(9)
    outcomes, families, picture = simulate(rng, 0.03, pictures=40, seed_sd=seed_sd)
    picture = np.sort(rng.integers(0, 30, 80))  # pictures with one, several and no questions
    found = judged((outcomes, families, picture))
    pairs = [zip(outcomes["a"][s], outcomes["b"][s]) for s in range(3)]
    difference = [[100.0 * a - 100.0 * b for a, b in pair] for pair in pairs]
    mean = np.mean(difference)
    distance = compute_slow_distance(difference, picture)
    assert (found.low, found.high) == pytest.approx((mean - distance, mean + distance))
    assert found.estimate == pytest.approx(mean)


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_bootstrap_over_pictures_agrees(seeds):
    """Where seeds are many or do not differ, pictures drawn with replacement give the same interval."""
    rng = np.random.default_rng(17)
    outcomes, families, picture = simulate(rng, 0.05, seeds=1, pictures=400)
    rows = {row: dict.fromkeys(range(seeds), by_seed[0]) for row, by_seed in outcomes.items()}
    found = judged((rows, families, picture))
    difference = 100.0 * rows["a"][0] - 100.0 * rows["b"][0]
    of_pictures = difference.reshape(400, 2).mean(1)
    means = of_pictures[rng.integers(0, 400, (20_000, 400))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    assert (found.low - found.estimate, found.high - found.estimate) == pytest.approx(
        (low - found.estimate, high - found.estimate), rel=0.05
    )


def test_few_pictures_have_a_wide_interval():
    """Five pictures and one seed: Student's t for them, where a bootstrap holds the truth in 84 % of runs."""
    rng = np.random.default_rng(18)
    runs = [judged(simulate(rng, 0.05, seeds=1, pictures=5, per_picture=40)) for _ in range(400)]
    assert np.mean([run.low <= 5 <= run.high for run in runs]) >= 0.92


def test_no_interval_leaves_what_accuracies_can_differ_by():
    """Two seeds that do not agree on which row is the better one."""
    data = simulate(np.random.default_rng(15), seeds=2, pictures=400)
    data[0]["a"][0], data[0]["b"][0] = np.ones((2, 800), bool) * [[True], [False]]
    found = judged(data)
    assert (
        found.estimate > 40 and (found.low, found.high) == (-100, 100) and found.word == verdicts.UNRESOLVED
    )


def test_variance_components():
    """Of layouts built from known parts, on average."""
    rng = np.random.default_rng(10)
    found = []
    for _ in range(300):
        values = 2 * rng.standard_normal((8, 1)) + 3 * rng.standard_normal(60) + rng.standard_normal((8, 60))
        found.append(
            RowComparison(
                "a", "b", tuple(range(8)), 60, 0.0, math.nan, compute_mean_squares(values)
            ).variance_components
        )
    assert np.mean(found, 0) == pytest.approx([4, 9, 1], rel=0.1)


def test_seed_interval():
    mean, half = compute_seed_interval([0.5, 0.6, 0.7])
    known = stats.t.interval(0.95, 2, 0.6, stats.sem([0.5, 0.6, 0.7]))
    assert (mean - half, mean + half) == pytest.approx(known)
    assert compute_seed_interval([0.5])[0] == 0.5 and math.isnan(compute_seed_interval([0.5])[1])


def test_one_seed_has_no_verdict():
    found = judged(simulate(np.random.default_rng(11), 0.3, seeds=1))
    assert found.word == verdicts.UNRESOLVED and "one seed" in found.note and found.low > 0


def test_rows_are_compared_at_the_seeds_that_both_have():
    data = simulate(np.random.default_rng(12), 0.1, seeds=4)
    del data[0]["a"][0], data[0]["b"][3]
    found = judged(data)
    assert found.pairs[0].seeds == (1, 2)
    assert found.estimate == pytest.approx(
        100 * np.mean([data[0]["a"][s].mean() - data[0]["b"][s].mean() for s in (1, 2)])
    )


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (lambda rows: rows.pop("b"), "no results of b"),
        (lambda rows: rows.update(b={7: rows["b"][0]}), "a and b have no seed in common"),
    ],
)
def test_what_is_missing_is_said(change, note):
    data = simulate(np.random.default_rng(13))
    change(data[0])
    found = judged(data)
    assert (found.word, found.note) == (verdicts.NO_RESULTS, note)


def test_families():
    """Only their questions count."""
    outcomes, families, picture = simulate(np.random.default_rng(14), 0.1)
    families[::2] = "reading"
    found = judged((outcomes, families, picture), Claim("", "", "better", (("a", "b"),), 0, ("reading",)))
    half = {row: {s: x[::2] for s, x in of.items()} for row, of in outcomes.items()}
    same = judged((half, families[::2], picture[::2]))
    assert (found.estimate, found.low, found.high) == (same.estimate, same.low, same.high)
    unknown = judged((outcomes, families, picture), Claim("", "", "better", (("a", "b"),), 0, ("colour",)))
    assert unknown.note == "no questions of the family colour"


@pytest.mark.parametrize("seed_sd", [0.0, 0.02])
def test_the_seeds_that_would_resolve_it_do(seed_sd):
    """Advice from many seeds, so that it rests on known variances, tried on new runs."""
    rng = np.random.default_rng(15)
    pair = judged(simulate(rng, 0.03, seeds=40, pictures=400, seed_sd=seed_sd)).pairs[0]
    few = replace(pair, seeds=(0, 1), estimate=3.0)
    needed = verdicts.count_seeds_needed(BETTER, [few], 0.95)
    assert 3 <= needed < 40
    runs = [judged(simulate(rng, 0.03, seeds=needed, pictures=400, seed_sd=seed_sd)) for _ in range(60)]
    share = np.mean([verdict.word == verdicts.HOLDS for verdict in runs])
    assert 0.65 < share < 0.97  # four in five


def test_more_seeds_cannot_help_where_questions_decide():
    """Two rows that always answer alike, but differ on a few questions."""
    right = np.zeros(100, bool)
    rows = {"a": right.copy(), "b": right.copy()}
    rows["a"][:3], rows["b"][3:5] = True, True
    outcomes = {row: dict.fromkeys(range(3), x) for row, x in rows.items()}
    found = judged((outcomes, np.full(100, "all"), np.arange(100)))
    assert found.word == verdicts.UNRESOLVED
    assert found.note.startswith("more seeds cannot resolve it, the questions decide; about ")


def test_equal_rows_ask_for_nothing():
    outcomes = {row: dict.fromkeys(range(3), np.arange(50) % 2 == 0) for row in "ab"}
    found = judged((outcomes, np.full(50, "all"), np.arange(50)))
    assert (found.word, found.low, found.high) == (verdicts.UNRESOLVED, 0, 0)
    assert found.note == "these rows answer every question alike, at every seed: they may be one cell"
