"""What lies below an output directory, and which cells need it: `python -m experiments.runs`.

Exit code 0: listed, or cleared; 2: bad input, one line says which; 130: Ctrl-C.
"""

import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from compressors.command_line import Command, CommandLine
from compressors.errors import UsageError
from compressors.help_layout import find_width
from compressors.setting_fields import setting

STAGE_FOLDER = re.compile(r"[0-9a-f]{16}(\.partial|\.left\.partial)?")
NAMED_CELLS = 1  # of those that need a stage; others are counted
UNITS = ("B", "kB", "MB", "GB", "TB")


@dataclass(frozen=True)
class RunsOptions:
    """Where to look, and what to do about it."""

    out: Path = setting(Path("runs"), "output directory")
    clear: bool = setting(False, "remove the stages that no cell needs; false: only say which")
    begun: bool = setting(
        False, "those too that a run has begun and not finished, which a sweep would resume"
    )


COMMAND = Command(
    usage="python -m experiments.runs [out=runs] [clear=true] [begun=true]",
    description="""\
Lists the finished cells below out= and the stages that they were made of: size, when it was finished, which
cells need it. A stage that no cell in out/cells needs is of cells that were removed, or that have not
finished. To be rid of a cell remove its folder below out/cells, then clear what only it has needed. Nothing
is cleared while a sweep runs there.""",
    options=RunsOptions,
    elsewhere="look at another directory with out=DIR",
)


@dataclass
class StoredStage:
    """A stage's directory. `name`: KIND/KEY; `cells`: names of the cells that need it."""

    path: Path
    name: str
    size: int
    finished: str
    cells: list[str] = field(default_factory=list)

    @property
    def is_begun(self) -> bool:
        """Whether no run has finished it."""
        return self.path.suffix == ".partial"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    return COMMAND.run(run_command, arguments)


def run_command(line: CommandLine) -> int:
    """List what there is, and clear it where that is asked for. UsageError while a sweep runs there, whose
    cells are not all published yet."""
    from experiments.runtime.files import claim_folder

    options: RunsOptions = line.options
    if not options.out.is_dir():
        raise UsageError(f"out={options.out}: no such directory")
    if not options.clear:
        show_runs(options)
        return 0
    try:
        with claim_folder(options.out):
            clear_stages(show_runs(options))
    except BlockingIOError as error:
        raise UsageError(f"out={options.out}: a sweep runs there; clear when it has ended") from error
    return 0


def show_runs(options: RunsOptions) -> list["StoredStage"]:
    """Print cells and stages; the stages that no cell needs."""
    cells = read_cells(options.out)
    stages = list_stages(options.out, cells)
    print_cells(options.out, cells, stages)
    print_stages(stages)
    unneeded = [stage for stage in stages if not stage.cells and (options.begun or not stage.is_begun)]
    kept = sum(stage.is_begun for stage in stages if stage not in unneeded)
    if kept:
        write_line(f"begun, which a sweep resumes: {kept}; begun=true takes them for what no cell needs")
    size = format_size(sum(stage.size for stage in unneeded))
    ending = "" if options.clear or not unneeded else "; clear=true removes them"
    write_line(f"stages that no cell needs: {len(unneeded)}, {size}{ending}")
    return unneeded


def read_cells(root: Path) -> dict[str, list[str]]:
    """Name of a cell -> names of the stages that it needs. UsageError for a cell that does not tell them."""
    from experiments.config.trained import CELLS_FOLDER, read_stage_names
    from llm_adapters.saved import STAGES_FILE

    cells = {}
    for folder in sorted((root / CELLS_FOLDER).glob("*/")):
        path = folder / STAGES_FILE
        if not path.is_file():
            raise UsageError(
                f"{path}: missing, so what this cell needs is unknown; run its sweep's command again, which "
                f"writes it, or be rid of the cell: remove {folder}"
            )
        cells[folder.name] = read_stage_names(folder)
    return cells


def list_stages(root: Path, cells: dict[str, list[str]]) -> list[StoredStage]:
    """All stages below the root, in the order of work."""
    from experiments.store.folder import read_done_note
    from experiments.store.plan import STAGE_KINDS

    users: dict[str, list[str]] = {}
    for cell, names in cells.items():
        for name in names:
            users.setdefault(name, []).append(cell)
    stages = []
    for kind in STAGE_KINDS:
        for path in sorted((root / kind).glob("*/")):
            # whatever else lies there is somebody's own; so is where a link leads
            if not STAGE_FOLDER.fullmatch(path.name) or path.is_symlink():
                continue
            try:
                finished = read_done_note(path)["finished"]
            except UsageError:
                finished = "damaged"
            stage = StoredStage(path, f"{kind}/{path.name}", measure_folder(path), finished)
            if stage.is_begun:
                stage.finished = "begun"
            stage.cells = users.get(stage.name, [])
            stages.append(stage)
    return stages


def print_cells(root: Path, cells: dict[str, list[str]], stages: Sequence[StoredStage]) -> None:
    """A line a cell: its own size, and that of all that only it needs. What is left of one whose weights or
    answers are gone is marked."""
    from experiments.config.trained import CELLS_FOLDER, list_gone_results

    rows = [["cell", "size", "its stages", "of it alone"]]
    for cell, stage_names in cells.items():
        needed = [stage for stage in stages if cell in stage.cells]
        alone = [stage for stage in needed if len(stage.cells) == 1]
        sizes = [measure_folder(root / CELLS_FOLDER / cell)]
        sizes += [sum(stage.size for stage in needed), sum(stage.size for stage in alone)]
        gone = list_gone_results(root, stage_names)
        mark = f" ({', '.join(gone)} gone)" if gone else ""
        rows.append([cell + mark, *map(format_size, sizes)])
    print_rows(rows)


def print_stages(stages: Sequence[StoredStage]) -> None:
    """A line a stage."""
    rows = [["stage", "size", "finished", "needed by"]]
    for stage in stages:
        users = ", ".join(stage.cells[:NAMED_CELLS])
        if len(stage.cells) > NAMED_CELLS:
            users += f" and {len(stage.cells) - NAMED_CELLS} more"
        rows.append([stage.name, format_size(stage.size), stage.finished, users or "no cell"])
    print_rows(rows)


def clear_stages(stages: Sequence[StoredStage]) -> None:
    """Remove stages; nobody else works below their root."""
    from experiments.runtime.files import remove_stale_lock
    from experiments.store.folder import DONE_FILE, lock_file_of

    for stage in stages:
        # first: half a directory must not look finished
        (stage.path / DONE_FILE).unlink(missing_ok=True)
        shutil.rmtree(stage.path)
        remove_stale_lock(lock_file_of(stage.path.with_suffix("")))
        write_line(f"removed {stage.name}")


def measure_folder(path: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(file.lstat().st_size for file in path.rglob("*") if not file.is_dir())


def format_size(size: float) -> str:
    """12 kB, 3.4 MB: decimal units, as disks have them."""
    for unit in UNITS:
        if size < 1000 or unit == UNITS[-1]:
            break
        size /= 1000
    return f"{size:.0f} {unit}" if size >= 10 or unit == UNITS[0] else f"{size:.1f} {unit}"


def print_rows(rows: Sequence[Sequence[str]]) -> None:
    """Rows in columns, the last of them below the others where a terminal is too narrow; nothing where there
    is but a header."""
    if len(rows) == 1:
        return
    widths = [max(map(len, column)) for column in zip(*rows)]
    terminal_width = find_width()
    is_wide = terminal_width is not None and sum(widths) + 2 * (len(widths) - 1) > terminal_width
    separators = ["  "] * (len(widths) - 2) + ["\n    " if is_wide else "  ", ""]
    for row in rows:
        words = [word.ljust(width) for word, width in zip(row, widths)]
        line = "".join(word + separator for word, separator in zip(words, separators))
        write_line("\n".join(map(str.rstrip, line.split("\n"))))
    write_line("")


def write_line(text: str) -> None:
    sys.stdout.write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(main())
