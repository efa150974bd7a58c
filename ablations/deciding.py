"""Deciding a table's claims: look, add seeds for the rows that are open, look again."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ablations.claims.looks import Look, can_seeds_decide, note_look
from ablations.claims.spec import Claim, read_claims
from ablations.claims.verdicts import UNRESOLVED, Verdict
from ablations.collect import collect_table
from ablations.earlier import read_earlier_report
from ablations.finished import find_finished_cell
from ablations.looks_file import LooksByClaim
from ablations.writing.grids.claims_grid import judge_table
from ablations.writing.grids.number_words import format_interval, format_signed
from ablations.writing.grids.word_grid import WordGrid
from compressors.errors import UsageError
from experiments.config import tables
from experiments.config.tables import TableFile
from experiments.store.store import Store

STAYS_OPEN = "stays open"  # no look to come would decide it
NOT_YET = "more seeds"


@dataclass(frozen=True)
class Decision:
    """What the last look at a claim came to. `is_final`: no later look changes it."""

    verdict: Verdict
    look: Look
    is_final: bool

    @property
    def word(self) -> str:
        """The verdict, or what becomes of a claim without one."""
        if self.verdict.word != UNRESOLVED:
            return self.verdict.word
        return STAYS_OPEN if self.is_final else NOT_YET


class TableDecider:
    """The claims of one table, and what is known of them.

    wanted         name or path of the table
    axes           the cells' settings, as on a command line; without seeds
    store          where cells are
    earlier_folder the report that has some of them
    """

    def __init__(
        self, wanted: str, axes: Mapping[str, list[str]], store: Store, earlier_folder: Path | None
    ) -> None:
        self.wanted = wanted
        self.axes = dict(axes)
        self.store = store
        self.earlier_report = read_earlier_report(earlier_folder)
        self.decisions: dict[Claim, Decision] = {}  # in the table's order
        self.looks: LooksByClaim = {}  # so far
        file = self.load_file(1)
        self.heading = file.heading
        self.claims = read_claims(file)
        if not self.claims:
            raise UsageError(f"table={wanted}: makes no claims; there is nothing to decide")

    def load_file(self, seeds: int) -> TableFile:
        """The table with its cells at the first seeds."""
        return tables.load_table_file(self.wanted, {**self.axes, "seed": list(map(str, range(seeds)))})

    @property
    def open_claims(self) -> list[Claim]:
        """Those that have no final decision."""
        return [claim for claim in self.claims if not self.is_final(claim)]

    def is_final(self, claim: Claim) -> bool:
        """Whether no later look is at this claim."""
        return claim in self.decisions and self.decisions[claim].is_final

    def list_missing_cells(self, look: Look) -> tuple[list[str], list[int]]:
        """Labels of the rows that a look needs cells of, and the seeds of these."""
        wanted_labels: set[str] = set()
        for claim in self.open_claims:
            wanted_labels.update(self.list_open_rows(claim))
        labels = []
        seeds: set[int] = set()
        for row in self.load_file(look.seeds).rows:
            if row.label not in wanted_labels:
                continue
            missing_seeds = set()
            for cell in row.cells:
                if find_finished_cell(cell, self.store, self.earlier_report) is None:
                    missing_seeds.add(cell.config.seed)
            if missing_seeds:
                labels.append(row.label)
                seeds |= missing_seeds
        return labels, sorted(seeds)

    def list_open_rows(self, claim: Claim) -> list[str]:
        """The rows of a claim's pairs that do not hold yet; all of them before the first look."""
        if claim not in self.decisions or claim.gain_sums:
            return list(claim.row_labels)
        labels = []
        for pair in self.decisions[claim].verdict.pairs:
            if not pair.low > -claim.points:
                labels += [pair.row, pair.other]
        return labels

    def look_at_claims(self, look: Look, later_looks: Sequence[Look]) -> None:
        """Judge the open claims by what has finished."""
        file = self.load_file(look.seeds)
        table = collect_table(file, tuple(self.claims), self.store, self.earlier_report).table
        # all claims, so that each look has the same pairs to learn variances from
        verdicts = judge_table(table, self.claims, look.confidence)
        for claim, verdict in zip(self.claims, verdicts):
            if self.is_final(claim):
                continue
            seen_pairs = note_look(claim, table.outcomes_by_label, table.training_by_label)
            self.looks.setdefault((table.name, claim.text), set()).update(seen_pairs)
            is_decided = verdict.word != UNRESOLVED
            is_final = is_decided or not can_seeds_decide(verdict, later_looks)
            self.decisions[claim] = Decision(verdict, look, is_final)

    def make_grid(self) -> WordGrid:
        """What became of the claims."""
        lines = []
        for claim, decision in self.decisions.items():
            verdict = decision.verdict
            words = [claim.text, claim.statement, str(decision.look.seeds)]
            words += [f"{100 * decision.look.confidence:.1f} %", format_signed(verdict.estimate)]
            words += [format_interval(verdict), decision.word, verdict.note]
            lines.append(("", words))
        header = ["claim", "statement", "seeds", "confidence", "difference", "interval", "verdict", "remarks"]
        return WordGrid(f"{self.heading}: claims decided look by look", header, lines)


def describe_looks(looks: Sequence[Look]) -> str:
    """The looks in a sentence."""
    parts = []
    for look in looks:
        parts.append(f"with {look.seeds} seeds by intervals of {100 * look.confidence:.1f} %")
    return f"looks: {', '.join(parts)}"


def decide_claims(
    decider: TableDecider,
    looks: Sequence[Look],
    run_cells: Callable[[Sequence[str], Sequence[int]], int | None],
    show_decisions: Callable[[WordGrid], None],
) -> int:
    """Look until every claim is decided, or no look to come would decide one; an exit code. `run_cells` gets
    labels of rows and seeds, and returns an exit code, or None where it only told what it would run: neither
    that nor another code than 0 is gone on from. `show_decisions` is called after each look."""
    for number, look in enumerate(looks):
        labels, seeds = decider.list_missing_cells(look)
        if labels:
            exit_code = run_cells(labels, seeds)
            if exit_code != 0:
                return exit_code or 0
        decider.look_at_claims(look, looks[number + 1 :])
        show_decisions(decider.make_grid())
        if not decider.open_claims:
            break
    return 0
