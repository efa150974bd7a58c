"""Short forms of the stress programs, and the watcher that they rely on."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from accidents import EVENTS, stress
from harm import harm_tree
from trials import Result, Summary, Trial, run_trials


def draw_ending(end, draw, _folder):
    """A trial that ends as `end` does."""
    return Trial(f"{draw.random():.3f}", end)


def run_endings(tmp_path, *endings):
    kinds = {str(number): partial(draw_ending, end) for number, end in enumerate(endings)}
    return list(run_trials(kinds, range(len(kinds)), 0, tmp_path, longest=0.5))


def test_a_trial_that_hangs_dies_or_raises_is_a_failure_and_the_next_one_runs(tmp_path):
    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def fail() -> None:
        raise KeyError("x")

    endings = (lambda: None, partial(time.sleep, 60), die, fail, lambda: None)
    reasons = [result.reason for result in run_endings(tmp_path, *endings)]
    assert reasons == ["", "hangs for more than 0 s", "process ended with -9", "KeyError: 'x'", ""]


def test_a_number_draws_the_same_input_whatever_was_tried_before(tmp_path):
    kinds = {"a": partial(draw_ending, lambda: None)}
    together = [result.text for result in run_trials(kinds, range(4), 0, tmp_path)]
    (alone,) = run_trials(kinds, [3], 0, tmp_path)
    assert alone.text == together[3] and len(set(together)) == 4


def test_failures_of_one_cause_are_told_once_with_the_smallest_input():
    summary = Summary()
    for number, text in enumerate(["longer", "short"]):
        summary.add_result(Result(number, "kind", text, f"ValueError: {text}", "room/file.py:1 f"))
    told = summary.describe(seed=7)
    assert "2 trials" in told and "FAILED 2 x" in told
    assert "input: short" in told and "seed=7 only=1" in told


def test_harm_changes_a_copy():
    tree = {"a": [1, {"b": "text"}], "c": None}
    harmed = [harm_tree(random.Random(seed), tree) for seed in range(50)]
    assert tree == {"a": [1, {"b": "text"}], "c": None}
    assert sum(repr(other) != repr(tree) for other in harmed) > 40


# one sweep that nobody disturbs for two of them; the last one trains itself, behind which none can fork
SHORT_FORMS = """
import sys
from pathlib import Path
import corrupt, fuzz, kill, sweeps

undisturbed = sweeps.run_undisturbed(Path(sys.argv[1]), "short")
sweeps.run_undisturbed = lambda *_: undisturbed
codes = [kill.main(["sweep=short", "only=0"]), corrupt.main(["inputs=2"]), fuzz.main(["inputs=74", "seed=2"])]
sys.exit(any(codes))
"""


@pytest.mark.slow
def test_short_forms(tmp_path):
    """In a process of their own: they fork, which torch does not allow where a test has trained before."""
    done = subprocess.run(
        [sys.executable, "-c", SHORT_FORMS, tmp_path],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"with (\d+) kills", done.stdout)[1]) >= 8, (
        done.stdout
    )  # of 10: others came too late


@pytest.mark.slow
def test_a_sweep_with_accidents(tmp_path):
    """Everything that may happen to a sweep, once."""
    assert stress(tmp_path, len(EVENTS)).happened[: len(EVENTS)] == list(EVENTS)
