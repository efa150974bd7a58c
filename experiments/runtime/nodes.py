"""Machines that work together: which of them this is, as whoever started the command says it, and the
key-value store of torch.distributed that all of them see."""

import os
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from torch.distributed import DistError, PrefixStore, TCPStore

from compressors.errors import UsageError, quote, shorten_reason

MEETING_SECONDS = 600  # for all nodes to come
SILENCE_SECONDS = 120  # without a sign of life: a node has gone
BEAT_SECONDS = 5  # between two signs
CONNECT_SECONDS = 5  # of one attempt to reach node 0: Ctrl-C is not seen meanwhile
HAND_NAMES = ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT")  # what whoever starts the nodes by hand sets
HOW_TO_START = (
    "start the command once on every node, with srun --ntasks-per-node=1, torchrun --nproc-per-node=1, or "
    "with NODE_RANK, MASTER_ADDR and MASTER_PORT set"
)


@dataclass(frozen=True)
class Node:
    """A machine among others. `address` and `port`: where node 0, or its first process, is spoken to."""

    rank: int
    count: int
    address: str
    port: int


def locate_node(count: int) -> Node:
    """Which of `count` nodes this process is on, as its launcher says it. UsageError where none does, or has
    started other processes than one a node."""
    where = f"trainer.nodes={count}"
    environment = find_environment(where)
    try:
        world = count
        if not isinstance(environment, LightningEnvironment):  # which is not told it
            world = environment.world_size()
        if world != count or environment.local_rank() != 0:
            raise UsageError(
                f"{where}: the launcher has started {world} process(es); start one on each of {count} nodes "
                "(srun --ntasks-per-node=1, torchrun --nproc-per-node=1): it starts one a device itself"
            )
        node = Node(environment.node_rank(), count, environment.main_address, environment.main_port)
    except ValueError as error:  # int() of a variable
        if isinstance(error, UsageError):
            raise
        raise UsageError(
            f"{where}: what the launcher has set is no number ({shorten_reason(error)})"
        ) from error
    if not 0 <= node.rank < count:
        raise UsageError(f"{where}: this is node {node.rank}; nodes are numbered from 0 to {count - 1}")
    if not 0 < node.port < 2**16:
        raise UsageError(f"MASTER_PORT={node.port}: must be between 1 and {2**16 - 1}")
    return node


def find_environment(where: str) -> ClusterEnvironment:
    """Who has started this process. UsageError where nobody says which node it is on."""
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    if all(name in os.environ for name in HAND_NAMES):
        return LightningEnvironment()
    # `detect` says no in an interactive job, whose steps have all that is needed
    if "SLURM_NODEID" in os.environ and "SLURM_NTASKS" in os.environ:
        try:
            return SLURMEnvironment(auto_requeue=False)
        except RuntimeError as error:
            raise UsageError(f"{where}: {shorten_reason(error)}") from error
    raise UsageError(f"{where}: nobody says which node this is; {HOW_TO_START}")


def open_store(node: Node) -> PrefixStore:
    """The store that all nodes see. UsageError where node 0 cannot be reached, or its port is taken."""
    try:
        socket.getaddrinfo(node.address, node.port)
    except OSError as error:
        raise UsageError(f"MASTER_ADDR={quote(node.address)}: {shorten_reason(error)}") from error
    # torchrun has a store at this port, and is not to be asked for a second one
    has_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    is_master = node.rank == 0 and not has_store
    end = time.monotonic() + MEETING_SECONDS
    while True:
        try:
            store = TCPStore(
                node.address,
                node.port,
                is_master=is_master,
                timeout=timedelta(seconds=CONNECT_SECONDS),
                wait_for_workers=False,
            )
            return PrefixStore(f"slothkit/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        except (DistError, OSError) as error:
            if not is_master and time.monotonic() < end:
                continue
            raise UsageError(
                f"MASTER_ADDR={quote(node.address)} MASTER_PORT={node.port}: node {node.rank} cannot speak "
                f"to node 0 there ({shorten_reason(error)}); give an address that all nodes reach and a free "
                "port"
            ) from error


class Heartbeat:
    """Signs of life that nodes give each other: a process that was killed closes connections, but neither a
    machine that has lost its power nor one behind a store of torchrun does."""

    def __init__(self, store: PrefixStore, rank: int, watched: Sequence[int]):
        self.store = store
        self.rank = rank
        now = time.monotonic()
        # of each watched node how many signs so far, and when that changed
        self.last_signs = {watched_rank: (0, now) for watched_rank in watched}
        self.looked_at = now
        self.stopped = threading.Event()
        threading.Thread(target=self._beat, daemon=True).start()

    def _beat(self) -> None:
        with suppress(DistError, OSError):  # node 0 has gone, with the store
            while not self.stopped.wait(BEAT_SECONDS):
                self.store.add(f"alive/{self.rank}", 1)

    def find_silent(self) -> int | None:
        """A watched node that has given no sign for a long time."""
        now = time.monotonic()
        if now - self.looked_at < BEAT_SECONDS:
            return None
        self.looked_at = now
        for rank, (count, changed_at) in self.last_signs.items():
            signs = self.store.add(f"alive/{rank}", 0)
            if signs != count:
                self.last_signs[rank] = (signs, now)
            elif now - changed_at > SILENCE_SECONDS:
                return rank
        return None

    def stop(self) -> None:
        """No more signs."""
        self.stopped.set()
