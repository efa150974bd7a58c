"""A row beside those of a study that comes with an installed package, as soon as it is known.

Of a cell's own setting (data, backbones, recipe) the study's rows without image, without compression and of
average pooling are looked up by the keys of their evaluations, so that no row is compared with one of another
recipe. Its recorded times say how long a sweep may take where nothing has been measured yet.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, partial

from compressors.errors import UsageError
from experiments.config.cell_checks import QUERY_MODULE_SETTINGS
from experiments.config.cells import Cell, make_blind_cells, make_cells
from experiments.config.schema import BLIND_COMPRESSOR, UNCOMPRESSED
from experiments.config.settings import locate_setting
from experiments.data.roles import is_file_entry
from experiments.runtime.text_tables import format_markdown_table
from experiments.store.estimate import MeasuredStage
from experiments.store.plan import Stage, plan_stages
from experiments.store.results import CHANCE_ROW, ScoreGroup, ScoreRow, read_metrics, title_cell
from experiments.store.store import Store
from experiments.sweep.plan_view import MEASURED_HERE, Plan, PlanFinder, format_seconds, make_plan
from experiments.sweep.request import CellJob
from experiments.sweep.score_table import make_score_lines
from experiments.sweep.studies import StudyScores, find_shipped_studies

REFERENCES = {UNCOMPRESSED: "identity (uncompressed)", "avg_pool": "avg_pool"}  # compressor -> row
# what a cell's line may say that its reference does not have
OWN_SETTINGS = ("", "compressor", "projector", "prune", "evaluate.compressor", "evaluate.scale")
REFERENCE_SEEDS = [str(seed) for seed in range(5)]


@dataclass
class Comparison:
    """Tells of finished cells: of the first beside the study's rows, of the others in a line.

    name    of the study, None where none has the cells' setting
    rows    of the study, until they are shown
    labels  key of an evaluation -> the row that it is in
    """

    store: Store
    name: str | None = None
    study: StudyScores | None = None
    rows: list[ScoreRow] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)

    def make_plan_finder(self, jobs: Sequence[CellJob]) -> PlanFinder:
        """What makes the plan of cells once, when it is first asked for, with the times of a study."""
        return cache(partial(make_plan, jobs, self.store, self.list_times))

    def announce_duration(self, jobs: Sequence[CellJob], find_plan: PlanFinder) -> None:
        """How long a sweep and its first row will take; nothing of a setting that no study has."""
        if self.study is None:
            return
        plan = find_plan()
        known_seconds = plan.find_remaining_seconds()
        if not known_seconds:  # a study without times; nothing is left
            return
        words = f"about {format_seconds(sum(known_seconds.values()))} of work"
        first_keys = jobs[0][1].collect_stages().keys() & known_seconds.keys()
        if first_keys and len(first_keys) < len(known_seconds):
            first_seconds = sum(known_seconds[key] for key in first_keys)
            words += f", about {format_seconds(first_seconds)} to the first row"
        self.store.report.write_note(f"{words} ({self.describe_basis(plan)})")

    def describe_basis(self, plan: Plan) -> str:
        """Where the times of a plan come from: finished stages here, or the study's."""
        if plan.measured_here or self.study is None:
            return MEASURED_HERE
        return f"as the study '{self.name}' took on {self.study.machine}; yours may be faster or slower"

    def list_times(self) -> list[MeasuredStage]:
        """What the study's stages took; of a setting that no study has, what those of the first study did."""
        if self.study is not None:
            return self.study.times
        for shipped in find_shipped_studies().values():
            if shipped.folder.is_dir():
                with suppress(UsageError):  # of a damaged study nothing is known
                    return shipped.read_scores().times
        return []

    def tell(self, cell: Cell, stage: Stage) -> None:
        """Tell of a cell that has just finished."""
        metrics = read_metrics(self.store.locate_result(stage))
        report = self.store.report
        if self.study is None or cell.config.blind:
            report.write_note(f"{title_cell(cell)}: {100 * metrics['overall']:.1f} % overall")
            return
        rows = [ScoreRow(title_cell(cell), [metrics])]
        is_comparable = bool(self.rows) and self.has_references_of(cell)
        if is_comparable:
            own_label = self.labels.get(stage.key)  # a reference itself stands there once
            rows = [*(row for row in self.rows if row.label != own_label), *rows]
        report.write_note("\n".join(format_markdown_table(make_score_lines(ScoreGroup("", rows)))))
        if is_comparable:
            report.write_note(
                f"rows but the last: study '{self.name}', in {self.study.place}, computed on "
                f"{self.study.machine}; earlier={self.name} takes its cells into a sweep or report"
            )
            self.rows = []  # they are shown once

    def has_references_of(self, cell: Cell) -> bool:
        """Whether the rows are of a cell's own setting."""
        return any(stage.key in self.labels for _, _, stage in list_reference_cells(cell))


def find_comparison(jobs: Sequence[CellJob], store: Store) -> Comparison:
    """What the first cell with an image can be compared with; without a study where none has its setting."""
    for cell, _ in jobs:
        if cell.config.blind:
            continue
        if has_own_files(cell):
            break
        references = list(list_reference_cells(cell))
        for name, shipped in find_shipped_studies().items():
            if not shipped.folder.is_dir():  # a copy of the code alone
                continue
            try:
                known_keys = shipped.read_keys()
                if not any(stage.key in known_keys for _, _, stage in references):
                    continue
                study = shipped.read_scores()
            except UsageError as error:  # a damaged study is no reason not to run
                store.report.write_warning(f"no comparison with the study '{name}': {error}")
                continue
            rows: dict[str, ScoreRow] = {}
            for label, reference, stage in references:
                if stage.key in study.cells:
                    row = ScoreRow(label, blind=reference.config.blind)
                    rows.setdefault(label, row).runs.append(study.cells[stage.key])
            labels = {stage.key: label for label, _, stage in references if stage.key in study.cells}
            chance = ScoreRow(CHANCE_ROW, [study.chance[min(labels)]])
            return Comparison(store, name, study, [chance, *rows.values()], labels)
        break
    return Comparison(store)


def has_own_files(cell: Cell) -> bool:
    """Whether a cell reads files, which are in no shipped study, and are not to be read for nothing."""
    data = cell.config.data
    return any(map(is_file_entry, (*data.pretrain, *data.train, *data.test)))


def list_reference_cells(cell: Cell) -> Iterator[tuple[str, Cell, Stage]]:
    """(row, cell, evaluation) of a cell's setting without image, uncompressed and with average pooling."""
    axes = {}
    for path, text in cell.row:
        if path in OWN_SETTINGS or path in QUERY_MODULE_SETTINGS:
            continue
        if path == "preset" or locate_setting(path):
            axes[path] = [text]
    axes["seed"] = REFERENCE_SEEDS
    for number, (compressor, label) in enumerate(REFERENCES.items()):
        try:
            cells = make_cells({**axes, "compressor": [compressor]})
        except UsageError:  # the setting is not one of that compressor
            continue
        if number == 0:
            for blind_cell in make_blind_cells(cells[:1]):
                yield f"blind ({BLIND_COMPRESSOR})", blind_cell, plan_stages(blind_cell.config)
        for reference in cells:
            yield label, reference, plan_stages(reference.config)
