"""Data sets that do not fit: shards of rows that are read while a stage trains."""
