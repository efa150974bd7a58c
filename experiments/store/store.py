"""The stage store: every stage's result in a directory named by its key, finished or not there at all.

    OUT/pretrain/3f2a91c07be41d55/           finished: config.yaml, what the stage wrote, done.json
    OUT/pretrain/3f2a91c07be41d55.partial/   under way, or left by a killed run; the next one resumes from it
    OUT/pretrain/3f2a91c07be41d55.left.partial/   what a run could not go on from, until the stage is finished
    OUT/pretrain/3f2a91c07be41d55.lock       held by the process that computes it; others wait

A stage fills its partial directory; `done.json`, with the size and digest of every file, is written last, and
one rename makes the stage finished. A finished stage that misses a file, or whose files have changed, is
computed again.
"""

import errno
import json
import os
import shutil
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from compressors.errors import UsageError
from experiments.config.devices import find_first_gpu, list_gpu_numbers
from experiments.config.trained import CONFIG_FILE
from experiments.runtime.files import (
    DRAFT_PATTERN,
    find_disk_error,
    hold_lock,
    remove_empty_folders,
    remove_stale_lock,
    share_folder,
    sync_directory,
    write_atomic,
)
from experiments.runtime.progress import Reporter, StepCounter
from experiments.runtime.provenance import describe_run
from experiments.store.edited_files import refuse_edited_files
from experiments.store.folder import (
    DONE_FILE,
    convert_tuples,
    draft_folder_of,
    find_damage,
    list_file_sizes,
    lock_file_of,
    read_done_note,
    read_package_versions,
    set_aside_folder_of,
)
from experiments.store.keys import digest_file
from experiments.store.part_code import refuse_edited_code
from experiments.store.plan import TRAINING_ROLES, Stage
from experiments.store.run_names import describe_curve_run
from experiments.store.workload import derive_workload

StageRunner = Callable[..., Any]  # (config, inputs, out, report), features also roles


class NotFinite(Exception):
    """A stage has met a nan or an infinity. The message is one line: in which step, what, what to change."""


class StageFailed(Exception):
    """A stage's code raised something that is neither bad input nor a full disk; the cause is chained."""

    def __init__(self, stage: Stage, error: Exception):
        lines = str(error).strip().splitlines() or [""]
        reason = f"{type(error).__name__}: {lines[-1]}"
        if isinstance(error, NotFinite):
            reason = lines[-1]
        super().__init__(f"{stage.name}: {reason}")
        self.stage = stage

    def format_trace(self) -> str:
        """The traceback of what was raised; of a NotFinite, which says it all, the line alone."""
        if isinstance(self.__cause__, NotFinite):
            return f"{self}\n"
        return "".join(traceback.format_exception(self.__cause__))


class StageBusy(Exception):
    """Another process computes the stage."""


class Store:
    """The stages below `root`.

    runner   gives the function that computes a kind of stage (`experiments.stages.runners.find_runner`); a
             store without one reads what is finished, and cannot compute what is not
    """

    def __init__(
        self,
        root: Path,
        report: Reporter | None = None,
        runner: Callable[[str], StageRunner] | None = None,
    ):
        self.root = Path(root)
        self.report = report or Reporter()
        self.runner = runner
        self._verified: set[str] = set()  # keys of stages whose digests this process has compared
        self._reported: set[Path] = set()  # damaged results that a reader was told of

    @contextmanager
    def open_root(self) -> Iterator[None]:
        """Make the root, and remove it if nothing comes to lie in it; an OSError if it cannot be written.
        Meanwhile nothing below is cleared."""
        with remove_empty_folders(self.root), share_folder(self.root):
            if not os.access(self.root, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self.root))
            yield

    def locate_result(self, stage: Stage) -> Path:
        """Where a stage's result lies once it is finished."""
        return self.root / stage.name

    def find_status(self, stage: Stage) -> str:
        """Return "done", "damaged", "partial" or "missing", by a look at names and sizes."""
        path = self.locate_result(stage)
        if path.is_dir():
            return "damaged" if find_damage(path) else "done"
        if draft_folder_of(path).is_dir():
            return "partial"
        return "missing"

    def is_finished(self, stage: Stage) -> bool:
        """Whether a stage's result is there, by a look at names and sizes."""
        return self.find_status(stage) == "done"

    def read_note(self, stage: Stage) -> dict[str, Any]:
        """Read what was noted when a stage finished: its files, seconds and versions of packages."""
        return read_done_note(self.locate_result(stage))

    def find_whole_result(self, stage: Stage) -> Path | None:
        """The directory of a finished stage, its digests compared; None if there is none.

        A damaged one counts as none, and is named once: what is published is of whole results alone.
        """
        path = self.locate_result(stage)
        fault = self.find_fault(stage)
        if fault is None:
            return path
        if path.is_dir() and path not in self._reported:
            self._reported.add(path)
            self.report.write_warning(
                f"{path} is damaged ({fault}) and left out; the sweep computes it again"
            )
        return None

    def compute(self, stage: Stage, wait: bool = True) -> Path:
        """The directory of a finished stage; it and its inputs are computed first where they are missing.

        With `wait=False` a stage that another process computes raises StageBusy.
        """
        path = self.locate_result(stage)
        if self.find_fault(stage) is None:
            remove_stale_lock(lock_file_of(path))  # of a kill between the rename and the end of the lock
            return path
        inputs: dict[str, Path] = {}
        for name, input_stage in stage.inputs.items():
            inputs[name] = self.compute(input_stage, wait)
        with (
            remove_empty_folders(path.parent),
            hold_lock(lock_file_of(path), lambda: self._announce_wait(stage, wait)),
        ):
            fault = self.find_fault(stage)  # another process may have been faster
            if fault is not None:
                self._discard_damaged(path, fault)
                self._compute_stage(stage, inputs, path)
        return path

    def find_next_stage(self, stage: Stage) -> Stage:
        """What `compute` begins with: the stage, or the first of its inputs that is not finished."""
        for source in stage.inputs.values():
            if not self.is_finished(source):
                return self.find_next_stage(source)
        return stage

    def find_fault(self, stage: Stage) -> str | None:
        """Return why a stage has to be computed, None if it is whole.

        Digests are compared once a process: a cell's stages are asked for again and again, and weights are
        large files.
        """
        if stage.key in self._verified:
            return None
        fault = find_damage(self.locate_result(stage), digests=True)
        if fault is None:
            self._verified.add(stage.key)
        return fault

    def _discard_damaged(self, path: Path, fault: str) -> None:
        if not path.is_dir() and not path.is_symlink():
            return
        self.report.write_warning(f"{path} is damaged ({fault}); computing it again")
        if path.is_symlink():  # where it leads is somebody's own
            path.unlink()
            return
        (path / DONE_FILE).unlink(missing_ok=True)  # first: half a directory must not look finished
        shutil.rmtree(path)

    def _announce_wait(self, stage: Stage, wait: bool) -> None:
        if not wait:
            raise StageBusy(stage.name)
        self.report.write_note(f"waiting for another process to finish {stage.name}")

    def _compute_stage(self, stage: Stage, inputs: Mapping[str, Path], path: Path) -> None:
        """Fill the stage's partial directory, unless it is full, and give it its final name."""
        draft = draft_folder_of(path)
        resumed = draft.is_dir()
        # a whole draft was killed between its last file and the rename
        if not resumed or find_damage(draft, digests=True) is not None:
            self._fill_or_start_over(stage, inputs, draft, resumed)
        os.rename(draft, path)
        sync_directory(path.parent)
        self._verified.add(stage.key)
        shutil.rmtree(set_aside_folder_of(path), ignore_errors=True)

    def _fill_or_start_over(
        self, stage: Stage, inputs: Mapping[str, Path], draft: Path, resumed: bool
    ) -> None:
        """What a killed run has left may be damaged: a resumed stage that fails before its first step is
        started over, once. What was left is put aside, and is back if the second try comes no further."""
        report = StepCounter(self.report)
        try:
            self._fill_draft(stage, inputs, draft, resumed, report)
            return
        except StageFailed as error:
            if not resumed or report.advanced or not may_be_damage(error.__cause__):
                raise
            reason = str(error)
        aside = set_aside_folder_of(self.locate_result(stage))
        if aside.exists():  # what was put aside first had more to lose
            shutil.rmtree(draft)
        else:
            os.rename(draft, aside)
        self.report.write_warning(
            f"cannot go on from what is left of {reason}; starting over, what is left is kept as {aside} "
            "until that is finished"
        )
        try:
            self._fill_draft(stage, inputs, draft, False, report)
        except BaseException:
            if not report.advanced:
                shutil.rmtree(draft, ignore_errors=True)
                os.rename(aside, draft)
            raise

    def _fill_draft(
        self, stage: Stage, inputs: Mapping[str, Path], draft: Path, resumed: bool, report: StepCounter
    ) -> None:
        """Run the stage's function in its partial directory, and note what it has left there."""
        if self.runner is None:
            raise ValueError(f"{stage.name} is not finished, and this store has no runner to compute it")
        refuse_edited_code(stage.depends)
        refuse_edited_files(stage)
        draft.mkdir(exist_ok=True)
        # half-written files of a killed run must not be taken for the stage's own
        for stale_file in (draft / DONE_FILE, *draft.rglob(DRAFT_PATTERN)):
            stale_file.unlink(missing_ok=True)
        ending = " resumed" if resumed else ""
        self.report.begin_stage(f"{stage.title} {stage.key[:8]}{ending}")
        started = time.monotonic()
        arguments = {"roles": stage.roles} if stage.roles else {}
        with tidy_after_error(stage, draft, resumed, report):
            config = replace(stage.config, curves=describe_curve_run(stage, self.root))
            self.runner(stage.kind)(config, dict(inputs), draft, report, **arguments)
        seconds = round(time.monotonic() - started, 3)
        content = {"key": stage.key, **stage.describe_for_key()}
        write_atomic(draft / CONFIG_FILE, OmegaConf.to_yaml(OmegaConf.create(convert_tuples(content))))
        files = {name: [size, digest_file(draft / name)] for name, size in list_file_sizes(draft)}
        note = {
            "stage": stage.kind,
            "key": stage.key,
            "seconds": seconds,
            "resumed": resumed,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "versions": read_package_versions(),
            **describe_stage_run(stage),
            "steps": report.total,
            "load": asdict(derive_workload(stage)),
            "files": files,
        }
        write_atomic(draft / DONE_FILE, json.dumps(note, indent=1) + "\n")


def may_be_damage(error: BaseException | None) -> bool:
    """Whether a stage may have failed because of what an earlier run has left. A lack of memory is none, nor
    what is not finite."""
    # torch's own error of a full device is no MemoryError, and this module does without torch
    return not isinstance(error, NotFinite | MemoryError) and type(error).__name__ != "OutOfMemoryError"


@contextmanager
def tidy_after_error(stage: Stage, draft: Path, resumed: bool, report: StepCounter) -> Iterator[None]:
    """Bad input that is met before the first step leaves nothing behind; after anything else what was done so
    far stays, to be resumed."""
    try:
        yield
    except UsageError:
        if not resumed and not report.advanced:
            shutil.rmtree(draft)
        raise
    except SystemExit as error:  # Lightning turns Ctrl-C into an exit
        raise KeyboardInterrupt from error
    except Exception as error:
        raise find_disk_error(error, draft) or StageFailed(stage, error) from error


def describe_stage_run(stage: Stage) -> dict[str, Any]:
    """How this process has computed a stage: `describe_run` of the devices that it has run on."""
    trainer = stage.config.trainer
    # what is no training runs on one
    gpus = list_gpu_numbers(trainer) if stage.kind in TRAINING_ROLES else [find_first_gpu(trainer)]
    return describe_run("cpu" if stage.kind == "data" else trainer.accelerator, gpus)
