"""How long what is left will take, from what finished stages took in this output directory.

The median of finished stages of the same kind (of the same model, where there are any), in proportion to the
rows they worked on: a finished stage notes its steps. Stages that were resumed say nothing of the whole.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

from experiments.store.folder import DONE_FILE
from experiments.store.plan import Stage
from experiments.store.store import Store
from experiments.store.workload import Workload, derive_workload


@dataclass(frozen=True)
class MeasuredStage:
    """A finished stage. `steps`: None for one that has not noted them."""

    load: Workload
    seconds: float
    steps: int | None

    @property
    def rows(self) -> int | None:
        return self.steps and self.steps * self.load.batch


class Estimator:
    """Seconds of stages that are not finished."""

    def __init__(self, stages: Iterable[Stage], store: Store):
        self.found: dict[str, MeasuredStage] = {}
        kinds = set()
        for stage in stages:
            kinds.add(stage.kind)
            self._add_note(read_stage_note(store.locate_result(stage) / DONE_FILE), derive_workload(stage))
        for kind in kinds:
            for path in (store.root / kind).glob(f"*/{DONE_FILE}"):
                self._add_note(read_stage_note(path))

    def _add_note(self, note: dict[str, Any], known: Workload | None = None) -> None:
        known = known or (Workload(**note["load"]) if "load" in note else None)
        if known is not None and not note.get("resumed", True):
            self.found[note["key"]] = MeasuredStage(known, note["seconds"], note.get("steps"))

    def seconds(self, stage: Stage) -> float | None:
        """About how long a stage takes; None if none of its kind has been measured."""
        return self._estimate_workload(derive_workload(stage))

    @cache  # noqa: B019  an estimator lives as long as one look at a plan
    def _estimate_workload(self, asked: Workload) -> float | None:
        kin = [m for m in self.found.values() if m.load.kind == asked.kind]
        kin = [m for m in kin if m.load.model == asked.model] or kin
        if not kin:
            return None
        rates = [m.seconds / m.rows for m in kin if m.rows]
        rows = self.rows(asked)
        if rates and rows is not None:
            return median(rates) * rows
        if asked.limit is None and any(m.load.limit is None for m in kin):
            return median(m.seconds / m.load.passes for m in kin if m.load.limit is None) * asked.passes
        return median(m.seconds for m in kin)

    def rows(self, asked: Workload) -> float | None:
        """Rows that a stage works on, as far as finished ones tell how many a pass has."""
        kin = [m for m in self.found.values() if m.load.kind == asked.kind and m.load.limit is None]
        whole = [m.rows / m.load.passes for m in kin if m.rows]
        limits = [asked.limit * asked.batch] if asked.limit else []
        return min([*limits, *([median(whole) * asked.passes] if whole else [])], default=None)


def read_stage_note(path: Path) -> dict[str, Any]:
    """A finished stage's note; nothing where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
