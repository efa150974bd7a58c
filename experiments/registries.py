"""The sockets of this floor: what can be put in by name.

Each is a registry of the same kind as the compressors'. The objects stand here, below `config`, so that names
can be checked before anything is imported; what they hold stands in its own room, and is offered through the
entry-point group, ours in `setup.cfg` like an outside package's.
"""

from typing import Any

from compressors.errors import UsageError
from compressors.registry import Registry, find_entry_points, loading_error

datasets = Registry("data set", group="slothkit.datasets")  # experiments/picture_vqa
metrics = Registry("metric", group="slothkit.metrics")  # experiments/metrics
launchers = Registry(  # experiments/sweep; the context is described in sweep/launcher.py
    "launcher",
    group="slothkit.launchers",
    context=("root", "runner", "report", "workers", "threads", "parameters", "uses_gpu"),
)


def load_offers(group: str) -> dict[str, Any]:
    """What packages offer in an entry-point group, by name: plain objects, such as a folder or a function.

    UsageError if nobody offers anything, since this project does itself once it is installed, for an offer
    that does not load, and for a name that two packages have.
    """
    offers: dict[str, Any] = {}
    for name, point in sorted(find_entry_points(group).items()):
        try:
            offers[name] = point.load()
        except Exception as error:
            raise loading_error(f"{group}:", point, error) from error
    if not offers:
        raise UsageError(
            f"no installed package offers anything as {group}; `pip install -e .` in the "
            "repository's folder makes slothkit do so"
        )
    return offers
