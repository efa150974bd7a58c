"""Experiments: configuration, data, training, evaluation and the sweep. Importing it costs nothing."""
