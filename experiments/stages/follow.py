"""What a node does in a sweep that another one leads: its processes of each training, and nothing else. It
writes nothing; node 0 does."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compressors.errors import UsageError
from experiments.config.devices import pick_device
from experiments.runtime.progress import Reporter
from experiments.stages.train import launch_share
from experiments.stages.training import strategies
from experiments.stages.training.node_link import Launch, NodeLink
from experiments.store.folder import draft_folder_of, read_package_versions
from experiments.store.keys import digest_value
from experiments.store.plan import Stage

# Until a node sees what another one has written: a network file system remembers what was not there.
SHARED_SECONDS = 60
POLL_SECONDS = 0.2


def describe_plan(last_stages: Sequence[Stage]) -> dict[str, Any]:
    """What all nodes of a sweep must agree on; the stages are those that evaluate its cells."""
    devices = []
    for stage in last_stages:
        trainer = stage.config.trainer
        words = f"trainer.accelerator={trainer.accelerator} trainer.devices={trainer.devices}"
        count = max(1, strategies.count_processes(trainer))
        devices.append([words, f"{count} x {pick_device(trainer).type}"])
    versions = read_package_versions()
    keys = [stage.key for stage in last_stages]
    return {"versions": versions, "stages": digest_value(keys), "devices": devices}


def find_difference(plan: Mapping[str, Any], own: Mapping[str, Any], rank: int) -> str:
    """Why node `rank` cannot work with the plan of node 0; nothing if it can."""
    for package, version in plan["versions"].items():
        if own["versions"][package] != version:
            return (
                f"{package} is {version} on node 0, {own['versions'][package]} on node {rank}; install the "
                "same on all nodes"
            )
    if own["stages"] != plan["stages"]:
        return (
            f"node {rank} plans other stages than node 0; start the same command with the same data and "
            "models on every node"
        )
    for (_, first), (words, devices) in zip(plan["devices"], own["devices"], strict=True):
        if first != devices:
            return f"{words}: node {rank} has {devices}, node 0 has {first}; set both to what all nodes have"
    return ""


def see_path(path: Path) -> bool:
    """Whether this node sees a path that node 0 has written, now or soon."""
    end = time.monotonic() + SHARED_SECONDS
    while not path.exists():
        if time.monotonic() > end:
            return False
        time.sleep(POLL_SECONDS)
    return True


def follow(link: NodeLink, stages: Mapping[str, Stage], root: Path, report: Reporter) -> None:
    """Take part in every training until node 0 says that the sweep has ended. `stages`: the sweep's, by name;
    `root`: the output directory, which all nodes see."""
    while True:
        launch = link.wait_for_launch()
        if launch is None:
            return
        report.write_note(f"node {link.node.rank} takes part in {launch.stage}")
        try:
            with link.sharing(launch):
                run_share(link, launch, stages[launch.stage], root)
        except Exception as error:  # node 0 tells of it, and goes on or ends
            report.write_note(f"failed: {launch.stage}: {error}")


def run_share(link: NodeLink, launch: Launch, stage: Stage, root: Path) -> None:
    """This node's processes of a training."""
    inputs = {name: root / source.name for name, source in stage.inputs.items()}
    out = draft_folder_of(root / stage.name)
    for path in (*inputs.values(), out):
        if not see_path(path):
            raise UsageError(f"{path}: is on node 0 alone; all nodes have to share out={root}")
    link.say_ready(launch)
    launch_share(link, launch, Reporter(), stage.config, stage.kind, inputs, out, launch.processes)
