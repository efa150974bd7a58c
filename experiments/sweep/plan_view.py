"""What --plan shows: every stage once, whether it is there, and how many cells share it."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from rich.table import Table

from experiments.runtime.text_tables import make_framed_table
from experiments.store.estimate import Estimator, MeasuredStage
from experiments.store.plan import STAGE_KINDS, STAGE_ROLES, Stage
from experiments.store.store import Store
from experiments.sweep.options import LaunchOptions
from experiments.sweep.request import CellJob, SweepRequest

MOST_LISTED_STAGES = 60  # stages; more of them are only counted
MEASURED_HERE = "as measured in this output directory"
CACHED = "cached"
NOT_NEEDED = "not needed"
STATUS_WORDS = {  # a store's word for a stage -> what is shown
    "done": CACHED,
    "damaged": "damaged, to run again",
    "partial": "to resume",
    "missing": "to run",
}


@dataclass(frozen=True)
class PlannedStage:
    """A stage of the plan.

    status     what is shown: cached, to run, to resume, damaged, not needed
    cells      how many cells need it
    seconds    about how long it will take, or took; None where nothing tells
    """

    stage: Stage
    status: str
    cells: int
    seconds: float | None

    @property
    def is_left(self) -> bool:
        """Whether it has to be computed."""
        return self.status not in (CACHED, NOT_NEEDED)


@dataclass(frozen=True)
class Plan:
    """Every stage once.

    stages         by key, in the order of work
    measured_here  whether the estimates are by what took place in the output directory, not elsewhere
    """

    stages: dict[str, PlannedStage]
    measured_here: bool

    def list_remaining(self) -> list[PlannedStage]:
        """The stages that have to be computed."""
        return [planned for planned in self.stages.values() if planned.is_left]

    def find_remaining_seconds(self) -> dict[str, float] | None:
        """Seconds of each stage that has to be computed, by its key; None where nothing tells of one."""
        seconds = {}
        for planned in self.list_remaining():
            if planned.seconds is None:
                return None
            seconds[planned.stage.key] = planned.seconds
        return seconds


PlanFinder = Callable[[], Plan]
TimesFinder = Callable[[], Iterable[MeasuredStage]]


def find_no_times() -> Iterable[MeasuredStage]:
    """Nothing is known of stages elsewhere."""
    return ()


def make_plan(jobs: Sequence[CellJob], store: Store, find_times: TimesFinder = find_no_times) -> Plan:
    """Every stage of the cells, with its status and how long it takes. `find_times`: of stages elsewhere,
    asked where a kind of stage has not been measured in this output directory."""
    roots = [last_stage for _, last_stage in jobs]
    stages: dict[str, Stage] = {}
    for root in roots:
        stages |= root.collect_stages()
    stages = dict(sorted(stages.items(), key=lambda item: STAGE_KINDS.index(item[1].kind)))
    statuses = find_stage_statuses(roots, stages, store)
    users: Counter[str] = Counter()
    for root in roots:
        users.update(root.collect_stages().keys())
    plan = {key: PlannedStage(stage, statuses[key], users[key], None) for key, stage in stages.items()}
    remaining = [planned.stage for planned in plan.values() if planned.is_left]
    estimator = Estimator(stages.values(), store)
    seconds, measured_here = estimate_stages(remaining, estimator, store, find_times)
    for key, measured in estimator.measured.items():
        # a finished stage notes its time, and no killed run has done part of it
        if statuses.get(key) == CACHED:
            seconds[key] = measured.seconds
    planned_stages = {key: replace(planned, seconds=seconds.get(key)) for key, planned in plan.items()}
    return Plan(planned_stages, measured_here)


def estimate_stages(
    stages: Sequence[Stage], estimator: Estimator, store: Store, find_times: TimesFinder
) -> tuple[dict[str, float | None], bool]:
    """Seconds of each stage by its key, and whether they are by what was measured in this output directory:
    where that does not tell of all, and the times of stages elsewhere do, they are all by those."""
    seconds = {stage.key: estimator.estimate_seconds(stage) for stage in stages}
    if None not in seconds.values():
        return seconds, True
    estimator_elsewhere = Estimator([], store, find_times())
    seconds_elsewhere = {stage.key: estimator_elsewhere.estimate_seconds(stage) for stage in stages}
    if None in seconds_elsewhere.values():
        return seconds, True
    return seconds_elsewhere, False


def find_stage_statuses(roots: Sequence[Stage], stages: Mapping[str, Stage], store: Store) -> dict[str, str]:
    """The status of every stage; one that only finished stages would read is "not needed"."""
    statuses = {key: STATUS_WORDS[store.find_status(stage)] for key, stage in stages.items()}
    needed = set()

    # from the ends: what a finished stage was made of is not needed again
    def walk(stage: Stage) -> None:
        if stage.key in needed or statuses[stage.key] == CACHED:
            return
        needed.add(stage.key)
        for source in stage.inputs.values():
            walk(source)

    for root in roots:
        walk(root)
    for key, status in statuses.items():
        if status != CACHED and key not in needed:
            statuses[key] = NOT_NEEDED
    return statuses


def make_plan_tables(plan: Plan, request: SweepRequest, basis: str = MEASURED_HERE) -> list[Table | str]:
    """The stages one by one, unless they are many, their counts, and how long what is left may take, by
    times as `basis` says."""
    tables: list[Table | str] = []
    if len(plan.stages) <= MOST_LISTED_STAGES:
        tables.append(make_stages_table(plan, request.jobs))
    tables.append(make_stage_counts_table(plan, len(request.jobs)))
    tables.append(describe_remaining_work(plan, request.launch, basis))
    return tables


def make_stages_table(plan: Plan, jobs: Sequence[CellJob]) -> Table:
    """A row a stage."""
    first_users: dict[str, str] = {}
    for cell, last_stage in jobs:
        for key in last_stage.collect_stages():
            first_users.setdefault(key, cell.label)
    rows = [["stage", "key", "first used by", "cells", "status", "time"]]
    for key, planned in plan.stages.items():
        stage = planned.stage
        user = first_users[key]
        if stage.kind in STAGE_ROLES:  # the other kinds do not depend on the cell's seed
            user += f" seed={stage.config.seed}"
        time = ""
        if planned.is_left:
            time = format_estimate(planned.seconds)
        elif planned.seconds is not None:
            time = format_seconds(planned.seconds)
        rows.append([stage.title, key[:8], user, str(planned.cells), planned.status, time])
    return make_framed_table(rows, title="stages", numbers=False)


def make_stage_counts_table(plan: Plan, cells: int) -> Table:
    """How many stages of each kind there are, against how many there would be without sharing."""
    rows = [["stage", "stages", "without sharing", "cached", "to run", "time"]]
    for kind in STAGE_KINDS:
        remaining = []
        stages = 0
        without_sharing = 0
        cached = 0
        for planned in plan.stages.values():
            if planned.stage.kind != kind:
                continue
            stages += 1
            without_sharing += planned.cells
            cached += planned.status == CACHED
            if planned.is_left:
                remaining.append(planned)
        if stages == 0:
            continue
        counts = [stages, without_sharing, cached, len(remaining)]
        time = format_estimate(sum_seconds(remaining)) if remaining else ""
        rows.append([kind, *map(str, counts), time])
    return make_framed_table(rows, title=f"{cells} cells", numbers=False)


def sum_seconds(stages: Sequence[PlannedStage]) -> float | None:
    """Seconds of those stages that have an estimate; None where none has."""
    estimates = [planned.seconds for planned in stages if planned.seconds is not None]
    if not estimates:
        return None
    return sum(estimates)


def describe_remaining_work(plan: Plan, options: LaunchOptions, basis: str) -> str:
    """The sum of all estimates, and what several workers make of it."""
    remaining = plan.list_remaining()
    if not remaining:
        return "nothing to run"
    work = sum_seconds(remaining)
    if work is None:
        return "no estimate: no such stage has been measured in this output directory yet"
    unknown = Counter(planned.stage.kind for planned in remaining if planned.seconds is None)
    missing = ", ".join(f"{count} x {kind}" for kind, count in unknown.items())
    if missing:
        words = f"at least {format_seconds(work)} of work left"
        basis += f"; no estimate: {missing}"
    else:
        words = f"about {format_seconds(work)} of work left"
    if isinstance(options.workers, int) and options.workers > 1:
        # no number of workers makes it shorter than its longest chain
        chain = max(sum_longest_chain(planned.stage, plan) for planned in remaining)
        duration = format_seconds(max(work / options.workers, chain))
        words += f", about {duration} with {options.workers} workers"
    return f"{words} ({basis})"


def sum_longest_chain(stage: Stage, plan: Plan) -> float:
    """Seconds of the longest chain of stages that leads to one."""
    longest = 0.0
    for source in stage.inputs.values():
        longest = max(longest, sum_longest_chain(source, plan))
    planned = plan.stages[stage.key]
    if planned.is_left and planned.seconds is not None:
        longest += planned.seconds
    return longest


def format_estimate(seconds: float | None) -> str:
    """~12 s, or that there is no estimate."""
    if seconds is None:
        return "no estimate"
    return f"~{format_seconds(seconds)}"


def format_seconds(seconds: float) -> str:
    """12 s, 3:25 min, 7.4 h."""
    whole_seconds = round(seconds)
    if whole_seconds < 100:
        return f"{whole_seconds} s"
    if whole_seconds < 5400:
        minutes, rest = divmod(whole_seconds, 60)
        return f"{minutes}:{rest:02d} min"
    return f"{seconds / 3600:.1f} h"
