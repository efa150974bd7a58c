"""Every command line with odd words, settings and flags."""

import importlib
import io
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from harm import draw_word, harm_text
from stock import EmptyRunner, Stock, check_command, list_small_settings, replace_settings
from trials import Kind, Trial

from compressors.setting_fields import collect_settings
from experiments import sharing
from experiments.config import signatures
from experiments.config.schema import Config
from experiments.stages import evaluate, features, train  # noqa: F401  so that no child has to
from experiments.sweep import __main__ as sweep

MORE_SETTINGS = ("table", "preset", "blind", "earlier", "launch", "launch.threads", "launch.slurm.partition")
# Commands whose work takes longer than a trial may: their lines are read, and nothing is done.
SLOW = (
    "experiments.backbones.small.__main__",
    "experiments.backbones.tiny.pretrain_lm",
    "experiments.backbones.tiny.pretrain_tower",
    "experiments.bench",
    "experiments.full_size",
    "experiments.gallery",
    "ablations.costs.prefill",
)

FIXED = {
    "experiments.efficiency.__main__": ("count=true", "table1=false"),
    "experiments.picture_vqa.__main__": ("scale=0.0001",),
}


class Line(NamedTuple):
    """A line of a command that works, and what may become of it.

    settings   what it may say
    writes     an error may come after something was written
    fixed      what it says in any case, so that it does not work for minutes
    """

    main: Callable[..., int]
    base: list[str]
    settings: list[str]
    writes: bool = True
    fixed: tuple[str, ...] = ()


def make_kinds(stock: Stock) -> dict[str, Kind]:
    """A kind for each command; several for the sweep."""
    kinds: dict[str, Kind] = {}
    for name, line in make_lines(stock).items():
        kinds[name] = partial(draw_line, line)
    return kinds


def make_lines(stock: Stock) -> dict[str, Line]:
    """Every command with a line that works and takes little time."""
    cell_settings = list_cell_settings()
    small = list_small_settings(stock)
    picture, model, data = str(stock.picture), str(stock.model), str(stock.backbones / "data.json")
    lines = {
        "sweep --plan": Line(sweep.main, [], cell_settings, False, ("--plan",)),
        "sweep --plan of data": Line(sweep.main, small, cell_settings, False, ("--plan",)),
        "sweep": Line(run_sweep, small, [name for name in cell_settings if "launch" not in name]),
        "sharing": Line(run_sharing, small, [name for name in cell_settings if "launch" not in name]),
    }
    for name, base in (
        ("compressors.__main__", ["sap"]),
        ("llm_adapters.released.__main__", ["convert", str(stock.released), "to"]),
        ("experiments.attention_maps", [model, picture, "what ?", "to=maps.png"]),
        ("experiments.chat", [picture, "what ?", f"model={model}", "max_new_tokens=2"]),
        ("experiments.data.parquet", [data, "data.parquet"]),
        ("experiments.efficiency.__main__", []),
        ("experiments.picture_vqa.__main__", ["to=data"]),
        ("ablations.readme_picture", ["cell", "to=picture.png"]),
        ("ablations.report", ["table=3", "out=out"]),
    ):
        module = importlib.import_module(name)
        settings = list(collect_settings(module.COMMAND.options))
        if module.COMMAND.overrides:
            settings += cell_settings
        fixed = FIXED.get(name, ())
        lines[name.removesuffix(".__main__")] = Line(module.main, base, settings, fixed=fixed)
    for name in SLOW:
        command = importlib.import_module(name).COMMAND
        lines[name.removesuffix(".__main__")] = Line(
            partial(command.run, lambda _: 0), [], list(collect_settings(command.options)), False
        )
    return lines


def list_cell_settings() -> list[str]:
    """All settings of a cell and of the sweep, and all knobs of all parts."""
    names = [*collect_settings(Config), *MORE_SETTINGS]
    for registry in signatures.registries():
        for part in registry.names():
            names += [f"{part}.{knob}" for knob in registry.knobs(part)]
    return names


def run_sweep(arguments: list[str]) -> int:
    """The sweep with stages that take no time; models are built and checked."""
    return sweep.main(arguments, EmptyRunner(Path("log")))


def run_sharing(arguments: list[str]) -> int:
    """Its measurement of stages that take no time."""
    return sharing.main(arguments, EmptyRunner(Path("log")))


def draw_line(line: Line, draw: random.Random, _folder: Path) -> Trial:
    """One to three changes of a line that works."""
    arguments = list(line.base)
    for _ in range(draw.choice([1, 1, 2, 3])):
        change_line(draw, arguments, line.settings)
    arguments = replace_settings(arguments, line.fixed)
    main = line.main
    if "chat" in getattr(main, "__module__", ""):
        main = partial(main, source=io.StringIO("what ?\n"))
    return Trial(" ".join(arguments), partial(check_command, main, arguments, line.writes))


def change_line(draw: random.Random, arguments: list[str], settings: list[str]) -> None:
    """A setting set, misspelt or doubled; a word or flag added, changed or left out."""
    way = draw.random()
    if settings and way < 0.75:
        setting = f"{draw.choice(settings)}={draw_word(draw)}"
        if way < 0.05:
            setting = harm_text(draw, setting)
        arguments[:] = replace_settings(arguments, [setting])
    elif arguments and way < 0.80:
        arguments.remove(draw.choice(arguments))
    elif arguments and way < 0.85:
        arguments.append(draw.choice(arguments))
    elif arguments and way < 0.92:
        place = draw.randrange(len(arguments))
        arguments[place] = harm_text(draw, arguments[place])
    else:
        arguments.insert(draw.randrange(len(arguments) + 1), draw_word(draw))
