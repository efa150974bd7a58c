"""How many cells are computed at once where `launch.workers` says nothing.

The small matrix products of a tiny model are not worth sharing out: on two cores one cell with two threads
takes 0.63 of its time with one, while two cells side by side, with one thread each, cost each other nothing.
So cells whose LLM comes with the project are computed side by side on the CPU wherever that is sooner, which
it is not for one cell alone, or for one that all others wait for. Larger models fill the cores by themselves,
and their memory is no longer a small part of the machine's.
"""

import heapq
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace

from experiments.config.schema import GPU_ACCELERATORS, Config
from experiments.config.sources import ASSET_SCHEME
from experiments.runtime.processor import count_cores, read_memory_bytes
from experiments.store.plan import Stage
from experiments.store.store import Store
from experiments.sweep.options import IN_PROCESS_LAUNCHER, LaunchOptions
from experiments.sweep.plan_view import PlanFinder
from experiments.sweep.pool import list_gpus
from experiments.sweep.request import CellJob
from experiments.sweep.units import WorkUnit, make_units

SHARED_PART = 0.75  # of a tiny cell's time, that threads share: two took 0.63 of the time of one
CLEARLY_SOONER = 0.9  # of the time in turn: the estimates are no better than that
WORKER_START_SECONDS = 15.0  # until all workers have imported torch
WORKER_BYTES = 2 * 2**30  # a worker takes 1.2 GiB at the preset `tiny`


def choose_launch(
    jobs: Sequence[CellJob], options: LaunchOptions, store: Store, find_plan: PlanFinder
) -> LaunchOptions:
    """The options with a number of workers: what was asked for, else one or as many as the cores, whichever
    is sooner. `find_plan`: of the jobs, with the times by which that is judged."""
    if options.workers is not None:
        return options
    workers = 1
    runs_here = options.where == IN_PROCESS_LAUNCHER and options.threads is None
    if runs_here and all(trains_tiny_model_on_cpu(stage.config) for _, stage in jobs):
        workers = choose_workers(jobs, store, find_plan)
    return replace(options, workers=workers)


def trains_tiny_model_on_cpu(config: Config) -> bool:
    """Whether a cell's LLM comes with the project, and one process computes it on the CPU."""
    trainer = config.trainer
    in_one_process = trainer.nodes == 1 and trainer.devices in ("auto", "1")
    if not config.llm.source.startswith(ASSET_SCHEME) or not in_one_process:
        return False
    if trainer.accelerator == "cpu":
        return True
    may_find_gpu = sys.platform == "darwin" or bool(list_gpus(trainer.accelerator in GPU_ACCELERATORS))
    return trainer.accelerator == "auto" and not may_find_gpu


def choose_workers(jobs: Sequence[CellJob], store: Store, find_plan: PlanFinder) -> int:
    """As many as cores and memory allow where that is clearly sooner, else one."""
    cores = count_cores()
    most_workers = min(cores, read_memory_bytes() // WORKER_BYTES)
    if most_workers < 2:
        return 1
    stage_seconds = find_plan().find_remaining_seconds()
    if stage_seconds is None:
        return 1
    units = make_units(list(jobs), store)
    unit_seconds = {key: sum_unit_seconds(unit.stage, units, stage_seconds) for key, unit in units.items()}
    seconds_in_turn = sum(stage_seconds.values()) / estimate_thread_gain(cores)
    seconds_side_by_side = simulate_workers(units, unit_seconds, most_workers) + WORKER_START_SECONDS
    return most_workers if seconds_side_by_side < CLEARLY_SOONER * seconds_in_turn else 1


def sum_unit_seconds(
    stage: Stage, units: Mapping[str, WorkUnit], stage_seconds: Mapping[str, float]
) -> float:
    """Seconds of a unit: of its stage and of those before it that no other unit computes."""
    seconds = stage_seconds.get(stage.key, 0.0)
    for source in stage.inputs.values():
        if source.key not in units:
            seconds += sum_unit_seconds(source, units, stage_seconds)
    return seconds


def simulate_workers(units: Mapping[str, WorkUnit], unit_seconds: Mapping[str, float], workers: int) -> float:
    """Seconds until workers have computed all units, handed out as `UnitScheduler` does."""
    waiting = dict(units)
    running: list[tuple[float, str]] = []  # a heap: when a unit will end, and its key
    now = 0.0
    while waiting or running:
        unfinished = waiting.keys() | {key for _, key in running}
        ready = [unit for unit in waiting.values() if not unit.needs & unfinished]
        for unit in ready[: workers - len(running)]:
            del waiting[unit.key]
            heapq.heappush(running, (now + unit_seconds[unit.key], unit.key))
        now, _ = heapq.heappop(running)
    return now


def estimate_thread_gain(threads: int) -> float:
    """How many times as fast so many threads compute one tiny cell as one thread (Amdahl's law)."""
    return 1 / (1 - SHARED_PART + SHARED_PART / threads)
