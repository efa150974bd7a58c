"""The stage store: every stage's result in a directory named by its key, finished or not there at all.

    OUT/pretrain/3f2a91c07be41d55/           finished: config.yaml, what the stage wrote, done.json
    OUT/pretrain/3f2a91c07be41d55.partial/   under way, or left by a killed run; the next one resumes from it
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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from compressors.errors import UsageError
from experiments.files import (
    DRAFTS,
    disk_error,
    locked,
    removed_if_empty,
    sync_directory,
    write_atomic,
)
from experiments.fingerprint import file_digest
from experiments.plan import Stage
from experiments.progress import Reporter

Runner = Callable[..., Any]  # (config, inputs, out, report), features also roles
RUNNERS = {
    "data": "experiments.data.stage:run",
    "features": "experiments.features:run",
    "pretrain": "experiments.train:pretrain",
    "finetune": "experiments.train:finetune",
    "evaluate": "experiments.evaluate:run",
}
PACKAGES = ("slothkit", "torch", "transformers", "lightning")
DONE, CONFIG = "done.json", "config.yaml"


def runner(kind: str) -> Runner:
    """The function that computes stages of a kind, imported when first needed."""
    name, function = RUNNERS[kind].split(":")
    return getattr(import_module(name), function)


class StageFailed(Exception):
    """A stage's code raised something that is neither bad input nor a full disk; the cause is chained."""

    def __init__(self, stage: Stage, error: Exception):
        lines = str(error).strip().splitlines() or [""]
        super().__init__(f"{stage.name}: {type(error).__name__}: {lines[-1]}")
        self.stage = stage


class Store:
    """Finished stages below `root`. `runner` gives the function for a kind of stage."""

    def __init__(self, root: Path, report: Reporter | None = None, runner: Callable[[str], Runner] = runner):
        self.root, self.report, self.runner = Path(root), report or Reporter(), runner
        self._verified: set[str] = set()

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Make the root, and remove it if nothing comes to lie in it; an OSError if it cannot be written."""
        with removed_if_empty(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            if not os.access(self.root, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self.root))
            yield

    def path(self, stage: Stage) -> Path:
        """Where a stage's result lies once it is finished."""
        return self.root / stage.name

    def status(self, stage: Stage) -> str:
        """done, damaged, partial or missing, by a look at names and sizes."""
        path = self.path(stage)
        if path.is_dir():
            return "damaged" if damage(path) else "done"
        return "partial" if partial(path).is_dir() else "missing"

    def done(self, stage: Stage) -> dict[str, Any]:
        """What was noted when a stage finished: files, seconds, versions."""
        return json.loads((self.path(stage) / DONE).read_text(encoding="utf-8"))

    def compute(self, stage: Stage) -> Path:
        """The directory of a finished stage; what is missing is computed first."""
        path = self.path(stage)
        if self._wrong(stage) is None:
            return path
        inputs = {name: self.compute(each) for name, each in stage.inputs.items()}
        with removed_if_empty(path.parent), locked(lock_of(path), lambda: self._waiting(stage)):
            wrong = self._wrong(stage)  # another process may have been faster
            if wrong is not None:
                self._discard(path, wrong)
                self._run(stage, inputs, path)
        return path

    def _wrong(self, stage: Stage) -> str | None:
        """Why a stage has to be computed, None if it is whole. Digests are compared once a process."""
        if stage.key not in self._verified:
            wrong = damage(self.path(stage), digests=True)
            if wrong is not None:
                return wrong
            self._verified.add(stage.key)
        return None

    def _discard(self, path: Path, wrong: str) -> None:
        if path.is_dir():
            self.report.note(f"warning: {path} is damaged ({wrong}); computing it again")
            (path / DONE).unlink(missing_ok=True)  # first: half a directory must not look finished
            shutil.rmtree(path)

    def _waiting(self, stage: Stage) -> None:
        self.report.note(f"waiting for another process to finish {stage.name}")

    def _run(self, stage: Stage, inputs: Mapping[str, Path], path: Path) -> None:
        draft = partial(path)
        resumed = draft.is_dir()
        if not resumed or damage(draft, digests=True) is not None:  # else only the rename was missing
            self._fill(stage, inputs, draft, resumed)
        os.rename(draft, path)
        sync_directory(path.parent)
        self._verified.add(stage.key)

    def _fill(self, stage: Stage, inputs: Mapping[str, Path], draft: Path, resumed: bool) -> None:
        draft.mkdir(exist_ok=True)
        for left in (draft / DONE, *draft.rglob(DRAFTS)):
            left.unlink(missing_ok=True)
        self.report.stage(f"{stage.title} {stage.key[:8]}{' resumed' if resumed else ''}")
        started = time.monotonic()
        arguments = {"roles": stage.roles} if stage.roles else {}
        with tidied(stage, draft, resumed):
            self.runner(stage.kind)(stage.config, dict(inputs), draft, self.report, **arguments)
        seconds = round(time.monotonic() - started, 3)
        content = {"key": stage.key, **stage.describe()}
        write_atomic(draft / CONFIG, OmegaConf.to_yaml(OmegaConf.create(plain(content))))
        files = {name: [size, file_digest(draft / name)] for name, size in listing(draft)}
        note = {"stage": stage.kind, "key": stage.key, "seconds": seconds, "resumed": resumed,
                "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "versions": versions(), "files": files}
        write_atomic(draft / DONE, json.dumps(note, indent=1) + "\n")


@contextmanager
def tidied(stage: Stage, draft: Path, resumed: bool) -> Iterator[None]:
    """Bad input leaves nothing behind; after anything else what was done so far stays, to be resumed."""
    try:
        yield
    except UsageError:
        if not resumed:
            shutil.rmtree(draft)
        raise
    except SystemExit as error:  # Lightning turns Ctrl-C into an exit
        raise KeyboardInterrupt from error
    except Exception as error:
        raise disk_error(error, draft) or StageFailed(stage, error) from error


def lock_of(path: Path) -> Path:
    """Held by the process that computes a stage."""
    return path.with_name(f"{path.name}.lock")


def partial(path: Path) -> Path:
    """Where a stage is computed."""
    return path.with_name(f"{path.name}.partial")


def listing(path: Path) -> Iterator[tuple[str, int]]:
    """Names below `path` and sizes of all files, sorted."""
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        yield file.relative_to(path).as_posix(), file.stat().st_size


def damage(path: Path, digests: bool = False) -> str | None:
    """What is wrong with a finished stage's directory; None if it is whole."""
    try:
        files = json.loads((path / DONE).read_text(encoding="utf-8"))["files"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return f"no readable {DONE}"
    for name, (size, digest) in files.items():
        file = path / name
        if not file.is_file():
            return f"no {name}"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes instead of {size}"
        if digests and file_digest(file) != digest:
            return f"the content of {name} has changed"
    return None


def versions() -> dict[str, str]:
    """Versions of what a result was computed with."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def plain(value: Any) -> Any:
    """Tuples as lists, for YAML."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value
