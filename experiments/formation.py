"""When query tokens learn to read: a query module watched while stage 2 trains.

    python -m experiments.formation compressor=sap+embq finetune.query_warmup=0,0.1 data.test=tune

At `points` places of stage 2 the model answers `data.test` with and without what its queries fetch, and the
share of their attention is measured that lies on the sign a question asks about. Stage 1 and the features are
taken from `out=`, or computed there; the model that is watched is not kept. FILE has the numbers, FILE.svg
beside it the curves; a cell that FILE has is not trained again.
"""

import json
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from compressors.command_line import Command, CommandLine
from compressors.errors import UsageError, quote
from compressors.key_value import join_settings
from compressors.setting_fields import setting
from experiments.data.roles import is_file_entry
from experiments.runtime.bars import create_reporter
from experiments.runtime.files import write_atomic
from experiments.stages.runners import find_runner
from experiments.store.folder import read_package_versions
from experiments.store.plan import Stage
from experiments.store.results import title_cell
from experiments.store.store import Store
from experiments.sweep import request
from experiments.sweep.checks import check_model_sizes, check_request

if TYPE_CHECKING:
    from experiments.config.schema import Config
    from experiments.inspection.query_reading import QueryReading

Curve = dict[str, Any]  # of one cell, as JSON has it


@dataclass(frozen=True)
class FormationOptions:
    """What is measured how often, and where the result goes."""

    to: Path = setting(Path("formation.json"), "JSON file to write the numbers to; the plot lies beside it")
    points: int = setting(12, "measurements behind the first one, at equal distances", low=1)


COMMAND = Command(
    usage="python -m experiments.formation KEY=VALUE ... [to=FILE.json]",
    description=f"{__doc__}\nOther KEY=VALUE: as for python -m experiments.sweep.",
    options=FormationOptions,
    overrides=True,
    elsewhere="write to another place with to=FILE.json",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    return COMMAND.run(run_formation, arguments)


def run_formation(line: CommandLine) -> int:
    """Watch every cell that the file has not, and draw all."""
    options: FormationOptions = line.options
    if options.to.suffix != ".json":
        raise UsageError(f"to={options.to}: must end in .json")
    sweep = request.read_request({**line.overrides, "blind": ["false"]})
    configs = [cell.config for cell, _ in sweep.jobs]
    check_cells(configs)
    record = read_record(options.to)
    check_request(sweep, Store(Path(configs[0].out)), check_model_sizes)
    command = f"python -m experiments.formation {shlex.join(join_settings(line.overrides))}"
    record["versions"] = read_package_versions()
    with create_reporter(Console()) as report:
        report.announce_cells(len(sweep.jobs))
        for cell, stage in sweep.jobs:
            report.begin_cell(title_cell(cell))
            key = f"{stage.key[:16]}/{options.points}"
            if key not in record["curves"]:
                store = Store(Path(cell.config.out), report, find_runner)
                with store.open_root():
                    curve = watch_cell(cell.config, stage, store, options.points)
                record["curves"][key] = {"cell": title_cell(cell), "command": command, **curve}
                options.to.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(options.to, json.dumps(record, indent=1) + "\n")
    draw_record(record, options.to.with_suffix(".svg"))
    sys.stdout.write(f"{options.to}\n{options.to.with_suffix('.svg')}\n")
    return 0


def check_cells(configs: "Sequence[Config]") -> None:
    """UsageError, before anything is trained, for a cell that has no queries to watch, and for pictures where
    nobody knows which patches hold a sign."""
    from experiments.inspection.query_reading import read_scenes
    from experiments.stages.training.strategies import count_processes

    for config in configs:
        if config.query_module is None:
            raise UsageError(f"compressor={config.compressor}: has no query module to watch; add +embq")
        if config.tiles("test") > 1 or not config.caches_features:
            raise UsageError(
                f"image.tiles={config.image.tiles} tower.cache={config.tower.cache}: attention is watched on "
                "cached features of one crop; take image.tiles=1 and leave out tower.cache=false"
            )
        if all(map(is_file_entry, config.data.test)):
            read_scenes(config, {})
        if count_processes(config.trainer):
            raise UsageError(
                "trainer.devices: one process is watched; take trainer.devices=1 and trainer.nodes=1"
            )


def read_record(path: Path) -> dict[str, Any]:
    """What an earlier call has written; UsageError for a file of something else."""
    if not path.exists():
        return {"curves": {}}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record["curves"], dict):
            raise TypeError("curves")
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"to={quote(str(path))}: is another file; name a new one") from error
    return record


def watch_cell(config: "Config", evaluation: Stage, store: Store, points: int) -> Curve:
    """Train stage 2 of a cell as the sweep does, and measure at equal distances."""
    from experiments.inspection.query_reading import QueryWatch, make_probe
    from experiments.stages import train
    from experiments.stages.training.fit import fit_module

    stage = evaluation.inputs["finetune"]
    inputs = {name: store.compute(needed) for name, needed in stage.inputs.items()}
    test_inputs = {}  # of the evaluation; the model that it would ask is the one in training
    for name, needed in evaluation.inputs.items():
        if needed is not stage:
            test_inputs[name] = store.compute(needed)
    store.report.begin_stage("finetune, watched")
    model, processor = train.prepare_model(config, "finetune", inputs)
    train.unfreeze_stage_parts(config, "finetune", model)
    module = train.make_module(config, "finetune", model, processor, inputs)
    probe = make_probe(config, test_inputs, processor)
    watch = QueryWatch(probe, points)
    with tempfile.TemporaryDirectory(prefix="slothkit-formation-") as folder:
        fit_module(config, module, Path(folder), store.report, callbacks=[watch])
    hidden: dict[str, Any] = {"hidden_steps": 0}
    if module.query_warmup is not None:
        hidden = {"hidden_steps": module.query_warmup.steps, "hidden_form": module.query_warmup.form}
    return {
        "steps": module.steps,
        **hidden,
        "questions": len(probe.questions),
        "signs": len(probe.regions),
        "uniform_share": round(probe.uniform_share, 4),
        "points": [describe_reading(reading) for reading in watch.readings],
    }


def describe_reading(reading: "QueryReading") -> dict[str, Any]:
    """A measurement as JSON has it."""
    attention = {}
    for name, shares in reading.attention.items():
        attention[name] = [round(share, 4) for share in shares]
    return {
        "step": reading.step,
        "scores": {name: round(score, 4) for name, score in reading.scores.items()},
        "blanked": {name: round(score, 4) for name, score in reading.blanked.items()},
        "attention": attention,
    }


def draw_record(record: dict[str, Any], path: Path) -> None:
    """All curves of a file as one figure."""
    from experiments.figures.style import render_svg
    from experiments.inspection.formation_figure import draw_formation

    write_atomic(path, render_svg(draw_formation(list(record["curves"].values()))))


if __name__ == "__main__":
    sys.exit(main())
