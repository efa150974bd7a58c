"""The processes of one training on several devices. The sweep's own process starts them, passes on what they
tell, and waits; it holds the stage's lock and writes its result, so nothing else knows of them.

    sweep -> launch_processes(work, 8, report, ...) -> 8 x work(..., report)
"""

import os
import sys

import torch
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from torch import multiprocessing
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from compressors.errors import UsageError
from experiments.runtime.processes import end_with_parent
from experiments.runtime.progress import Reporter

POLL_SECONDS, GRACE_SECONDS = (
    0.1,
    2.0,
)  # seconds between looks for news, and for the others to end when one has failed


class QueueReporter(Reporter):
    """Passes on to the sweep's process what the first process of a training tells."""

    def __init__(self, news: multiprocessing.SimpleQueue):
        self.news = news

    def announce_steps(self, total: int, done: int = 0) -> None:
        self.news.put(("announce_steps", (total, done), {}))

    def advance_steps(self, n: int = 1, **fields: object) -> None:
        self.news.put(("advance_steps", (n,), fields))

    def write_note(self, text: str) -> None:
        self.news.put(("write_note", (text,), {}))


def launch_processes(work, world: int, report: Reporter, *args: object) -> None:
    """`work(*args, report)` in `world` processes, in which Lightning finds its rank. `work` must be a
    function of a module, its arguments must pickle.

    UsageError and OSError are raised as in the process; another error ends all, and its trace is raised."""
    # a server without CUDA that has imported everything once makes the processes, by fork
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["experiments.stages.train"])
    news, port = context.SimpleQueue(), find_free_network_port()
    ranks = multiprocessing.start_processes(
        _run_rank, (work, args, world, port, news), nprocs=world, join=False, start_method="forkserver"
    )
    try:
        while not ranks.join(timeout=POLL_SECONDS, grace_period=GRACE_SECONDS):
            pass_on_news(news, report)
        pass_on_news(news, report)
    except (ProcessExitedException, ProcessRaisedException):
        pass_on_news(news, report)  # the cause, if bad input or a full disk
        raise
    finally:
        for process in ranks.processes:
            process.kill()


def pass_on_news(news: multiprocessing.SimpleQueue, report: Reporter) -> None:
    """Tell what has come in; raise an error that has."""
    while not news.empty():
        message = news.get()
        if isinstance(message, Exception):
            raise message
        name, args, fields = message
        getattr(report, name)(*args, **fields)


def _run_rank(rank: int, work, args: tuple, world: int, port: int, news: multiprocessing.SimpleQueue) -> None:
    """One process."""
    end_with_parent(lambda: os._exit(1))
    os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(max(1, torch.get_num_threads() // world))
    try:
        work(*args, QueueReporter(news) if rank == 0 else Reporter())
    except (UsageError, OSError) as error:
        news.put(error)
        sys.exit(1)
