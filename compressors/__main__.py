"""`python -m compressors`: a table of every compressor, its tokens, what it learns and its knobs."""
import inspect
import sys
import typing
from inspect import Parameter
from textwrap import wrap

import torch

import compressors
from compressors import base

DIM, LLM_DIM, GRID = 1152, 2560, (24, 24)  # so400m, phi-2, a grid that most rates divide
HEADER = ("name", "24x24 ->", "width", "learned", "what it is, and its knobs with their defaults")


def knob(name: str, parameter: Parameter) -> str:
    """`rate=3`, as a command line takes it; a choice shows all of them, its default first."""
    default = parameter.default
    if default is Parameter.empty:
        return f"{name}=?"
    if typing.get_origin(parameter.annotation) is typing.Literal:
        options = typing.get_args(parameter.annotation)
        return f"{name}={'|'.join([default, *(option for option in options if option != default)])}"
    if default is None or isinstance(default, bool):
        default = {None: "null", True: "true", False: "false"}[default]
    return f"{name}={default}".replace(" ", "")


def sizes(name: str) -> tuple[str, str, str]:
    """Tokens, width and parameters of one compressor with default knobs, built without memory."""
    try:
        with torch.device("meta"):
            part = compressors.create(name, dim=DIM, llm_dim=LLM_DIM)
        tokens = part.num_tokens(*(side // part.image_rate for side in GRID))
    except compressors.UsageError:  # an outside compressor whose defaults do not fit this grid
        return "?", "?", "?"
    count = sum(p.numel() for p in part.parameters())
    return str(tokens), str(part.out_dim), f"{count / 1e6:.1f} M" if count else "-"


def row(name: str) -> tuple[str, ...]:
    """The cells of one compressor."""
    summary = (inspect.getdoc(base.registry.get(name)) or "").partition("\n\n")[0]
    knobs = "  ".join(knob(k, p) for k, p in compressors.knobs(name).items())
    return name, *sizes(name), f"{' '.join(summary.split())}\n{knobs}"


def table(rows: list[tuple[str, ...]], width: int = 110) -> str:
    """Columns padded with spaces; the last one, whose paragraphs are separated by newlines, wraps."""
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]) - 1)]
    indent = sum(widths) + 2 * len(widths)
    lines = []
    for *cells, text in rows:
        first = "  ".join(cell.ljust(size) for cell, size in zip(cells, widths)) + "  "
        paragraphs = [line for part in text.splitlines() for line in wrap(part, width - indent)]
        lines += [start + line for start, line in zip([first] + [" " * indent] * len(paragraphs), paragraphs)]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def main() -> None:
    sys.stdout.write(table([HEADER, *map(row, compressors.names())]))


if __name__ == "__main__":
    main()
