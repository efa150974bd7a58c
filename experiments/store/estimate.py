"""How long what is left will take, from what finished stages took in this output directory.

The median of finished stages of the same kind (of the same model, where there are any), in proportion to the
rows they worked on: a finished stage notes its steps. Stages that were resumed say nothing of the whole, and
trials of a few rows nothing of many: they are mostly start.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any, get_type_hints

from compressors.errors import UsageError
from compressors.registry import conform
from experiments.store.folder import DONE_FILE, read_done_note
from experiments.store.plan import Stage
from experiments.store.store import Store
from experiments.store.workload import Workload, derive_workload

MOST_TIMES = 10  # by which a stage may have more rows than one that tells of it


@dataclass(frozen=True)
class MeasuredStage:
    """A finished stage. `steps`: None for one that has not noted them."""

    load: Workload
    seconds: float
    steps: int | None

    @property
    def rows(self) -> int | None:
        """Rows it worked on, over all passes; None where it has not noted its steps."""
        return self.steps and self.steps * self.load.batch


class Estimator:
    """Seconds that stages will take, from what finished stages below the store's root took, and from `times`
    of stages elsewhere."""

    def __init__(self, stages: Iterable[Stage], store: Store, times: Iterable[MeasuredStage] = ()):
        self.measured: dict[str, MeasuredStage] = {}  # by the stage's key
        for number, time in enumerate(times):  # of stages elsewhere, whose keys nobody asks for
            self.measured[str(number)] = time
        kinds = set()
        for stage in stages:
            kinds.add(stage.kind)
            # a stage that is asked for tells its load itself: notes of older versions have none
            self._add_note(read_stage_note(store.locate_result(stage) / DONE_FILE), derive_workload(stage))
        for kind in kinds:
            for path in (store.root / kind).glob(f"*/{DONE_FILE}"):
                self._add_note(read_stage_note(path))

    def _add_note(self, note: dict[str, Any], load: Workload | None = None) -> None:
        if load is None:
            load = note.get("load")
        if load is not None and not note.get("resumed", True):
            self.measured[note["key"]] = MeasuredStage(load, note["seconds"], note.get("steps"))

    def estimate_seconds(self, stage: Stage) -> float | None:
        """About how long a stage takes; None if none of its kind has been measured."""
        return self._estimate_workload(derive_workload(stage))

    @cache  # noqa: B019  an estimator lives as long as one look at a plan
    def _estimate_workload(self, load: Workload) -> float | None:
        alike = [stage for stage in self.measured.values() if stage.load.kind == load.kind]
        of_same_model = [stage for stage in alike if stage.load.model == load.model]
        if of_same_model:
            alike = of_same_model
        if not alike:
            return None
        rows = self._estimate_rows(load)
        if rows is not None:
            telling = [stage for stage in alike if stage.rows and rows <= MOST_TIMES * stage.rows]
            # rows of other data may be longer
            telling = [stage for stage in telling if stage.load.data == load.data] or telling
            if telling:
                return median(stage.seconds / stage.rows for stage in telling if stage.rows) * rows
        if load.limit is not None:
            return None
        # without steps, whole passes can still be compared with whole passes
        whole = []
        for stage in alike:
            is_whole = stage.rows is None and stage.load.limit is None and stage.load.data == load.data
            if is_whole and load.passes <= MOST_TIMES * stage.load.passes:
                whole.append(stage.seconds / stage.load.passes)
        return median(whole) * load.passes if whole else None

    def _estimate_rows(self, load: Workload) -> float | None:
        """Rows that a stage works on, as far as finished ones tell how many a pass has."""
        rows_a_pass = []
        for stage in self.measured.values():
            is_of_these_data = stage.load.kind == load.kind and stage.load.data == load.data
            if is_of_these_data and stage.load.limit is None and stage.rows:
                rows_a_pass.append(stage.rows / stage.load.passes)
        bounds: list[float] = []
        if load.limit:
            bounds.append(load.limit * load.batch)
        if rows_a_pass:
            bounds.append(median(rows_a_pass) * load.passes)
        return min(bounds, default=None)


def read_stage_note(path: Path) -> dict[str, Any]:
    """Read a finished stage's note, its load as a Workload; empty where there is none that can be read."""
    try:
        note = read_done_note(path.parent)
        note["steps"] = conform(note.get("steps"), int | None, "steps")
        if "load" in note:
            note["load"] = read_workload(note["load"])
        return note
    except UsageError:
        return {}


def read_workload(content: object) -> Workload:
    """A load from a note; UsageError for what no stage has noted."""
    fields = conform(content, dict[str, Any], "load")
    values: dict[str, Any] = {}
    for name, hint in get_type_hints(Workload).items():
        values[name] = conform(fields.get(name), hint, f"load.{name}")
    load = Workload(**values)
    if not load.passes > 0:
        raise UsageError(f"load.passes={load.passes}: must be more than 0")
    return load
