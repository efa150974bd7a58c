"""Where units are computed: what a launcher does, and how `launch=NAME` becomes one.

Ours are processes of this machine (`pool.py`) and Slurm jobs (`slurm.py`); an outside package offers its own
in the entry-point group `slothkit.launchers`, in the same way as `setup.cfg` offers these.
"""

from abc import ABC, abstractmethod
from typing import cast

from experiments.registries import launchers
from experiments.store.store import Store
from experiments.sweep.options import LaunchOptions
from experiments.sweep.units import WorkUnit
from experiments.sweep.worker import UnitOutcome

EndedUnit = tuple[WorkUnit, UnitOutcome]


class Launcher(ABC):
    """Computes units elsewhere, several at once.

    A unit is computed by `worker.run_unit` or `worker.run_slurm_job`: both end with a UnitOutcome and leave
    the result in the stage store below `root`. The constructor names those of these arguments that it needs:

    root         the output directory, which workers must see under the same path
    runner       gives the function of a kind of stage; it pickles
    report       where to tell of workers' progress, each in a lane of its own
    workers      units at once, launch.workers; or "auto"
    threads      of a worker, launch.threads; None: the launcher's choice
    parameters   what launch.NAME.KEY=VALUE say, by KEY
    uses_gpu     whether any stage of the cells would run on a GPU
    """

    @classmethod  # noqa: B027  one that takes all has nothing to check
    def check_parameters(cls, parameters: dict[str, object]) -> None:
        """UsageError for parameters that it does not take, as far as this can be told before it is made: a
        plan asks."""

    @property
    @abstractmethod
    def free(self) -> int:
        """How many more units may be submitted now."""

    @abstractmethod
    def submit(self, units: list[WorkUnit]) -> None:
        """Start units, no more than are free."""

    @abstractmethod
    def poll(self, seconds: float) -> list[EndedUnit]:
        """Wait up to `seconds`, pass progress on, and return what has ended with how it ended."""

    @abstractmethod
    def close(self) -> None:
        """End everything that is under way. Called once, whatever happened before."""


def check_launch_parameters(options: LaunchOptions) -> None:
    """UsageError for parameters that the launcher of `launch=` does not take."""
    if options.parameters:
        launchers.get(options.where).check_parameters(options.parameters)


def create_launcher(options: LaunchOptions, store: Store, uses_gpu: bool) -> Launcher:
    """The launcher that `launch=` names. UsageError for options that it cannot work with."""
    launcher = launchers.create(
        options.where,
        root=store.root,
        runner=store.runner,
        report=store.report,
        workers=options.workers or 1,
        threads=options.threads,
        parameters=options.parameters,
        uses_gpu=uses_gpu,
    )
    return cast(Launcher, launcher)  # the registry holds launchers, but does not know their type
