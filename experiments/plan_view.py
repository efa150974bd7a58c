"""What --plan shows: every stage once, whether it is there, and how many cells share it."""
from collections import Counter
from collections.abc import Sequence

from rich.table import Table

from experiments.cells import Cell
from experiments.plan import KINDS, ROLES, Stage
from experiments.stages import Store

MANY = 60  # stages; more of them are only counted
WORDS = {"done": "cached", "damaged": "damaged, to run again", "partial": "to resume", "missing": "to run"}


def statuses(roots: Sequence[Stage], store: Store) -> dict[str, tuple[Stage, str]]:
    """Every stage with its status; one that only finished stages would read is "not needed"."""
    found = {key: (stage, WORDS[store.status(stage)]) for key, stage in all_stages(roots).items()}
    needed = set()

    def walk(stage: Stage) -> None:
        if stage.key not in needed and found[stage.key][1] != "cached":
            needed.add(stage.key)
            for each in stage.inputs.values():
                walk(each)

    for root in roots:
        walk(root)
    return {key: (stage, word if word == "cached" or key in needed else "not needed")
            for key, (stage, word) in found.items()}


def all_stages(roots: Sequence[Stage]) -> dict[str, Stage]:
    """Every stage once, in the order of work."""
    found = {key: stage for root in roots for key, stage in root.ancestors().items()}
    return dict(sorted(found.items(), key=lambda pair: KINDS.index(pair[1].kind)))


def plan_tables(cells: Sequence[tuple[Cell, Stage]], store: Store) -> list[Table]:
    """The stages one by one, unless they are many, and their counts."""
    roots = [root for _, root in cells]
    found = statuses(roots, store)
    users = Counter(key for root in roots for key in root.ancestors())
    labels = {key: cell.label for cell, root in reversed(cells) for key in root.ancestors()}
    tables = []
    if len(found) <= MANY:
        table = Table("stage", "key", "first used by", "cells", "status", title="stages",
                      title_justify="left")
        for key, (stage, word) in found.items():
            seed = f" seed={stage.config.seed}" if stage.kind in ROLES else ""
            table.add_row(stage.title, key[:16], labels[key] + seed, str(users[key]), word)
        tables.append(table)
    return [*tables, counts(found, users, len(cells))]


def counts(found: dict[str, tuple[Stage, str]], users: Counter, cells: int) -> Table:
    """How many stages of each kind there are, against how many there would be without sharing."""
    table = Table("stage", "stages", "without sharing", "cached", "to run", title=f"{cells} cells",
                  title_justify="left")
    for kind in KINDS:
        words = {key: word for key, (stage, word) in found.items() if stage.kind == kind}
        if words:
            cached = sum(word == "cached" for word in words.values())
            idle = sum(word == "not needed" for word in words.values())
            table.add_row(kind, str(len(words)), str(sum(users[key] for key in words)), str(cached),
                          str(len(words) - cached - idle))
    return table
