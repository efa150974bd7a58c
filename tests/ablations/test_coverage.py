"""The page of coverage names what is there, and all that is training-free."""

import re
from pathlib import Path

from test_field import TRAINING_FREE

import ablations
from experiments.config import signatures

PAGE = Path(ablations.__file__).parent / "COVERAGE.md"


def test_its_names_are_registered():
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    words = set(re.findall(r"`(\+?\w+)`", "\n".join(rows)))
    registered = {*signatures.compressors().names(), *signatures.pruners().names()}
    registered |= {f"+{name}" for name in signatures.query_modules().names()}
    assert words and words <= registered, words - registered
    assert set(re.findall(r"`(\w+)`", PAGE.read_text())) >= TRAINING_FREE
