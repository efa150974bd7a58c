"""Looks at claims in a file of their own, `looks.json` beside report.json. Each report replaces the one
before it and may have other tables; looks are only ever added, so that none is forgotten.

{"format": 1, "looks": {TABLE: {CLAIM: [[[ROW, OTHER, TRAINING, SEEDS], ...], ...]}}}

A look has an entry for each pair of the claim. TRAINING is the digest of how the pair's rows were trained: a
look at a pilot is none at other cells of the same names.
"""

import json
from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from ablations.claims.looks import SeedsByPair, note_look, recall_looks
from ablations.claims.spec import Claim
from ablations.outcomes import TRAINING_SEED, ReportRow, ReportTable
from ablations.report_files import load_claim, load_report_row
from ablations.study import explain_report_errors, read_report_content
from compressors.errors import UsageError
from compressors.reading import read_json_object
from compressors.registry import conform
from experiments.runtime.files import hold_lock, write_atomic

LOOKS_FILE = "looks.json"
LOOKS_FORMAT = 1
LooksByClaim = dict[tuple[str, str], set[SeedsByPair]]  # by table and text of a claim


def collect_looks(folders: Sequence[Path]) -> LooksByClaim:
    """All looks that reports in these folders have taken."""
    looks: LooksByClaim = {}
    for folder in folders:
        looks = unite_looks(looks, read_looks(folder))
    return looks


def add_looks(folder: Path, new_looks: Mapping[tuple[str, str], Set[SeedsByPair]]) -> None:
    """Write looks beside those that a folder has. UsageError where its file is damaged."""
    path = folder / LOOKS_FILE
    with hold_lock(folder / f"{LOOKS_FILE}.lock"):
        known_looks = read_looks(folder)
        looks = unite_looks(known_looks, new_looks)
        # those of a report of an earlier version are known, and have no file yet
        if looks and (looks != known_looks or not path.exists()):
            write_atomic(path, spell_looks(looks))


def unite_looks(
    looks: Mapping[tuple[str, str], Set[SeedsByPair]], other_looks: Mapping[tuple[str, str], Set[SeedsByPair]]
) -> LooksByClaim:
    """The looks of both; claims that nobody has looked at are left out."""
    united_looks: LooksByClaim = {}
    for claim_looks in (looks, other_looks):
        for claim, seeds_by_pair in claim_looks.items():
            if seeds_by_pair:
                united_looks.setdefault(claim, set()).update(seeds_by_pair)
    return united_looks


def spell_looks(looks: LooksByClaim) -> str:
    """Looks as JSON, in an order of their own."""
    tables: dict[str, dict[str, list]] = {}
    for (table, claim), claim_looks in sorted(looks.items()):
        entries = []
        for look in claim_looks:
            entries.append(sorted([*pair, seeds] for pair, seeds in look))
        tables.setdefault(table, {})[claim] = sorted(entries)
    return json.dumps({"format": LOOKS_FORMAT, "looks": tables}, indent=1) + "\n"


def read_looks(folder: Path) -> LooksByClaim:
    """The looks that a folder's file tells of, or the report in it where there is no such file. UsageError
    for a damaged one."""
    path = folder / LOOKS_FILE
    if not path.exists():
        return read_report_looks(folder)
    try:
        content = read_json_object(path)
        if content.get("format") != LOOKS_FORMAT:
            raise UsageError(f"format {content.get('format')!r:.20}, this version reads {LOOKS_FORMAT}")
        hint = dict[str, dict[str, list[list[tuple[str, str, str, int]]]]]
        tables = conform(content.get("looks"), hint, "looks")
    except UsageError as error:
        raise UsageError(
            f"{path}: {error}; without it earlier looks at claims are forgotten: copy it again, or remove it "
            "where there were none"
        ) from error
    looks: LooksByClaim = {}
    for table, claims in tables.items():
        for claim, entries in claims.items():
            looks[table, claim] = set()
            for entry in entries:
                look = frozenset(((row, other, training), seeds) for row, other, training, seeds in entry)
                looks[table, claim].add(look)
    return looks


def read_report_looks(folder: Path) -> LooksByClaim:
    """The looks that a report of an earlier version tells of, which wrote no file of them; none where there
    is no report, or one that cannot be read any more."""
    looks: LooksByClaim = {}
    with suppress(UsageError), explain_report_errors(folder, "looks"):
        for entry in read_report_content(folder, "looks")["tables"]:
            rows = []
            for row_entry in entry["rows"]:
                no_answers = np.zeros((len(row_entry["seeds"]), 0))  # how many seeds there are is enough
                rows.append(load_report_row(row_entry, no_answers))
            forget_other_training(rows)
            claims = tuple(map(load_claim, entry["claims"]))
            looks |= note_looks([ReportTable(entry["name"], "", "", claims, rows)])
    return looks


def forget_other_training(rows: Sequence[ReportRow]) -> None:
    """Earlier versions noted the training of rows at the first seed that a table had."""
    first_seeds = [next(iter(row.outcomes)) for row in rows if row.outcomes]
    if first_seeds and first_seeds[0] != TRAINING_SEED:
        for row in rows:
            row.training = ()


def note_looks(tables: Sequence[ReportTable]) -> LooksByClaim:
    """All looks at the claims of a report's tables, that of the report itself among them."""
    looks: LooksByClaim = {}
    for table in tables:
        for claim in table.claims:
            claim_looks = note_look(claim, table.outcomes_by_label, table.training_by_label)
            looks[table.name, claim.text] = claim_looks
    return looks


def recall_looks_before(table: ReportTable, looks_before: LooksByClaim) -> tuple[Claim, ...]:
    """A table's claims, each with the looks at it before this one."""
    claims = []
    for claim in table.claims:
        looks = looks_before.get((table.name, claim.text), set())
        past_looks = recall_looks(claim, table.outcomes_by_label, table.training_by_label, looks)
        claims.append(replace(claim, looks=past_looks))
    return tuple(claims)
