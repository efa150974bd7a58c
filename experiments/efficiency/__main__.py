"""What models cost: `python -m experiments.efficiency`; --help tells how.

Exit code 0: done; 2: bad input or a full disk, one line says which; 130: Ctrl-C.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from compressors.command_line import Command, CommandLine
from compressors.errors import UsageError
from compressors.key_value import join_settings
from compressors.setting_fields import setting
from experiments.runtime.bars import create_reporter

if TYPE_CHECKING:
    from experiments.efficiency.conditions import MeasuringPlan, PictureSize
    from experiments.efficiency.report import EfficiencyResult

DESCRIPTION = """\
What models cost, with random weights: no trained ones are needed.

  python -m experiments.efficiency preset=flashsloth compressor=sap+embq,identity count=true
  python -m experiments.efficiency compressor=sap+embq,identity batch=1,8       with times
  python -m experiments.efficiency table1=true                      the paper's Table 1: counts
  python -m experiments.efficiency table1=true measure=true         with times, a process each
  python -m experiments.efficiency preset=flashsloth train=true     training steps: its Figure 3

Other KEY=VALUE: settings and knobs as for python -m experiments.sweep; commas make a product."""
# width x height in pixels: what dynamic models of Table 1 see depends on it
TABLE1_PICTURES = ("448x448", "896x896", "1344x1344")
CELL_PICTURES = ("768x768",)  # cells scale every picture to their tower's size


@dataclass(frozen=True)
class EfficiencyOptions:
    count: bool = setting(False, "nothing is timed, no weights are made")
    table1: bool = setting(False, "the models of the paper's Table 1")
    only: str | None = setting(None, "one model of Table 1 by its label, in this process")
    measure: bool = setting(False, "time the models of Table 1 too")
    train: bool = setting(False, "training steps of both stages")
    batch: tuple[int, ...] = setting((1,), "rows at once", low=1)
    images: tuple[int, ...] = setting((1,), "images of a row", low=1)
    text: int | None = setting(None, "text tokens of a row (40; in training 40 and 256)", low=1)
    pictures: tuple[str, ...] = setting(
        (), "sizes of pictures, WxH (768x768; Table 1: 448x448,896x896,1344x1344)"
    )
    tokens: int = setting(33, "tokens of an answer", low=1)
    rounds: int = setting(7, "measured rounds after one that is not", low=1)
    static: bool = setting(
        False, "cache of fixed size; on a GPU transformers compiles the decoding step for it"
    )
    compile: bool = setting(False, "compile the layers of tower and LLM before they are timed (cells)")
    data_rows: tuple[int, ...] = setting(
        (), "rows of both stages' data, for the estimate of hours (558000,665000)", low=1
    )
    device: str | None = setting(None, "cpu or cuda (cuda where there is one)")
    dtype: str | None = setting(
        None,
        "of weights (bfloat16 on a GPU and in Table 1, else float32)",
        choices=(None, "float32", "bfloat16", "float16"),
    )
    threads: int | None = setting(None, "CPU threads (torch's choice)", low=1)
    to: Path | None = setting(None, "folder to write efficiency.json, .md and pictures to")

    @property
    def uses_table1(self) -> bool:
        """Whether models of Table 1 are looked at, not cells."""
        return self.table1 or self.only is not None


NOT_OF_TRAINING = {  # options of models that answer, and what to do for train=true
    "pictures": "leave it out",
    "batch": "set pretrain.batch_size= and finetune.batch_size=",
    "images": "leave it out",
    "dtype": "set trainer.precision=",
    "static": "leave it out",
}

COMMAND = Command(
    usage="python -m experiments.efficiency [KEY=VALUE ...]",
    description=DESCRIPTION,
    options=EfficiencyOptions,
    overrides=True,
    elsewhere="choose another directory with to=DIR",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    return COMMAND.run(run_efficiency, arguments)


def run_efficiency(line: CommandLine) -> int:
    """The command, with its exceptions."""
    options: EfficiencyOptions = line.options
    overrides = join_settings(line.overrides)
    check_options(options, overrides)
    sizes = parse_picture_sizes(options)
    # the result says how to make it again
    command = f"python -m experiments.efficiency {shlex.join(line.arguments)}".strip()
    result = measure_models(options, overrides, sizes, command)
    from experiments.efficiency import report  # torch: --help and a typo do not wait

    console = Console()
    print_result(result, console)
    if options.to:
        written = report.write_result(result, options.to)
        console.print(*written, sep="  ", markup=False, highlight=False, soft_wrap=True)
    return 0


def check_options(options: EfficiencyOptions, overrides: Sequence[str]) -> None:
    """UsageError for options that contradict each other."""
    if options.uses_table1 and options.train:
        raise UsageError(
            "train=true: trains cells of this project, not the models of table1=true; leave one out"
        )
    if options.uses_table1 and overrides:
        raise UsageError(f"{overrides[0]}: table1=true has its own models; leave one of them out")
    if options.count and (options.measure or options.train):
        raise UsageError("count=true: counts alone; leave out measure=true and train=true, or count=true")
    if options.compile and (options.uses_table1 or options.count or options.train):
        raise UsageError(
            "compile=true: for answers of cells that are timed; leave out table1=true, only=, count=true "
            "and train=true (whose steps compile with trainer.compile=true)"
        )
    if options.train:
        defaults = EfficiencyOptions()
        for name, instead in NOT_OF_TRAINING.items():
            if getattr(options, name) != getattr(defaults, name):
                raise UsageError(
                    f"{name}=: is of models that answer, and train=true times training steps; {instead}"
                )
    if options.data_rows and len(options.data_rows) != 2:
        numbers = ",".join(map(str, options.data_rows))
        raise UsageError(f"data_rows={numbers}: give two numbers, of stage 1 and of stage 2")


def parse_picture_sizes(options: EfficiencyOptions) -> tuple[PictureSize, ...]:
    """Width and height of the pictures, 448x448,1344x896 or what suits the models."""
    sizes = []
    default = TABLE1_PICTURES if options.uses_table1 else CELL_PICTURES
    for text in options.pictures or default:
        match = re.fullmatch(r"([1-9][0-9]*)x([1-9][0-9]*)", text)
        if match is None:
            raise UsageError(f"pictures={text}: expected WIDTHxHEIGHT in pixels, such as 768x768")
        sizes.append((int(match[1]), int(match[2])))
    return tuple(sizes)


def make_measuring_plan(options: EfficiencyOptions, sizes: tuple[PictureSize, ...]) -> MeasuringPlan:
    """What is asked of every model."""
    from experiments.efficiency.conditions import MeasuringPlan
    from experiments.models.random_model import TEXT_TOKENS

    return MeasuringPlan(
        pictures=sizes,
        batches=options.batch,
        images=options.images,
        text=options.text or TEXT_TOKENS,
        tokens=options.tokens,
        rounds=options.rounds,
        static=options.static,
        compiled=options.compile,
    )


def measure_models(
    options: EfficiencyOptions, overrides: Sequence[str], sizes: tuple[PictureSize, ...], command: str
) -> EfficiencyResult:
    """Everything that is counted and measured, with where and how."""
    # torch and transformers: --help and a typo do not wait for them
    from experiments.efficiency import collect, table1
    from experiments.efficiency.conditions import describe_conditions, settle_machine

    place = settle_machine(options.device, options.dtype, options.threads, options.uses_table1)
    plan = make_measuring_plan(options, sizes)
    conditions = {"command": command, **describe_conditions(place, plan)}
    rows: list[collect.EfficiencyRow] = []
    training: list[collect.EfficiencyRow] = []
    with create_reporter(Console()) as report:
        if options.uses_table1:
            labels = [options.only] if options.only else list(table1.read_table1())
            rows = collect.measure_table1(labels, plan, place, report, options.measure)
        elif options.train:
            training = collect.measure_training_stages(
                overrides, options.rounds, options.text, options.data_rows, place.device, report
            )
        else:
            rows = collect.measure_cells(overrides, plan, place, report, timed=not options.count)
    return {"made": conditions, "rows": rows, "training": training}


def print_result(result: EfficiencyResult, console: Console) -> None:
    """Tables, each with its definitions: on a terminal drawn, else as Markdown."""
    from experiments.efficiency.report import describe_result, make_result_views
    from experiments.runtime.text_tables import format_markdown_table, make_word_tables

    print_lines(console, describe_result(result))
    for title, table, notes in make_result_views(result):
        if console.is_terminal:
            console.print(*make_word_tables(table, console.width, title=title), sep="")
        else:
            print_lines(console, f"\n### {title}\n", *format_markdown_table(table))
        print_lines(console, "", *notes, "")


def print_lines(console: Console, *lines: str) -> None:
    """Lines as they are: brackets in them are no markup, long ones are left to the terminal."""
    console.print(*lines, sep="\n", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
