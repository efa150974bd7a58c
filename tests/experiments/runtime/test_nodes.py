"""Which of several machines this is: what torchrun, srun and hands say of it."""

import os
import socket

import pytest

from compressors.errors import UsageError
from experiments.runtime.nodes import Node, locate_node, open_store

HAND = {"NODE_RANK": "1", "MASTER_ADDR": "first", "MASTER_PORT": "4000"}
TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "7",
    "GROUP_RANK": "1",
    "RANK": "1",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "2",
    "MASTER_ADDR": "first",
    "MASTER_PORT": "4000",
}
SLURM = {
    "SLURM_NODEID": "1",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_NTASKS": "2",
    "SLURM_NTASKS_PER_NODE": "1",
    "SLURM_NODELIST": "node[7-8]",
    "SLURM_JOB_ID": "120034",
}
NAMES = {*HAND, *TORCHRUN, *SLURM, "SLURM_JOB_NAME"}


@pytest.fixture
def started(monkeypatch):
    """Sets the variables of a launcher, and no others of any."""
    before = {name: os.environ[name] for name in NAMES if name in os.environ}
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    yield lambda variables: os.environ.update(variables)
    for name in NAMES:  # Lightning sets some itself
        os.environ.pop(name, None)
    os.environ.update(before)


@pytest.mark.parametrize(
    ("variables", "node"),
    [
        (HAND, Node(1, 2, "first", 4000)),
        (TORCHRUN, Node(1, 2, "first", 4000)),
        (SLURM, Node(1, 2, "node7", 15034)),
        ({**SLURM, "SLURM_JOB_NAME": "interactive"}, Node(1, 2, "node7", 15034)),
        ({**SLURM, "MASTER_ADDR": "first", "MASTER_PORT": "4000"}, Node(1, 2, "first", 4000)),
    ],
)
def test_a_launcher_tells_which_node_this_is(started, variables, node):
    started(variables)
    assert locate_node(2) == node


@pytest.mark.parametrize(
    ("variables", "count", "message"),
    [
        ({}, 2, "trainer.nodes=2: nobody says which node this is; start the command once on every node"),
        ({"NODE_RANK": "1"}, 2, "with NODE_RANK, MASTER_ADDR and MASTER_PORT set"),
        ({**HAND, "NODE_RANK": "2"}, 2, "this is node 2; nodes are numbered from 0 to 1"),
        ({**HAND, "NODE_RANK": "one"}, 2, "what the launcher has set is no number (.*'one')"),
        ({**HAND, "MASTER_PORT": "99999"}, 2, "MASTER_PORT=99999: must be between 1 and 65535"),
        (TORCHRUN, 3, "trainer.nodes=3: the launcher has started 2 process"),
        ({**TORCHRUN, "LOCAL_RANK": "1"}, 2, "start one on each of 2 nodes .*--nproc-per-node=1"),
        (SLURM, 4, "trainer.nodes=4: the launcher has started 2 process"),
        ({**SLURM, "SLURM_NTASKS": "16", "SLURM_LOCALID": "3"}, 2, "started 16 process.*--ntasks-per-node=1"),
    ],
)
def test_other_starts_are_refused(started, variables, count, message):
    started(variables)
    with pytest.raises(UsageError, match=message.replace("(.", r"\(.").replace("')", r"'\)")) as refused:
        locate_node(count)
    assert "\n" not in str(refused.value)


def test_an_address_that_is_none_is_refused():
    with pytest.raises(UsageError, match="^MASTER_ADDR=no.such.host.invalid: "):
        open_store(Node(1, 2, "no.such.host.invalid", 4000))


def test_a_port_that_is_taken_is_refused():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"MASTER_PORT={port}: node 0 cannot speak to node 0 there"):
            open_store(Node(0, 2, "127.0.0.1", port))
