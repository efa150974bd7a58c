"""The work of a stage: data, features, two trainings, evaluation."""
