"""Claims of a table: sentences of a paper as statements about rows, which `verdicts` puts to the test.

    claims:
    - text: SAP beats average pooling                     the sentence, as the report prints it
      source: FlashSloth, Table 3                         who says so
      better: {row: sap, than: avg_pool}                  scores higher; `than` may be a list: than each
    - better: [{row: a+embq, than: a}, ...]               all of these pairs
    - best: {row: add, of: [replace, gated]}              scores higher than each of the others
    - within: {row: 9 queries, of: [16 queries], points: 1}
                                                          at most so many percentage points below each
    - gains_more: {row: random+embq, over: random, than: {row: sap+embq, over: sap}}
                                                          a difference of differences: its gain is larger
    - gains_grow: [{row: sap+embq at 9, over: sap at 9}, {row: sap+embq at 4, over: sap at 4}, ...]
                                                          a trend: gains in order grow; how much the
                                                          least-squares line rises from first to last
      family: reading                                     about these questions only; may be a list
      ours: why a number in the claim is our own choice
    tie: {points: 1, reason: why no more, no less}        beside claims: how much is no difference

Rows are named by their labels. A claim is one of better, best, within, gains_more and gains_grow, and holds
if all its pairs do.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from ablations.claims.gains import (
    FEWEST_STEPS,
    GainSum,
    check_label,
    make_trend,
    parse_gain,
    sum_gains,
)
from compressors.errors import UsageError
from compressors.registry import suggest
from experiments.config.presets import read_yaml
from experiments.config.tables import TableFile

ROW_KINDS = {"better": "than", "best": "of", "within": "of"}  # kind -> who the row is compared with
GAINS_MORE = "gains_more"
GAINS_GROW = "gains_grow"
CLAIM_KINDS = (*ROW_KINDS, GAINS_MORE, GAINS_GROW)
CLAIM_KEYS = {"text", "source", "family", "ours", *CLAIM_KINDS}
TIE_KEYS = {"points", "reason"}
MAX_POINTS = 100  # by how much accuracies can differ


@dataclass(frozen=True)
class Claim:
    """For every pair (row, other): accuracy of row > accuracy of other - `points`.

    families   the questions that count; none: all questions
    ours       why a number in it is our own choice
    tie        below how many points either way a difference is none; 0: any is one
    tie_reason why so many
    gain_sums  what a pair names that is no row: sums of gains
    looks      at how many seeds of each pair other reports judged it; 0 where it did not have the pair
    """

    text: str
    source: str
    kind: str
    pairs: tuple[tuple[str, str], ...]
    points: float = 0.0
    families: tuple[str, ...] = ()
    ours: str = ""
    tie: float = 0.0
    tie_reason: str = ""
    gain_sums: tuple[GainSum, ...] = ()
    looks: tuple[tuple[int, ...], ...] = ()

    @property
    def row_pairs(self) -> tuple[tuple[str, str], ...]:
        """The pairs of rows that it rests on: its own, or the gains that it compares."""
        if not self.gain_sums:
            return self.pairs
        pairs: list[tuple[str, str]] = []
        for gain_sum in self.gain_sums:
            pairs += gain_sum.gains
        return tuple(pairs)

    @property
    def row_labels(self) -> tuple[str, ...]:
        """The rows it speaks of, each once."""
        labels: dict[str, None] = {}  # a set that keeps its order
        for pair in self.row_pairs:
            labels |= dict.fromkeys(pair)
        return tuple(labels)

    @property
    def statement(self) -> str:
        """What is checked, in symbols."""
        others_by_row: dict[str, list[str]] = {}
        for row, compared_row in self.pairs:
            others_by_row.setdefault(row, []).append(compared_row)
        allowance = f" - {self.points:g}" if self.points else ""
        comparisons = []
        for row, compared_rows in others_by_row.items():
            compared_with = compared_rows[0]
            if len(compared_rows) > 1:
                compared_with = f"each of {', '.join(compared_rows)}"
            comparisons.append(f"{row} > {compared_with}{allowance}")
        statement = "; ".join(comparisons)
        if self.families:
            statement += f"  ({', '.join(self.families)})"
        return statement


def read_claims(table: TableFile) -> tuple[Claim, ...]:
    """The claims of a table's file. UsageError for one that is malformed or names a row that is not there."""
    content = read_yaml(table.path)
    entries = content.get("claims") or []
    if not isinstance(entries, list):
        raise UsageError(f"{table.path}: claims: expected a list, found a {type(entries).__name__}")
    labels = [row.label for row in table.rows if not row.absent]
    tie, tie_reason = parse_tie(content.get("tie"), f"{table.path}, tie")
    claims = []
    for number, entry in enumerate(entries, 1):
        # its number where it has no text to be called by
        name = entry.get("text", number) if isinstance(entry, dict) else number
        try:
            claim = parse_claim(entry, labels)
        except UsageError as error:
            raise UsageError(f"{table.path}, claim '{name}': {error}") from error
        if claim.kind != "within":  # which has a limit of its own
            claim = replace(claim, tie=tie, tie_reason=tie_reason)
        claims.append(claim)
    return tuple(claims)


def parse_tie(entry: object, place: str) -> tuple[float, str]:
    """A table's margin for ties in points, and its reason; 0 where it has none. UsageError for one without a
    reason: a margin that is chosen by the rows it judges makes ties of them."""
    if entry is None:
        return 0.0, ""
    if not isinstance(entry, dict) or set(entry) != TIE_KEYS:
        raise UsageError(f"{place}: {entry!r}: expected {{points: ..., reason: ...}}")
    points = check_points(entry["points"], place)
    reason = entry["reason"]
    if not points or not isinstance(reason, str) or not reason.strip():
        raise UsageError(f"{place}: {entry!r}: expected more than 0 points and a reason in words")
    return points, reason


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
    kind = kinds[0]
    for key in ("text", "source"):
        words = entry.get(key)
        if not isinstance(words, str):
            raise UsageError(f"{key}: expected words, found {words!r}")

    families = entry.get("family", [])
    if isinstance(families, str):
        families = [families]
    if not isinstance(families, list):
        raise UsageError(f"family: expected a name or a list of them, found {families!r}")
    gain_sums: tuple[GainSum, ...] = ()
    points = 0.0
    if kind in ROW_KINDS:
        comparisons = entry[kind]
        if not isinstance(comparisons, list):
            comparisons = [comparisons]
        pairs: list[tuple[str, str]] = []
        for comparison in comparisons:
            pairs += parse_pairs(kind, comparison, labels)
        points = parse_points(kind, comparisons)
    else:
        gain_sums = parse_gain_sums(kind, entry[kind], labels)
        larger, smaller = gain_sums
        pairs = [(larger.name, smaller.name)]
    return Claim(
        text=entry["text"],
        source=entry["source"],
        kind=kind,
        pairs=tuple(dict.fromkeys(pairs)),
        points=points,
        families=tuple(map(str, families)),
        ours=str(entry.get("ours") or ""),
        gain_sums=gain_sums,
    )


def parse_gain_sums(kind: str, comparison: object, labels: Collection[str]) -> tuple[GainSum, GainSum]:
    """The sum of gains that is to be the larger, and the other."""
    if kind == GAINS_GROW:
        if not isinstance(comparison, list) or len(comparison) < FEWEST_STEPS:
            raise UsageError(
                f"{kind}: {comparison!r}: expected a list of {FEWEST_STEPS} gains or more, "
                "each {row: ..., over: ...}"
            )
        gains = []
        for entry in comparison:
            gains.append(parse_gain(entry, labels, kind))
        return make_trend(gains)
    if not isinstance(comparison, dict) or "than" not in comparison:
        raise UsageError(
            f"{kind}: {comparison!r}: expected {{row: ..., over: ..., than: {{row: ..., over: ...}}}}"
        )
    larger_entry = dict(comparison)
    smaller = parse_gain(larger_entry.pop("than"), labels, f"{kind}, than")
    larger = parse_gain(larger_entry, labels, kind)
    if larger == smaller:
        raise UsageError(f"{kind}: the gain of '{larger.row}' is compared with itself")
    return sum_gains([(1, larger)]), sum_gains([(1, smaller)])


def parse_pairs(kind: str, comparison: object, labels: Collection[str]) -> list[tuple[str, str]]:
    """The pairs (row, other) of one comparison, such as {row: sap, than: avg_pool}."""
    others_key = ROW_KINDS[kind]
    keys = ["row", others_key]
    if kind == "within":
        keys.append("points")
    if not isinstance(comparison, dict) or set(comparison) != set(keys):
        shape = ", ".join(f"{key}: ..." for key in keys)
        raise UsageError(f"{kind}: {comparison!r}: expected {{{shape}}}")
    compared_labels = comparison[others_key]
    if not isinstance(compared_labels, list):
        compared_labels = [compared_labels]
    if not compared_labels:
        raise UsageError(f"{kind}: {others_key} is empty; name at least one row")
    row = check_label(comparison["row"], labels)
    pairs = []
    for label in compared_labels:
        pairs.append((row, check_label(label, labels)))
    if (row, row) in pairs:
        raise UsageError(f"{kind}: '{row}' is compared with itself")
    return pairs


def parse_points(kind: str, comparisons: list[Mapping[str, Any]]) -> float:
    """By how many percentage points a row may stay below; 0 but for `within`."""
    if kind != "within":
        return 0.0
    values = {comparison["points"] for comparison in comparisons}
    value = values.pop()
    if values:  # a claim has one limit
        raise UsageError(f"{kind}: points: {value!r}: expected one number of percentage points, 0 or more")
    return check_points(value, kind)


def check_points(value: object, place: str) -> float:
    """A number of percentage points."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not 0 <= cast(float, value) < MAX_POINTS:
        raise UsageError(f"{place}: points: {value!r}: expected one number of percentage points, 0 or more")
    return float(cast(float, value))
