"""The sockets of this floor: what can be put in by name.

Each is a registry of the same kind as the compressors'. The objects stand here, below `config`, so that names
can be checked before anything is imported; what they hold stands in its own room, and is offered through the
entry-point group, ours in `setup.cfg` like an outside package's.
"""

from compressors.registry import Registry

datasets = Registry("data set", group="slothkit.datasets")  # experiments/picture_vqa
metrics = Registry("metric", group="slothkit.metrics")  # experiments/metrics
launchers = Registry(  # experiments/sweep; the context is described in sweep/launcher.py
    "launcher",
    group="slothkit.launchers",
    context=("root", "runner", "report", "workers", "threads", "parameters", "uses_gpu"),
)
