"""What the claims of a report came to, in words."""

import pytest

from ablations.claims.verdicts import UNRESOLVED, Verdict
from ablations.outcomes import Report, ReportTable
from ablations.writing.grids.sentences import summarize_claims


@pytest.mark.parametrize(
    ("count", "sentence"),
    [(1, "1 claim. Not resolved: 1."), (2, "2 claims. Not resolved: 2.")],
)
def test_claims_are_counted_in_words(count, sentence):
    table = ReportTable("mine", "mine", "", (), [])
    verdicts = {"mine": [Verdict(None, UNRESOLVED)] * count}
    assert summarize_claims(Report([table], {}), verdicts)[0] == sentence
