"""Which rows the rows of a table are compared with: a baseline, and the uncompressed model; what tells rows
apart."""

from collections.abc import Mapping, Sequence

from ablations.outcomes import ReportRow, ReportTable
from ablations.plain_sweeps import find_differing_settings, list_telling_settings
from compressors.errors import UsageError
from compressors.registry import suggest
from compressors.setting_fields import collect_settings
from experiments.config.schema import UNCOMPRESSED, Config

USUAL_BASELINES = ("avg_pool", UNCOMPRESSED)  # the first that a table has; else its first row
# of what stands before the LLM, as knobs are: rows that differ in it are what is compared
FREE_SETTINGS = {"compressor", "projector", "prune", "evaluate.compressor", "evaluate.scale"}


def add_references(
    table: ReportTable, finished_rows: Sequence[tuple[ReportRow, Config]], baseline: str | None
) -> None:
    """Give each finished row the baseline and the uncompressed row that it is compared with, and the settings
    that tell it from others. `baseline`: a row's label or a compressor; UsageError where there is no such."""
    configs = {row.label: config for row, config in finished_rows if not config.blind}
    rows = {row.label: row for row in table.rows if row.label in configs}  # in the table's order
    if not rows:
        return
    settings = dict(zip(rows, list_telling_settings([configs[label] for label in rows])))
    for label, row in rows.items():
        row.settings = settings[label]
    if len(rows) < 2:
        return

    if baseline is None:
        baseline = next(iter(rows))
        for name in reversed(USUAL_BASELINES):
            baseline = name if find_rows_of(name, configs) else baseline
    candidates = [baseline] if baseline in rows else find_rows_of(baseline, configs)
    if not candidates:
        raise UsageError(
            f"baseline={baseline}: no finished row or compressor of {table.heading} is called "
            f"so{suggest(baseline, rows)}"
        )
    table.baseline = baseline
    uncompressed_rows = find_rows_of(UNCOMPRESSED, configs)
    for label, row in rows.items():
        row.baseline = find_partner(label, candidates, settings, rows)
        row.uncompressed = find_partner(label, uncompressed_rows, settings, rows)


def find_rows_of(compressor: str, configs: Mapping[str, Config]) -> list[str]:
    """Labels of the rows that evaluate this compressor, and neither a query module nor a pruner."""
    labels = []
    for label, config in configs.items():
        is_plain = config.query_module is None and config.prune is None
        if is_plain and config.evaluated_compressor == compressor:
            labels.append(label)
    return labels


def find_partner(
    label: str,
    candidates: Sequence[str],
    settings: Mapping[str, Mapping[str, str]],
    rows: Mapping[str, ReportRow],
) -> str:
    """Of several candidates the one that has a row's settings, compressors and their knobs aside; of several
    such the one with as many visual tokens; nothing where that leaves no single one."""
    if len(candidates) == 1:
        return candidates[0]
    if label in candidates:
        return label
    differing = find_differing_settings([settings[candidate] for candidate in candidates])
    shared = (collect_settings(Config).keys() - FREE_SETTINGS) & set(differing)
    partners = []
    for candidate in candidates:
        if all(settings[candidate].get(path) == settings[label].get(path) for path in shared):
            partners.append(candidate)
    if len(partners) > 1:
        tokens = rows[label].efficiency.get("visual_tokens")
        partners = [name for name in partners if rows[name].efficiency.get("visual_tokens") == tokens]
    return partners[0] if len(partners) == 1 else ""
