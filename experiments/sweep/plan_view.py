"""What --plan shows: every stage once, whether it is there, and how many cells share it."""

from collections import Counter
from collections.abc import Sequence

from rich.table import Table

from experiments.store.estimate import Estimator
from experiments.store.plan import STAGE_KINDS, STAGE_ROLES, Stage
from experiments.store.store import Store
from experiments.sweep.options import LaunchOptions
from experiments.sweep.request import SweepRequest

MOST_LISTED_STAGES = 60  # stages; more of them are only counted
STATUS_WORDS = {
    "done": "cached",
    "damaged": "damaged, to run again",
    "partial": "to resume",
    "missing": "to run",
}
UNFINISHED_WORDS = set(STATUS_WORDS.values()) - {"cached"}


def find_stage_statuses(roots: Sequence[Stage], store: Store) -> dict[str, tuple[Stage, str]]:
    """Every stage with its status; one that only finished stages would read is "not needed"."""
    found = {
        key: (stage, STATUS_WORDS[store.find_status(stage)]) for key, stage in list_all_stages(roots).items()
    }
    needed = set()

    def walk(stage: Stage) -> None:
        if stage.key not in needed and found[stage.key][1] != "cached":
            needed.add(stage.key)
            for each in stage.inputs.values():
                walk(each)

    for root in roots:
        walk(root)
    return {
        key: (stage, word if word == "cached" or key in needed else "not needed")
        for key, (stage, word) in found.items()
    }


def list_all_stages(roots: Sequence[Stage]) -> dict[str, Stage]:
    """Every stage once, in the order of work."""
    found = {key: stage for root in roots for key, stage in root.collect_stages().items()}
    return dict(sorted(found.items(), key=lambda pair: STAGE_KINDS.index(pair[1].kind)))


def make_plan_tables(asked: SweepRequest, store: Store) -> list[Table | str]:
    """The stages one by one, unless they are many, their counts, and how long what is left may take."""
    roots = [root for _, root in asked.jobs]
    found = find_stage_statuses(roots, store)
    users = Counter(key for root in roots for key in root.collect_stages())
    estimator = Estimator([stage for stage, _ in found.values()], store)
    left = {key: estimator.seconds(stage) for key, (stage, word) in found.items() if word in UNFINISHED_WORDS}
    tables: list[Table | str] = []
    if len(found) <= MOST_LISTED_STAGES:
        labels = {key: cell.label for cell, root in reversed(asked.jobs) for key in root.collect_stages()}
        table = Table(
            "stage", "key", "first used by", "cells", "status", "time", title="stages", title_justify="left"
        )
        for key, (stage, word) in found.items():
            seed = f" seed={stage.config.seed}" if stage.kind in STAGE_ROLES else ""
            took = estimator.found[key].seconds if word == "cached" and key in estimator.found else None
            time = format_estimate(left[key]) if key in left else "" if took is None else format_seconds(took)
            table.add_row(stage.title, key[:8], labels[key] + seed, str(users[key]), word, time)
        tables.append(table)
    return [
        *tables,
        make_stage_counts_table(found, users, left, len(asked.jobs)),
        describe_remaining_work(found, left, asked.launch),
    ]


def make_stage_counts_table(
    found: dict[str, tuple[Stage, str]], users: Counter, left: dict[str, float | None], cells: int
) -> Table:
    """How many stages of each kind there are, against how many there would be without sharing."""
    table = Table(
        "stage",
        "stages",
        "without sharing",
        "cached",
        "to run",
        "time",
        title=f"{cells} cells",
        title_justify="left",
    )
    for kind in STAGE_KINDS:
        words = {key: word for key, (stage, word) in found.items() if stage.kind == kind}
        if words:
            cached = sum(word == "cached" for word in words.values())
            times = [left[key] for key in words if key in left]
            known = [t for t in times if t is not None]
            time = format_estimate(sum(known) if known or not times else None) if times else ""
            table.add_row(
                kind,
                str(len(words)),
                str(sum(users[key] for key in words)),
                str(cached),
                str(len(times)),
                time,
            )
    return table


def describe_remaining_work(
    found: dict[str, tuple[Stage, str]], left: dict[str, float | None], options: LaunchOptions
) -> str:
    """The sum of all estimates, and what several workers make of it."""
    if not left:
        return "nothing to run"
    unknown = Counter(found[key][0].kind for key, seconds in left.items() if seconds is None)
    missing = ", ".join(f"{n} x {kind}" for kind, n in unknown.items())
    if len(unknown) and sum(unknown.values()) == len(left):
        return "no estimate: no such stage has been measured in this output directory yet"
    work = sum(seconds for seconds in left.values() if seconds is not None)
    words = f"{'at least' if missing else 'about'} {format_seconds(work)} of work left"
    if isinstance(options.workers, int) and options.workers > 1:
        chain = max(sum_longest_chain(stage, left) for stage, _ in found.values())
        words += (
            f", about {format_seconds(max(work / options.workers, chain))} with {options.workers} workers"
        )
    return f"{words} (as measured in this output directory{f'; no estimate: {missing}' if missing else ''})"


def sum_longest_chain(stage: Stage, left: dict[str, float | None]) -> float:
    """Seconds of the longest chain of stages that leads to one."""
    before = max((sum_longest_chain(each, left) for each in stage.inputs.values()), default=0.0)
    return before + (left.get(stage.key) or 0.0)


def format_estimate(seconds: float | None) -> str:
    return "no estimate" if seconds is None else f"~{format_seconds(seconds)}"


def format_seconds(seconds: float) -> str:
    """12 s, 3:25 min, 7.4 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds // 60:.0f}:{seconds % 60:02.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
