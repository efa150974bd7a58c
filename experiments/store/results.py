"""A finished cell as people browse it, and the rows that a table is made of.

OUT/cells/sap+embq_seed=0-3f2a91c0/     config.yaml  metrics.json  predictions.jsonl
                                        stages.json, the directories it came from
                                        run.yaml, when, where and by what each was computed
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from compressors.errors import UsageError
from experiments.config.cells import Cell
from experiments.config.metric_names import describe_metrics
from experiments.config.presets import read_yaml
from experiments.config.trained import CELLS_FOLDER, CONFIG_FILE, make_folder_label
from experiments.data.llava import Sample
from experiments.metrics.chance import score_majority_answers
from experiments.runtime.files import write_atomic
from experiments.store.folder import convert_tuples, list_settings
from experiments.store.plan import Stage
from experiments.store.store import Store
from llm_adapters.conversation import Turn
from llm_adapters.saved import STAGES_FILE

METRICS_FILE = "metrics.json"
PREDICTIONS_FILE = "predictions.jsonl"
RUN_FILE = "run.yaml"
# what is told of each stage of a cell, where its note has it
RUN_FIELDS = ("finished", "seconds", "resumed", "command", "commits", "versions", "python", "device")
CHANCE_ROW = "chance"  # the most frequent answer of each family, from no model
LONGEST_FOLDER_NAME = 80  # characters of label and seed; the key comes after them


@dataclass
class ScoreRow:
    """A line of a table: one entry of `runs` (in the form of metrics.json) a seed. `blind`: its model saw no
    image."""

    label: str
    runs: list[Mapping[str, Any]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    blind: bool = False


@dataclass
class ScoreGroup:
    """Rows that answer the same questions, those of `data.test` as `questions` names it."""

    title: str
    rows: list[ScoreRow] = field(default_factory=list)
    questions: str = ""


def title_cell(cell: Cell) -> str:
    """A cell's name on screen."""
    return f"{cell.label} seed={cell.config.seed}"


def locate_log(root: Path, name: str, key: str) -> Path:
    """Where a stage's log lies; `name`: what it is for."""
    return root / "logs" / f"{name}-{key[:8]}.log"


def name_cell_folder(cell: Cell) -> str:
    """Its directory's name without the key: letters that every file system takes, the seed always whole."""
    seed = f"_seed={cell.config.seed}"
    label = make_folder_label(cell.label)
    return label[: LONGEST_FOLDER_NAME - len(seed)] + seed


def locate_cell_folder(cell: Cell, stage: Stage, store: Store) -> Path:
    """The browsable directory of a cell."""
    return store.root / CELLS_FOLDER / f"{name_cell_folder(cell)}-{stage.key[:8]}"


def publish_cell(cell: Cell, stage: Stage, store: Store) -> Path:
    """Write the browsable directory of a finished cell."""
    folder = locate_cell_folder(cell, stage, store)
    folder.mkdir(parents=True, exist_ok=True)
    # first: whoever clears stages has to know which of them a cell needs, though a kill leaves half of it
    places = [part.name for part in stage.collect_stages().values()]
    write_if_changed(folder / STAGES_FILE, (json.dumps(places, indent=1) + "\n").encode())
    settings = OmegaConf.create(list_settings(cell.config))
    write_if_changed(folder / CONFIG_FILE, OmegaConf.to_yaml(settings).encode())
    for name in (METRICS_FILE, PREDICTIONS_FILE):
        write_if_changed(folder / name, (store.locate_result(stage) / name).read_bytes())
    facts = OmegaConf.create(convert_tuples(collect_run_facts(stage, store, folder)))
    write_if_changed(folder / RUN_FILE, OmegaConf.to_yaml(facts).encode())
    return folder


def collect_run_facts(stage: Stage, store: Store, folder: Path) -> dict[str, Any]:
    """How each stage of a cell came about, by its directory: what its note says, else what the cell's own
    directory says of it, since the inputs of a finished evaluation may be gone."""
    earlier: dict[str, Any] = {}
    if (folder / RUN_FILE).is_file():
        with suppress(UsageError):  # a damaged one is written anew
            earlier = read_yaml(folder / RUN_FILE)
    facts: dict[str, Any] = {}
    for part in stage.collect_stages().values():
        if store.is_finished(part):
            note = store.read_note(part)
            facts[part.name] = {name: note[name] for name in RUN_FIELDS if name in note}
        elif part.name in earlier:
            facts[part.name] = earlier[part.name]
    return facts


def write_if_changed(path: Path, content: bytes) -> None:
    """Write a file unless it is there already: its time says which cell finished last."""
    if not path.is_file() or path.read_bytes() != content:
        write_atomic(path, content)


def collect_scores(finished: Sequence[tuple[Cell, Stage]], store: Store) -> list[ScoreGroup]:
    """Tables of finished cells: chance and blind first, then a row for all seeds of a configuration."""
    groups: dict[str, ScoreGroup] = {}
    rows: dict[tuple[Any, ...], ScoreRow] = {}
    stage_seconds: dict[str, float] = {}  # by key: cells share stages
    for cell, stage in sorted(finished, key=lambda pair: not pair[0].config.blind):
        questions = identify_questions(stage)
        if questions not in groups:
            groups[questions] = start_score_group(cell, stage, store)
        key = (questions, cell.label, cell.row)
        if key not in rows:
            rows[key] = ScoreRow(cell.label, blind=cell.config.blind)
            groups[questions].rows.append(rows[key])
        rows[key].runs.append(read_metrics(store.locate_result(stage)))
        seconds = 0.0
        for part in stage.collect_stages().values():
            if part.key not in stage_seconds:
                stage_seconds[part.key] = read_seconds(part, store)
            seconds += stage_seconds[part.key]
        rows[key].seconds.append(seconds)
    return list(groups.values())


def start_score_group(cell: Cell, stage: Stage, store: Store) -> ScoreGroup:
    """A table for the questions of a cell's evaluation, with the row of chance: the commonest answers.

    The questions are those that the evaluation wrote down: the data that it read may have changed since.
    """
    chance = read_chance(store.locate_result(stage))
    questions = ", ".join(cell.config.data.test)
    title = f"{questions}: {chance['n']:,} questions"
    metric_words = describe_metrics(cell.config.evaluate.metric)
    if metric_words:
        title += f", {metric_words}"
    return ScoreGroup(title, [ScoreRow(CHANCE_ROW, [chance])], questions)


def read_metrics(folder: Path) -> dict[str, Any]:
    """What an evaluation has scored, from its own folder or its cell's."""
    metrics: dict[str, Any] = json.loads((folder / METRICS_FILE).read_text(encoding="utf-8"))
    return metrics


def read_chance(evaluation: Path) -> dict[str, Any]:
    """What the most frequent answers score, in the form of metrics.json: as the evaluation in a directory has
    noted it, which it does where that takes more than exact match with the one answer."""
    metrics = read_metrics(evaluation)
    if "chance" in metrics:
        return dict(metrics["chance"])
    return score_majority_answers(read_questions(evaluation / PREDICTIONS_FILE))


def read_questions(path: Path) -> list[Sample]:
    """The questions of a file of predictions, in order, a sample each."""
    samples = []
    for line in path.read_text(encoding="utf-8").splitlines():
        answer = json.loads(line)
        images = tuple(answer.get("images", ()))  # an earlier version did not write them down
        turns = (Turn(answer["question"], answer["answer"]),)
        samples.append(Sample(answer["id"], images, turns, (answer["family"],)))
    return samples


def read_seconds(stage: Stage, store: Store) -> float:
    """Seconds that a stage took; 0 for one that is gone, as inputs of a finished evaluation may be."""
    if not store.is_finished(stage):
        return 0.0
    return store.read_note(stage)["seconds"]


def identify_questions(stage: Stage) -> str:
    """What tells the questions of an evaluation from others; images do not, since a blind cell has none."""
    identities = []
    data_key = None
    for entry in stage.depends["data"]:
        if isinstance(entry, dict):  # a file by its content, a data set by its texts
            entry = entry.get("json") or entry["texts"]
        else:  # a split; a pruner may be calibrated on the data of one where questions are a file's
            data_key = stage.inputs["data"].key
        identities.append(entry)
    identity = str((identities, data_key, stage.config.evaluate.limit))
    if "metric" in stage.depends:  # the same questions, but other scores
        identity += str(stage.depends["metric"])
    return identity
