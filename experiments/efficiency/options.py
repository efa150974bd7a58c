"""The command line of `python -m experiments.efficiency`."""

import argparse
import re

from compressors.errors import UsageError
from experiments.runtime.command import CommandParser

EFFICIENCY_HELP = """\
What models cost, with random weights: no trained ones are needed.

    python -m experiments.efficiency preset=flashsloth compressor=sap+embq,identity --count
    python -m experiments.efficiency compressor=sap+embq,identity --batch 1,8       with times
    python -m experiments.efficiency --table1                      the paper's Table 1: counts
    python -m experiments.efficiency --table1 --measure            with times, a process each
    python -m experiments.efficiency preset=flashsloth --train     training steps: its Figure 3

KEY=VALUE: settings and knobs as for experiments.sweep; commas make a product."""


def build_efficiency_parser() -> CommandParser:
    made = CommandParser("python -m experiments.efficiency", description=EFFICIENCY_HELP)
    made.formatter_class = argparse.RawDescriptionHelpFormatter
    made.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    made.add_argument("--count", action="store_true", help="nothing is timed, no weights are made")
    made.add_argument("--table1", action="store_true", help="the models of the paper's Table 1")
    made.add_argument("--only", metavar="LABEL", help="one model of Table 1, in this process")
    made.add_argument("--measure", action="store_true", help="time the models of Table 1 too")
    made.add_argument("--train", action="store_true", help="training steps of both stages")
    made.add_argument("--batch", type=parse_counts, default=[1], metavar="N,...", help="rows at once (1)")
    made.add_argument("--images", type=parse_counts, default=[1], metavar="N,...", help="images of a row (1)")
    made.add_argument("--text", type=parse_count, help="text tokens of a row (40; in training 40 and 256)")
    made.add_argument(
        "--pictures",
        type=parse_picture_sizes,
        metavar="WxH,...",
        help="sizes of pictures (768x768; Table 1: 448x448,896x896,1344x1344)",
    )
    made.add_argument("--tokens", type=parse_count, default=33, help="tokens of an answer (33)")
    made.add_argument(
        "--rounds", type=parse_count, default=7, help="measured rounds after one that is not (7)"
    )
    made.add_argument(
        "--static",
        action="store_true",
        help="cache of fixed size; on a GPU transformers compiles the decoding step for it",
    )
    made.add_argument(
        "--data-rows",
        type=parse_counts,
        metavar="N,N",
        help="rows of both stages' data, for the estimate of hours (558000,665000)",
    )
    made.add_argument("--device", help="cpu or cuda (cuda where there is one)")
    made.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of weights (bfloat16 on a GPU and in Table 1, else float32)",
    )
    made.add_argument("--threads", type=parse_count, help="CPU threads (torch's choice)")
    made.add_argument("--to", metavar="DIR", help="write efficiency.json, .md and pictures there")
    return made


def read_efficiency_options(arguments: list[str] | None) -> argparse.Namespace:
    """The options, checked."""
    given = build_efficiency_parser().parse_intermixed_args(arguments)
    given.table1 |= given.only is not None
    if given.table1 and given.train:
        raise UsageError("--train: trains cells of this project, not the models of --table1; leave one out")
    if given.table1 and given.overrides:
        raise UsageError(f"{given.overrides[0]}: --table1 has its own models; leave one of them out")
    if given.count and (given.measure or given.train):
        raise UsageError("--count: counts alone; leave out --measure and --train, or --count")
    if given.data_rows and len(given.data_rows) != 2:
        raise UsageError("--data-rows: give two numbers, of stage 1 and of stage 2")
    if given.pictures is None:
        given.pictures = [(side, side) for side in ((448, 896, 1344) if given.table1 else (768,))]
    return given


def parse_count(text: str) -> int:
    """A whole number of at least 1."""
    if not re.fullmatch(r"[0-9]+", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a whole number of at least 1")
    return int(text)


def parse_counts(text: str) -> list[int]:
    """1,8 as numbers."""
    return [parse_count(each) for each in text.split(",")]


def parse_picture_sizes(text: str) -> list[tuple[int, int]]:
    """448x448,1344x896 as (width, height)."""
    found = [re.fullmatch(r"([0-9]+)x([0-9]+)", each) for each in text.split(",")]
    if not all(found):
        raise argparse.ArgumentTypeError(f"{text}: expected WIDTHxHEIGHT in pixels, such as 768x768")
    return [(parse_count(each[1]), parse_count(each[2])) for each in found]
