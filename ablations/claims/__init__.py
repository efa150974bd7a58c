"""Claims of a table: how they are written, the intervals, the verdicts."""
