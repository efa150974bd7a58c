"""A finished cell as people browse it, and the rows that a table is made of.

OUT/cells/sap+embq_seed=0-3f2a91c0/     config.yaml  metrics.json  predictions.jsonl
                                        stages.json, the directories it came from
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from experiments.config.cells import Cell
from experiments.data import roles
from experiments.metrics.chance import score_majority_answers
from experiments.runtime.files import write_atomic
from experiments.store.folder import convert_tuples
from experiments.store.plan import Stage
from experiments.store.store import Store

METRICS_FILE, PREDICTIONS_FILE = "metrics.json", "predictions.jsonl"


@dataclass
class ScoreRow:
    """A line of a table: one entry of `runs` (in the form of metrics.json) a seed."""

    label: str
    runs: list[Mapping[str, Any]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


@dataclass
class ScoreGroup:
    """Rows that answer the same questions."""

    title: str
    rows: list[ScoreRow] = field(default_factory=list)


def name_cell_folder(cell: Cell) -> str:
    """Its directory's name without the key: letters that every file system takes, the seed always whole."""
    seed = f"_seed={cell.config.seed}"
    return re.sub(r"[^\w.+=-]+", "_", cell.label)[: 80 - len(seed)] + seed


def publish_cell(cell: Cell, stage: Stage, store: Store) -> Path:
    """Write the browsable directory of a finished cell."""
    folder = store.root / "cells" / f"{name_cell_folder(cell)}-{stage.key[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    write_if_changed(
        folder / "config.yaml",
        OmegaConf.to_yaml(OmegaConf.create(convert_tuples(asdict(cell.config)))).encode(),
    )
    for name in (METRICS_FILE, PREDICTIONS_FILE):
        write_if_changed(folder / name, (store.locate_result(stage) / name).read_bytes())
    places = [s.name for s in stage.collect_stages().values()]
    write_if_changed(folder / "stages.json", (json.dumps(places, indent=1) + "\n").encode())
    return folder


def write_if_changed(path: Path, content: bytes) -> None:
    """Write a file unless it is there already."""
    if not path.is_file() or path.read_bytes() != content:
        write_atomic(path, content)


def collect_scores(finished: Sequence[tuple[Cell, Stage]], store: Store) -> list[ScoreGroup]:
    """Tables of finished cells: chance and blind first, then a row for all seeds of a configuration."""
    groups: dict[str, ScoreGroup] = {}
    rows: dict[tuple, ScoreRow] = {}
    took: dict[str, float] = {}

    def seconds(stage: Stage) -> float:
        if stage.key not in took:
            took[stage.key] = store.read_note(stage)["seconds"] if store.find_status(stage) == "done" else 0.0
        return took[stage.key]

    for cell, stage in sorted(finished, key=lambda pair: not pair[0].config.blind):
        config = cell.config
        asked = identify_questions(stage)
        if asked not in groups:
            inputs = {name: store.locate_result(each) for name, each in stage.inputs.items()}
            chance = score_majority_answers(roles.load_questions(config, inputs, check_images=False))
            words = f"{', '.join(config.data.test)}: {chance['n']:,} questions"
            groups[asked] = ScoreGroup(words, [ScoreRow("chance", [chance])])
        key = (asked, cell.label, cell.row)
        if key not in rows:
            rows[key] = ScoreRow(cell.label)
            groups[asked].rows.append(rows[key])
        rows[key].runs.append(
            json.loads((store.locate_result(stage) / METRICS_FILE).read_text(encoding="utf-8"))
        )
        rows[key].seconds.append(sum(seconds(s) for s in stage.collect_stages().values()))
    return list(groups.values())


def identify_questions(stage: Stage) -> str:
    """What tells the questions of an evaluation from others; images do not, since a blind cell has none."""
    data = stage.inputs.get("data")
    identities = [each["json"] if isinstance(each, dict) else each for each in stage.depends["data"]]
    return str((identities, data and data.key, stage.config.evaluate.limit))
