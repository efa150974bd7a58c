"""LLaVA-format files, the order they are read in, batches, and what an embedded data set is."""
