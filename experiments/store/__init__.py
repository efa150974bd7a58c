"""Content-addressed stages: what a cell needs, by which key, and where its result lies."""
