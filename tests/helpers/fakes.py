"""Stage functions that compute nothing but leave what real ones do; a configuration that needs no asset."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from compressors.errors import UsageError
from compressors.key_value import parse_settings
from experiments.config.cells import Cell, make_cells
from experiments.config.schema import Config
from experiments.runtime.files import write_atomic
from experiments.store.folder import PROGRESS_FILE
from experiments.store.plan import Stage, plan_stages
from experiments.store.store import NotFinite

SOURCES = {"tower.source": ["hub/tower"], "llm.source": ["hub/llm"]}


def cells(*overrides: str) -> list[Cell]:
    """Cells of the tiny preset with sources that are only names."""
    return make_cells(SOURCES | parse_settings(list(overrides)))


def config(*overrides: str) -> Config:
    (cell,) = cells(*overrides)
    return cell.config


def stages(*overrides: str) -> dict[str, Stage]:
    """The stages of one cell by kind; features by "features test" and so on."""
    found = plan_stages(config(*overrides)).collect_stages().values()
    return {" ".join([stage.kind, *stage.roles[:1]]): stage for stage in found}


QUESTIONS = [
    ("Is there a fox?", "yes", "presence"),
    ("Is there an owl?", "no", "presence"),
    ("Is there a cat?", "yes", "presence"),
    ("What is it?", "a fox", "recognition"),
]


def write_llava(path: Path, images: bool = False, samples: int = 2) -> Path:
    """A small LLaVA file; with `images`, red squares beside it."""
    records = []
    for i in range(samples):
        turns = [
            {"from": who, "value": text}
            for question, answer, _ in QUESTIONS
            for who, text in (("human", question), ("gpt", answer))
        ]
        records.append({"id": str(i), "conversations": turns, "families": [f for *_, f in QUESTIONS]})
        if images:
            from PIL import Image

            Image.new("RGB", (48, 48), "red").save(path.parent / f"{i}.png")
            records[-1]["image"] = f"{i}.png"
    path.write_text(json.dumps(records))
    return path


@dataclass(frozen=True)
class FakeRunner:
    """Gives stages that append their kind to `log` and a line for every step to `log`.steps. One takes `slow`
    seconds in ten steps and resumes. Stages of the kind `fail` fail for seed 1, of the kind `diverge` always,
    of the kind `refuse` find bad input, of the kind `fill` a full disk. `deaths` is a file: as many
    finetunings as it has bytes kill their process. `life`: so many steps of any stage end its process.
    It pickles, so that workers can have it."""

    log: Path
    slow: float = 0.0
    fail: str = ""
    diverge: str = ""
    refuse: str = ""
    fill: str = ""
    deaths: Path | None = None
    life: int | None = None

    def __call__(self, kind: str):
        return partial(self.run, kind)

    def run(self, kind: str, config: Config, inputs: dict, out: Path, report, roles=()) -> None:
        append(self.log, " ".join([kind, *roles[:1]]))
        told = os.environ.get("OMP_NUM_THREADS"), os.environ.get("CUDA_VISIBLE_DEVICES")
        append(self.log.with_suffix(".told"), " ".join(map(str, told)))
        if kind == self.fail and config.seed == 1:
            sys.stdout.write("a last word\n")
            raise RuntimeError("first\nCUDA out of memory")
        if kind == self.diverge:
            raise NotFinite("step 2: the loss is not finite; lower pretrain.lr")
        if kind == self.refuse:
            raise UsageError("picture.png is no picture;\ndelete it")
        if kind == self.fill:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(out / "a.bin"))
        if self.deaths is not None and kind == "finetune" and self.deaths.stat().st_size:
            os.truncate(self.deaths, self.deaths.stat().st_size - 1)
            os.kill(os.getpid(), signal.SIGKILL)
        self.steps(out, report)
        leave(kind, config, out)
        (out / "inputs.json").write_text(json.dumps(sorted(inputs)))

    def steps(self, out: Path, report) -> None:
        progress = out / PROGRESS_FILE
        done = int(progress.read_text() or 0) if progress.exists() else 0
        report.announce_steps(10, done=done)
        for step in range(done, 10):
            append(self.log.with_suffix(".steps"), f"{out.stem} {step}")
            time.sleep(self.slow / 10)
            write_atomic(progress, str(step + 1))
            report.advance_steps(loss=1.0)
            if step + 1 - done == self.life and step < 9:
                os.kill(os.getpid(), signal.SIGKILL)
        (out / "started_at.txt").write_text(str(done))


def append(path: Path, line: str) -> None:
    """One write, so that lines of several processes do not mix."""
    with open(path, "a") as file:
        file.write(f"{line}\n")


def leave(kind: str, config: Config, out: Path) -> None:
    """What other stages and the table read."""
    if kind == "data":
        folder = out / config.data.dataset
        folder.mkdir(exist_ok=True)
        write_llava(folder / "test.json")
    if kind == "evaluate":
        share = 0.5 + 0.125 * (config.seed % 4)
        (out / "metrics.json").write_text(
            json.dumps(
                {
                    "overall": share,
                    "families": {"presence": share, "recognition": 1.0},
                    "n": 8,
                    "counts": {"presence": 6, "recognition": 2},
                    "efficiency": {"visual_tokens": 16, "query_tokens": 9, "parameters_added": 1},
                }
            )
        )
        answers = [
            json.dumps({"id": f"{i}#{n}", "family": family, "question": question, "answer": answer})
            for i in range(2)
            for n, (question, answer, family) in enumerate(QUESTIONS)
        ]
        (out / "predictions.jsonl").write_text("".join(f"{line}\n" for line in answers))


def read_log(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


def names(out: Path) -> list[str]:
    """The overrides that every command here needs."""
    return [*(f"{key}={values[0]}" for key, values in SOURCES.items()), f"out={out}"]


def spawn(out: Path, log: Path, slow: float, *arguments: str, **keywords) -> subprocess.Popen:
    """The sweep with fake stages as a process that a test can kill, with Ctrl-C too: a test run in the
    background of a script ignores that, and so would what it starts."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, __file__, str(log), str(slow), *names(out), *arguments]
    return subprocess.Popen(command, env=environment, **{"preexec_fn": heed_interrupts, **keywords})


def heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def table(out: Path) -> dict[str, bytes]:
    """What a sweep ends with: the tables and every cell's results."""
    found = [*out.glob("table.*"), *out.glob("cells/*/*.json*")]
    return {str(path.relative_to(out)): path.read_bytes() for path in found}


def children(pid: int) -> list[int]:
    """The workers of a command and their children; not the process that tidies up after multiprocessing."""
    command = ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(pid)]  # not cut at 80 columns
    found = subprocess.run(command, capture_output=True, text=True)
    here = [int(line.split()[0]) for line in found.stdout.splitlines() if "resource_tracker" not in line]
    return [*here, *(each for child in here for each in children(child))]


def wait_for(condition, seconds: float = 20.0) -> None:
    """Until a condition holds; AssertionError if it takes longer."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


if __name__ == "__main__":  # fakes.py LOG SLOW ARGUMENTS OF THE SWEEP...
    from experiments.sweep import __main__ as sweep

    log_path, seconds, *given = sys.argv[1:]
    sys.exit(sweep.main(given, FakeRunner(Path(log_path), float(seconds)), lambda _: None))
