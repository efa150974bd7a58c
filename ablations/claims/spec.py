"""Claims of a table: sentences of a paper as statements about rows, which `verdicts` puts to the test.

    claims:
    - text: SAP beats average pooling                     the sentence, as the report prints it
      source: FlashSloth, Table 3                         who says so
      better: {row: sap, than: avg_pool}                  scores higher; `than` may be a list: than each
    - better: [{row: a+embq, than: a}, ...]               all of these pairs
    - best: {row: add, of: [replace, gated]}              scores higher than each of the others
    - within: {row: 9 queries, of: [16 queries], points: 1}
                                                          at most so many percentage points below each
      family: reading                                     about these questions only; may be a list
      ours: why a number in the claim is our own choice

Rows are named by their labels. A claim is one of better, best and within, and holds if all its pairs do.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from compressors.errors import UsageError
from compressors.registry import suggest
from experiments.config.presets import read_yaml
from experiments.config.tables import TableFile

CLAIM_KINDS = {"better": "than", "best": "of", "within": "of"}  # kind -> who the row is compared with
CLAIM_KEYS = {"text", "source", "family", "ours", *CLAIM_KINDS}


@dataclass(frozen=True)
class Claim:
    """For every pair (row, other): accuracy of row > accuracy of other - `points`."""

    text: str
    source: str
    kind: str
    pairs: tuple[tuple[str, str], ...]
    points: float = 0.0
    families: tuple[str, ...] = ()  # none: all questions
    ours: str = ""

    @property
    def rows(self) -> tuple[str, ...]:
        """The labels it speaks of, each once."""
        return tuple(dict.fromkeys(label for pair in self.pairs for label in pair))

    @property
    def statement(self) -> str:
        """What is checked, in symbols."""
        groups: dict[str, list[str]] = {}
        for row, other in self.pairs:
            groups.setdefault(row, []).append(other)
        less = f" - {self.points:g}" if self.points else ""
        said = "; ".join(f"{row} > {join_labels(others)}{less}" for row, others in groups.items())
        return f"{said}  ({', '.join(self.families)})" if self.families else said


def join_labels(labels: list[str]) -> str:
    return labels[0] if len(labels) == 1 else f"each of {', '.join(labels)}"


def read_claims(table: TableFile) -> tuple[Claim, ...]:
    """The claims of a table's file. UsageError for one that is malformed or names a row that is not there."""
    given = read_yaml(table.path).get("claims") or []
    if not isinstance(given, list):
        raise UsageError(f"{table.path}: claims: expected a list, found a {type(given).__name__}")
    labels = [row.label for row in table.rows]
    found = []
    for number, entry in enumerate(given, 1):
        said = entry.get("text", number) if isinstance(entry, dict) else number
        try:
            found.append(parse_claim(entry, labels))
        except UsageError as error:
            raise UsageError(f"{table.path}, claim '{said}': {error}") from error
    return tuple(found)


def parse_claim(entry: object, labels: Collection[str]) -> Claim:
    """One claim about rows of these labels."""
    if not isinstance(entry, dict):
        raise UsageError(f"{entry!r}: expected text: ..., source: ... and one of {', '.join(CLAIM_KINDS)}")
    for key in entry:
        if key not in CLAIM_KEYS:
            raise UsageError(f"unknown key '{key}'{suggest(str(key), CLAIM_KEYS)}")
    kinds = [kind for kind in CLAIM_KINDS if kind in entry]
    if len(kinds) != 1:
        raise UsageError(f"expected one of {', '.join(CLAIM_KINDS)}, found {', '.join(kinds) or 'none'}")
    (kind,) = kinds
    for key in ("text", "source"):
        if not isinstance(entry.get(key), str):
            raise UsageError(f"{key}: expected words, found {entry.get(key)!r}")
    comparisons = entry[kind] if isinstance(entry[kind], list) else [entry[kind]]
    pairs = [pair for each in comparisons for pair in parse_pairs(kind, each, labels)]
    families = entry.get("family", [])
    families = [families] if isinstance(families, str) else families
    if not isinstance(families, list):
        raise UsageError(f"family: expected a name or a list of them, found {families!r}")
    return Claim(
        entry["text"],
        entry["source"],
        kind,
        tuple(dict.fromkeys(pairs)),
        parse_points(kind, comparisons),
        tuple(map(str, families)),
        str(entry.get("ours") or ""),
    )


def parse_pairs(kind: str, entry: object, labels: Collection[str]) -> list[tuple[str, str]]:
    """The pairs of one comparison."""
    word = CLAIM_KINDS[kind]
    wanted = {"row", word} | ({"points"} if kind == "within" else set())
    if not isinstance(entry, dict) or set(entry) != wanted:
        shape = ", ".join(f"{key}: ..." for key in sorted(wanted, key=("row", word, "points").index))
        raise UsageError(f"{kind}: {entry!r}: expected {{{shape}}}")
    others = entry[word] if isinstance(entry[word], list) else [entry[word]]
    if not others:
        raise UsageError(f"{kind}: {word} is empty; name at least one row")
    pairs = [(check_label(entry["row"], labels), check_label(other, labels)) for other in others]
    for row, other in pairs:
        if row == other:
            raise UsageError(f"{kind}: '{row}' is compared with itself")
    return pairs


def check_label(label: object, labels: Collection[str]) -> str:
    """The label of a row that the table has."""
    if str(label) not in labels:
        raise UsageError(f"no row '{label}'{suggest(str(label), labels)}")
    return str(label)


def parse_points(kind: str, comparisons: list[Mapping[str, Any]]) -> float:
    """By how much a row may stay below; 0 but for `within`."""
    found = {each["points"] for each in comparisons} if kind == "within" else {0}
    value = found.pop()
    if found or isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 100:
        raise UsageError(f"{kind}: points: {value!r}: expected one number of percentage points, 0 or more")
    return float(value)
