"""Units as Slurm jobs through submitit: whatever is ready goes as one array, `launch.workers` jobs at once.

    launch=slurm launch.workers=8 launch.slurm.partition=gpu launch.slurm.gpus_per_node=1

`launch.slurm.KEY` is any parameter of submitit's Slurm executor, `time` in minutes;
`launch.slurm.cluster=local` runs the same jobs as processes of this machine, to try it. The command stays to
submit what becomes ready; if it is killed, the jobs that it has submitted finish their unit, and the next run
takes their results. Ctrl-C and an error cancel them.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, cast

from compressors.errors import UsageError
from experiments.runtime.files import remove_empty_folders
from experiments.runtime.progress import Reporter
from experiments.store.store import StageRunner
from experiments.sweep import worker
from experiments.sweep.launcher import EndedUnit, Launcher
from experiments.sweep.units import WorkUnit
from experiments.sweep.worker import UnitOutcome

if TYPE_CHECKING:
    import submitit

GENERIC_PARAMETERS = {"name", "timeout_min", "mem_gb", "stderr_to_stdout"}  # submitit's for any cluster
JOB_NAME = "slothkit"  # in the queue, unless launch.slurm.name= says another
JOB_POLL_SECONDS = 1.0  # seconds between looks at the jobs


@dataclass(frozen=True)
class SubmittedJob:
    """A job under way. `number`: its lane on screen, from 0."""

    number: int
    unit: WorkUnit
    job: "submitit.Job"
    lane: Reporter


class SlurmCluster(Launcher):
    """Up to `workers` jobs under way."""

    def __init__(
        self,
        root: Path,
        runner: Callable[[str], StageRunner],
        report: Reporter,
        workers: int,
        threads: int | None,
        parameters: dict[str, object],
    ):
        self.root = Path(root).absolute()
        self.runner = runner
        self.report = report
        self.size = workers
        self.threads = threads
        self.executor = make_executor(self.root / "logs" / "submitit", workers, parameters)
        self.jobs: list[SubmittedJob] = []

    @classmethod
    def check_parameters(cls, parameters: dict[str, object]) -> None:
        """What submitit says of names and types, here where there may be no Slurm."""
        with TemporaryDirectory() as folder:
            make_executor(Path(folder), 1, {**parameters, "cluster": "local"})

    @property
    def free(self) -> int:
        return self.size - len(self.jobs)

    def submit(self, units: list[WorkUnit]) -> None:
        """One array of jobs. UsageError where Slurm refuses it."""
        from submitit.core.utils import FailedJobError  # an optional package

        jobs = []
        try:
            with self.executor.batch():
                for unit in units:
                    log = unit.log.absolute()
                    job = self.executor.submit(
                        worker.run_slurm_job, unit.stage, log, self.root, self.runner, self.threads
                    )
                    jobs.append(job)
        except FailedJobError as error:
            raise UsageError(f"launch=slurm: {str(error).strip().splitlines()[-1]}") from error
        # a job has no number before the array is submitted, at the end of the batch
        used_numbers = {job.number for job in self.jobs}
        free_numbers = sorted(set(range(self.size)) - used_numbers)
        for number, unit, job in zip(free_numbers, units, jobs):
            lane = self.report.open_lane(number, unit.label)
            lane.begin_stage(f"{unit.stage.title} {unit.key[:8]}, job {job.job_id}")
            self.jobs.append(SubmittedJob(number, unit, job, lane))

    def poll(self, seconds: float) -> list[EndedUnit]:
        """What has ended, after a look at all jobs. Jobs tell nothing while they run."""
        time.sleep(min(seconds, JOB_POLL_SECONDS))
        ended: list[EndedUnit] = []
        running = []
        for submitted in self.jobs:
            if not submitted.job.done():
                running.append(submitted)
                continue
            submitted.lane.__exit__(None, None, None)
            ended.append((submitted.unit, read_job_outcome(submitted.job, submitted.unit)))
        self.jobs = running
        return ended

    def close(self) -> None:
        """Cancel what is under way."""
        for submitted in self.jobs:
            # Slurm may have ended it by itself meanwhile
            submitted.job.cancel(check=False)
        self.jobs.clear()


def read_job_outcome(job: "submitit.Job", unit: WorkUnit) -> UnitOutcome:
    """What a job has left; submitit raises if it has left nothing, and the unit's log gets its words."""
    try:
        return cast(UnitOutcome, job.result())  # what worker.run_slurm_job returned
    except Exception as error:
        message = str(error).strip() or type(error).__name__
        unit.log.parent.mkdir(parents=True, exist_ok=True)
        with open(unit.log, "a", encoding="utf-8") as file:
            file.write(f"{message}\n")
        last_line = message.splitlines()[-1]
        return UnitOutcome("died", f"job {job.job_id} ended without a result: {last_line}")


def make_executor(folder: Path, workers: int, parameters: dict[str, object]) -> "submitit.Executor":
    """submitit's executor, whose files lie in `folder`.

    UsageError when submitit is missing, finds no Slurm, or does not know a parameter."""
    try:
        import submitit
    except ImportError as error:
        raise UsageError("launch=slurm needs submitit: pip install 'slothkit[slurm]'") from error
    slurm_parameters = {"name": JOB_NAME, **parameters}
    cluster = str(slurm_parameters.pop("cluster", "slurm"))
    with remove_empty_folders(folder):
        try:
            executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
        except (ValueError, RuntimeError) as error:  # no srun here
            raise UsageError(f"launch=slurm: {error} (launch.slurm.cluster=local does without)") from error
        for name, value in slurm_parameters.items():
            submitit_name = f"slurm_{name}"
            if name in GENERIC_PARAMETERS:
                submitit_name = name
            try:
                executor.update_parameters(**{submitit_name: value})
            except (NameError, AssertionError) as error:
                first_line = str(error).splitlines()[0]
                raise UsageError(f"launch.slurm.{name}={value}: {first_line}") from error
        executor.update_parameters(slurm_array_parallelism=workers)
    return executor
