"""Claims of a table: how they are written, the intervals, the verdicts."""

SEED_LIMIT = 10  # seeds that looks at claims share their 5 % among, unless more are asked for
