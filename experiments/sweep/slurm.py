"""Units as Slurm jobs through submitit: whatever is ready goes as one array, `launch.workers` jobs at once.

    launch=slurm launch.workers=8 launch.slurm.partition=gpu launch.slurm.gpus_per_node=1

`launch.slurm.KEY` is any parameter of submitit's Slurm executor, `time` in minutes;
`launch.slurm.cluster=local` runs the same jobs as processes of this machine, to try it. The command stays to
submit what becomes ready; if it is killed, the jobs that it has submitted finish their unit, and the next run
takes their results.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from compressors.errors import UsageError
from experiments.runtime.files import remove_empty_folders
from experiments.runtime.progress import Reporter
from experiments.store.store import StageRunner
from experiments.sweep import worker
from experiments.sweep.options import SLURM_PREFIX
from experiments.sweep.units import WorkUnit
from experiments.sweep.worker import UnitOutcome

if TYPE_CHECKING:
    import submitit

GENERIC_PARAMETERS = {"name", "timeout_min", "mem_gb", "stderr_to_stdout"}  # submitit's for any cluster
JOB_POLL_SECONDS = 1.0  # seconds between looks at the jobs


@dataclass(frozen=True)
class SubmittedJob:
    """A job under way."""

    number: int
    unit: WorkUnit
    job: "submitit.Job"
    lane: Reporter


class Cluster:
    """Up to `size` jobs under way."""

    def __init__(
        self,
        root: Path,
        runner: Callable[[str], StageRunner],
        report: Reporter,
        size: int,
        threads: int | None,
        parameters: dict[str, object],
    ):
        self.root, self.runner, self.report = Path(root).absolute(), runner, report
        self.size, self.threads = size, threads
        self.executor = make_executor(self.root / "logs" / "submitit", size, dict(parameters))
        self.jobs: list[SubmittedJob] = []

    @property
    def free(self) -> int:
        return self.size - len(self.jobs)

    def submit(self, units: list[WorkUnit]) -> None:
        """One array of jobs."""
        with self.executor.batch():
            jobs = [
                self.executor.submit(
                    worker.run_slurm_job,
                    unit.stage,
                    unit.log.absolute(),
                    self.root,
                    self.runner,
                    self.threads,
                )
                for unit in units
            ]
        taken = {each.number for each in self.jobs}
        numbers = (i for i in range(self.size) if i not in taken)
        for number, unit, job in zip(numbers, units, jobs):
            lane = self.report.open_lane(number, unit.label) or Reporter()
            lane.begin_stage(f"{unit.stage.title} {unit.key[:8]}, job {job.job_id}")
            self.jobs.append(SubmittedJob(number, unit, job, lane))

    def poll(self, seconds: float) -> list[tuple[WorkUnit, UnitOutcome]]:
        """What has ended, after a look at all jobs."""
        time.sleep(min(seconds, JOB_POLL_SECONDS))
        ended = [each for each in self.jobs if each.job.done()]
        self.jobs = [each for each in self.jobs if each not in ended]
        for each in ended:
            each.lane.__exit__(None, None, None)
        return [(each.unit, read_job_outcome(each.job, each.unit)) for each in ended]

    def close(self) -> None:
        """Cancel what is under way."""
        for each in self.jobs:
            each.job.cancel(check=False)
        self.jobs.clear()


def read_job_outcome(job: "submitit.Job", unit: WorkUnit) -> UnitOutcome:
    """What a job has left; submitit raises if it has left nothing, and the unit's log gets its words."""
    try:
        return job.result()
    except Exception as error:
        words = str(error).strip() or type(error).__name__
        unit.log.parent.mkdir(parents=True, exist_ok=True)
        with open(unit.log, "a", encoding="utf-8") as file:
            file.write(f"{words}\n")
        return UnitOutcome("died", f"job {job.job_id} ended without a result: {words.splitlines()[-1]}")


def make_executor(folder: Path, size: int, parameters: dict[str, object]) -> "submitit.Executor":
    """submitit's executor, or a UsageError when it is missing, finds no Slurm or knows no such parameter."""
    try:
        import submitit
    except ImportError as error:
        raise UsageError("launch=slurm needs submitit: pip install 'slothkit[slurm]'") from error
    cluster = str(parameters.pop("cluster", "slurm"))
    with remove_empty_folders(folder):
        try:
            executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
        except (ValueError, RuntimeError) as error:  # no srun here
            raise UsageError(f"launch=slurm: {error} (launch.slurm.cluster=local does without)") from error
        for name, value in parameters.items():
            try:
                executor.update_parameters(**{name if name in GENERIC_PARAMETERS else f"slurm_{name}": value})
            except (NameError, AssertionError) as error:
                raise UsageError(f"{SLURM_PREFIX}{name}={value}: {str(error).splitlines()[0]}") from error
        executor.update_parameters(slurm_array_parallelism=size)
    return executor
