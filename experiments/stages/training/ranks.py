"""The processes of one training on several devices. The sweep's own process starts them, passes on what they
tell, and waits; it holds the stage's lock and writes its result, so nothing else knows of them.

    sweep -> launch_processes(work, 8, report, ...) -> 8 x work(..., report)

Of several machines each does so for its own (`node_link.py`).
"""

import os
import sys
from collections.abc import Callable

import torch
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from torch import multiprocessing
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from compressors.errors import UsageError
from experiments.runtime.nodes import Node
from experiments.runtime.processes import end_with_parent
from experiments.runtime.progress import Reporter
from experiments.runtime.relay import RelayReporter, play_message
from experiments.store.store import NotFinite

POLL_SECONDS = 0.1  # between two looks for news
GRACE_SECONDS = 2.0  # for the other processes to end when one has failed
TRAINING = "experiments.stages.train"  # imports all that takes seconds


def launch_processes(
    work: Callable[..., None],
    world: int,
    report: Reporter,
    *args: object,
    node: Node | None = None,
    watch: Callable[[], object] | None = None,
) -> None:
    """`work(*args, report)` in `world` processes, in which Lightning finds its rank. `work` must be a
    function of a module, its arguments must pickle.

    node    among several: where it stands, and where all their processes meet
    watch   called again and again while they run; what it raises ends them

    UsageError, OSError and NotFinite are raised as in the process; another error ends all, and its trace is
    raised."""
    # a server without CUDA that has imported everything once makes the processes, by fork. It does not have
    # our sys.path on every Python, and passes over a module that it does not find
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([TRAINING, work.__module__])
    news = context.SimpleQueue()  # reporter messages of the first process, and errors of any
    if node is None:
        node = Node(0, 1, "127.0.0.1", find_free_network_port())
    ranks = multiprocessing.start_processes(
        _run_rank, (work, args, world, node, news), nprocs=world, join=False, start_method="forkserver"
    )
    assert ranks is not None  # with join=False there is a context to join
    try:
        while not ranks.join(timeout=POLL_SECONDS, grace_period=GRACE_SECONDS):
            pass_on_news(news, report)
            if watch is not None:
                watch()
        pass_on_news(news, report)
    except (ProcessExitedException, ProcessRaisedException):
        pass_on_news(news, report)  # the cause, where a process could tell it
        raise
    finally:
        for process in ranks.processes:
            process.kill()


def pass_on_news(news: multiprocessing.SimpleQueue, report: Reporter) -> None:
    """Tell what has come in; raise an error that has."""
    # `get` of an empty queue would wait for ever
    while not news.empty():
        message = news.get()
        if isinstance(message, Exception):
            raise message
        play_message(message, report)


def _run_rank(
    rank: int,
    work: Callable[..., None],
    args: tuple[object, ...],
    world: int,
    node: Node,
    news: multiprocessing.SimpleQueue,
) -> None:
    """One process: its environment as Lightning reads it, its share of the cores, its work."""
    # it is called in a thread, which alone sys.exit would end
    end_with_parent(lambda: os._exit(1))
    os.environ.update(LOCAL_RANK=str(rank), NODE_RANK=str(node.rank))
    os.environ.update(MASTER_ADDR=node.address, MASTER_PORT=str(node.port))
    # a torchrun that has started the sweep has a store, but not where these processes meet
    os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)
    torch.set_num_threads(max(1, torch.get_num_threads() // world))
    # all processes take the same steps: one of them tells of these
    report = RelayReporter(news.put) if rank == 0 and node.rank == 0 else Reporter()
    try:
        work(*args, report)
    except (UsageError, OSError, NotFinite) as error:
        news.put(error)
        sys.exit(1)
