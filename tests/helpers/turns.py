"""Products of parts that are too many to be tried whole at every run; EVERY_PAIR=1 tries them whole."""

import os
from collections.abc import Iterable, Sequence


def take_turns(rows: Sequence, columns: Iterable, one_in: int, always: Sequence = ()) -> list[tuple]:
    """(row, column): all columns for the rows in `always`; for the others one in `one_in`, the next row with
    the next ones, so that every row and every column has its turns."""
    every_pair = os.environ.get("EVERY_PAIR") == "1"
    return [
        (row, column)
        for number, row in enumerate(rows)
        for place, column in enumerate(columns)
        if every_pair or row in always or (number + place) % one_in == 0
    ]
