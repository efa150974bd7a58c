"""Whole input of every kind, of which the fuzzer harms copies; and how a command has to end."""

import contextlib
import io
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from factories import make_model, make_processor, picture
from fakes import FakeRunner
from small_runs import write_backbones, write_data

ROOT = Path(__file__).parents[2]
QUOTED = 200  # characters of the input that an error may repeat
OFFSETS = 50  # a repeated piece is looked for at every so many characters


@dataclass(frozen=True)
class Stock:
    """Folders and files that are whole.

    backbones   tower/, llm/, data.json and its pictures
    model       a saved model with its processor
    released    a released checkpoint
    report      what `python -m ablations.report` wrote
    picture     a PNG file
    """

    backbones: Path
    model: Path
    released: Path
    report: Path
    picture: Path


def make_stock(folder: Path) -> Stock:
    """Write what the project does not ship."""
    backbones = folder / "backbones"
    backbones.mkdir()
    write_backbones(backbones)
    write_data(backbones, 4, text_only=frozenset([3]))
    model = make_model("llama")
    model.save_pretrained(folder / "model")
    make_processor(model).save_pretrained(folder / "model")
    released = folder / "released"
    shutil.copytree(ROOT / "tests" / "golden" / "flashsloth", released)
    (released / "io.safetensors").unlink()
    picture(3, (40, 30)).save(folder / "picture.png")
    report = ROOT / "ablations" / "results" / "tiny"
    return Stock(backbones, folder / "model", released, report, folder / "picture.png")


def list_small_settings(stock: Stock) -> list[str]:
    """Settings of a sweep of a second over the stock's backbones and data."""
    data = stock.backbones / "data.json"
    return [
        *(f"{part}.source={stock.backbones / part}" for part in ("tower", "llm")),
        *(f"data.{role}={data}" for role in ("pretrain", "train", "test")),
        *(f"{stage}.max_steps=1" for stage in ("pretrain", "finetune")),
        *(f"{stage}.batch_size=2" for stage in ("pretrain", "finetune")),
        "data.dataset=null",
        "trainer.accelerator=cpu",
        "tower.select_layer=-2",
        "evaluate.max_new_tokens=2",
        "out=out",
    ]


class EmptyRunner(FakeRunner):
    """Stages that take no time."""

    def steps(self, out: Path, report: object) -> None:
        """None."""


def replace_settings(settings: Sequence[str], new: Sequence[str]) -> list[str]:
    """The settings without those whose key stands in `new`, then those."""
    keys = {text.partition("=")[0] for text in new}
    return [text for text in settings if text.partition("=")[0] not in keys] + list(new)


def check_command(main: Callable[..., int], arguments: Sequence[str], writes: bool = True) -> None:
    """AssertionError unless a command ends as it should; one that fails and did not write leaves nothing."""
    before = sorted(os.listdir())
    # as those of a terminal: a character that has no bytes is an error on one and an escape on the other
    screen = io.TextIOWrapper(io.BytesIO(), "utf-8")
    errors = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="backslashreplace")
    with contextlib.redirect_stdout(screen), contextlib.redirect_stderr(errors):
        code = main(list(arguments))
    output, error = read_stream(screen), read_stream(errors)
    assert code in (0, 2), f"exit code {code}: {(output + error)[-300:]}"
    assert "Traceback" not in error + output, error[-300:]
    lines = [text for text in error.splitlines() if text.startswith("error:")]
    assert len(lines) == (code == 2), f"exit code {code}, {len(lines)} error lines: {error[-300:]}"
    if code == 2:
        assert len(lines[0]) > len("error: "), "an error without words"
        check_quotes(lines[0], arguments)
        assert writes or sorted(os.listdir()) == before, f"left {os.listdir()}"


def read_stream(stream: io.TextIOWrapper) -> str:
    """What was written to a stream."""
    stream.flush()
    stream.buffer.seek(0)
    return stream.buffer.read().decode()


def check_quotes(error: str, arguments: Sequence[str]) -> None:
    """AssertionError if an error repeats more than QUOTED characters of one argument."""
    for text in arguments:
        for start in range(0, max(0, len(text) - QUOTED - OFFSETS), OFFSETS):
            piece = text[start : start + QUOTED + OFFSETS]
            assert piece not in error, f"quotes more than {QUOTED} characters: {error[:100]}"
