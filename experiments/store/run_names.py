"""What loggers call the run of a stage: after its cell, or after its parts where several cells share it. The
command of the sweep is the group of all."""

import hashlib
from pathlib import Path

from experiments.config.schema import Config, CurveRun
from experiments.runtime.provenance import read_command
from experiments.store.plan import Stage

SHORT_KEY = 8  # digits
LONGEST_NAME = 128  # characters that W&B takes for a group


def title_parts(kind: str, config: Config) -> str:
    """The parts of a stage with the knobs that were set. The query module takes no part in stage 1."""
    names = [config.compressor_name]
    if config.query_module and kind != "pretrain":
        names.append(config.query_module)
    words = ["+".join(names)]
    for name in names:
        words += [f"{name}.{knob}={value}" for knob, value in config.knobs(name).items()]
    return " ".join([*words, f"seed={config.seed}"])


def describe_curve_run(stage: Stage, root: Path) -> CurveRun:
    """The run of a stage below the output directory `root`, for its loggers."""
    name = stage.run_name or f"{stage.kind} {title_parts(stage.kind, stage.config)}"
    return CurveRun(name, name_group(root), stage.kind, stage.key[:SHORT_KEY], str(root))


def name_group(root: Path) -> str:
    """What the runs of a sweep have in common: its command, else its output directory."""
    command = read_command() or root.name
    group = command.removeprefix("slothkit sweep ")
    if len(group) <= LONGEST_NAME:
        return group
    # sweeps whose long lines begin alike are different ones
    digest = hashlib.sha256(group.encode()).hexdigest()[:SHORT_KEY]
    return f"{group[: LONGEST_NAME - SHORT_KEY - 1]} {digest}"
