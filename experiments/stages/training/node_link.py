"""What the nodes of a sweep say to each other (`trainer.nodes`). The same command is started once on each.

Node 0 runs the sweep as ever and writes all that is written. The others wait for it, and start their share of
the processes of each training:

    node 0   meet_others            -> for each training: announce_launch -> launch_processes
    node k   hear_plan, answer_plan -> for each of these: wait_for_launch -> launch_processes

They speak through a store of torch.distributed, in small texts of JSON.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, NamedTuple

from lightning.fabric.plugins.environments.lightning import find_free_network_port
from torch.distributed import DistError

from compressors.errors import UsageError, shorten
from experiments.runtime.nodes import (
    HOW_TO_START,
    MEETING_SECONDS,
    Heartbeat,
    Node,
    locate_node,
    open_store,
)
from experiments.store.store import NotFinite

READY_SECONDS = 120  # for a node to start its share of a training
LAST_WORDS_SECONDS = 15  # for a node to tell how its share has ended, or that it has read of the end
POLL_SECONDS = 0.1
# of errors that a node's processes have because those of another one have ended
CONNECTION_SIGNS = ("Connection closed by peer", "Connection reset by peer", "NCCL", "SIGABRT")


class Launch(NamedTuple):
    """Processes that node 0 starts, and the others with it.

    number      of the launches before it
    stage       name of the stage that they train
    processes   on each node
    port        of node 0, where the processes meet
    """

    number: int
    stage: str
    processes: int
    port: int


class NodeFailed(Exception):
    """A training that runs on several nodes has failed on one of them, or one has gone."""


class NodeLink:
    """What the nodes of a sweep say to each other. `join` makes it."""

    def __init__(self, node: Node):
        self.node = node
        self.store = open_store(node)
        self.launches = 0  # so far
        self.others = [rank for rank in range(node.count) if rank != node.rank]
        self.gone: list[int] = []  # nodes that answer no more
        # node 0 looks after all, the others after node 0
        self.heartbeat = Heartbeat(self.store, node.rank, [0] if node.rank else self.others)

    def say(self, key: str, **content: object) -> None:
        """Leave a message for the others."""
        self.store.set(key, json.dumps(content))

    def hear(self, key: str, seconds: float) -> dict[str, Any] | None:
        """The message under a key, once it is there; None after so many seconds without it. UsageError where
        node 0 has gone."""
        end = time.monotonic() + seconds
        lost = f"trainer.nodes={self.node.count}: node 0 has ended without a word; see its output"
        while True:
            try:
                if self.store.check([key]):
                    content: dict[str, Any] = json.loads(self.store.get(key))
                    return content
                silent = self.heartbeat.find_silent()
            except (DistError, OSError) as error:
                raise UsageError(lost) from error
            if silent == 0:
                raise UsageError(lost)
            if silent is not None and silent not in self.gone:
                self.gone.append(silent)
            if time.monotonic() >= end:
                return None
            time.sleep(POLL_SECONDS)

    # ---- the meeting ----

    def meet_others(self, plan: dict[str, Any]) -> None:
        """Node 0: wait for all, and let them compare `plan` with theirs. UsageError, on all of them, for one
        that has not come or cannot work with it."""
        self.say("plan", **plan)
        end = time.monotonic() + MEETING_SECONDS
        for rank in self.others:
            fault = self.hear_answer(rank, end)
            if fault:
                raise UsageError(f"trainer.nodes={self.node.count}: {fault}")  # `leave` tells the others
        self.say("agreed")

    def hear_answer(self, rank: int, end: float) -> str:
        """What a node has to say of the plan, nothing if all is well."""
        while time.monotonic() < end:
            answer = self.hear(f"answer/{rank}", POLL_SECONDS)
            if answer is not None:
                return str(answer["fault"])
            if self.hear(f"left/{rank}", 0.0) is not None:
                return f"node {rank} has ended; see its output"
        return f"node {rank} has not come in {MEETING_SECONDS} seconds; {HOW_TO_START}"

    def hear_plan(self) -> dict[str, Any]:
        """Another node: node 0's plan. UsageError where there is none."""
        plan = self.wait_for("plan", MEETING_SECONDS)
        if plan is None:
            raise UsageError(
                f"trainer.nodes={self.node.count}: node 0 has not come in {MEETING_SECONDS} seconds"
            )
        return plan

    def answer_plan(self, fault: str) -> None:
        """Another node: what it has to say of node 0's plan, nothing if all is well. UsageError where the
        sweep cannot begin."""
        self.say(f"answer/{self.node.rank}", fault=fault)
        self.wait_for("agreed")

    # ---- trainings ----

    def announce_launch(self, stage: str, processes: int) -> Launch:
        """Node 0: tell the others to start their processes of a stage."""
        self.gone += [rank for rank in self.others if self.hear(f"left/{rank}", 0.0) is not None]
        if self.gone:
            raise UsageError(
                f"trainer.nodes={self.node.count}: node {self.gone[0]} has gone; start the command again on "
                "all nodes, it goes on where it stopped"
            )
        launch = Launch(self.launches, stage, processes, find_free_network_port())
        self.launches += 1
        self.say(f"launch/{launch.number}", **launch._asdict())
        return launch

    def wait_for_launch(self) -> Launch | None:
        """Another node: what is to be started next; None at the end of the sweep. UsageError where node 0 has
        given up."""
        message = self.wait_for(f"launch/{self.launches}")
        if message is None:
            return None
        self.launches += 1
        return Launch(**message)

    def wait_for(self, key: str, seconds: float = float("inf")) -> dict[str, Any] | None:
        """Another node: a message of node 0; None if its sweep has ended, or after so many seconds.
        UsageError where it has given up."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            message = self.hear(key, 0.0)
            if message is not None:
                return message
            ended = self.hear("ended", POLL_SECONDS)
            if ended is not None:
                if ended["fault"]:
                    raise UsageError(ended["fault"])
                return None
        return None

    def say_ready(self, launch: Launch) -> None:
        """Another node: it has all that it needs for its share."""
        self.say(f"ready/{launch.number}/{self.node.rank}")

    def await_ready(self, launch: Launch) -> None:
        """Node 0: wait until all others have what they need. NodeFailed where one has not."""
        end = time.monotonic() + READY_SECONDS
        for rank in self.others:
            while self.hear(f"ready/{launch.number}/{rank}", POLL_SECONDS) is None:
                self.check_fault(launch)
                if time.monotonic() > end:
                    raise NodeFailed(f"node {rank} does not answer")

    def place_processes(self, launch: Launch) -> Node:
        """Where the processes of a training on this node meet those of the others."""
        return replace(self.node, port=launch.port)

    def check_fault(self, launch: Launch) -> None:
        """NodeFailed where a training has failed on another node, or a node has gone."""
        if self.hear(f"fault/{launch.number}", 0.0) is not None or self.gone:
            raise NodeFailed("another node has failed")

    @contextmanager
    def sharing(self, launch: Launch) -> Iterator[None]:
        """This node's share of a training. What ends it here ends it on the others; what ends it on one of
        them is raised: UsageError and NotFinite as there, anything else as NodeFailed. Errors that a process
        of this node can tell itself are raised as they are."""
        try:
            yield
        except BaseException as error:
            self.tell_end(launch, error)
            if isinstance(error, (UsageError, OSError, NotFinite)) or not isinstance(error, Exception):
                raise
            raise self.find_cause(launch, error) from error
        self.tell_end(launch, None)

    def tell_end(self, launch: Launch, error: BaseException | None) -> None:
        """Say how this node's share of a training has ended."""
        kind = "done"
        text = ""
        if isinstance(error, NodeFailed):
            kind = "follows"  # another node has the cause
        elif error is not None:
            kind = type(error).__name__
            text = describe_error(error)
        with suppress(DistError, OSError):  # node 0 may have gone
            self.say(f"end/{launch.number}/{self.node.rank}", kind=kind, text=text)
            if error is not None:
                self.say(f"fault/{launch.number}")

    def find_cause(self, launch: Launch, own: Exception) -> Exception:
        """Why a training has failed: what all nodes say of it."""
        causes: dict[int, str] = {}
        if not isinstance(own, NodeFailed):
            causes[self.node.rank] = describe_error(own)
        end = time.monotonic() + LAST_WORDS_SECONDS
        for rank in self.others:
            words = self.hear(f"end/{launch.number}/{rank}", max(0.0, end - time.monotonic()))
            if words is None:
                self.gone.append(rank)
                causes[rank] = "has gone without a word"
            elif words["kind"] == UsageError.__name__:
                return UsageError(f"node {rank}: {words['text']}")
            elif words["kind"] == NotFinite.__name__:
                return NotFinite(words["text"])
            elif words["text"]:
                causes[rank] = words["text"]
        first_causes = {rank: text for rank, text in causes.items() if not is_lost_connection(text)}
        lines = [f"node {rank}: {text}" for rank, text in (first_causes or causes).items()]
        return NodeFailed("; ".join(lines))

    def leave(self, fault: str = "") -> None:
        """The sweep's end. Node 0 has the store, and waits until all have read it."""
        self.heartbeat.stop()
        with suppress(DistError, OSError, UsageError):
            if self.node.rank:
                self.say(f"left/{self.node.rank}")
                return
            self.say("ended", fault=fault)
            end = time.monotonic() + LAST_WORDS_SECONDS
            for rank in self.others:
                if rank not in self.gone:
                    self.hear(f"left/{rank}", max(0.0, end - time.monotonic()))


def describe_error(error: BaseException) -> str:
    """The last line of an error: of a process that has failed, its message is a trace."""
    if isinstance(error, UsageError):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    lines = str(error).strip().splitlines() or [""]
    return shorten(lines[-1] or type(error).__name__)


def is_lost_connection(text: str) -> bool:
    """Whether an error says no more than that other processes have ended."""
    return any(sign in text for sign in CONNECTION_SIGNS)


_links: list[NodeLink] = []  # of the sweep that this process runs


@contextmanager
def join(count: int) -> Iterator[NodeLink]:
    """The link to the other nodes of a sweep, while it runs; what ends it on node 0 ends it on the others.
    UsageError where this node cannot take part."""
    link = NodeLink(locate_node(count))
    _links.append(link)
    fault = ""
    try:
        yield link
    except BaseException as error:
        fault = describe_error(error)
        if not isinstance(error, UsageError):
            fault = f"node 0 has ended: {fault}"
        raise
    finally:
        _links.remove(link)
        link.leave(fault)


def require_link(count: int) -> NodeLink:
    """The link of the sweep that this process runs. UsageError in a process that runs none."""
    if not _links:
        raise UsageError(f"trainer.nodes={count}: only a sweep trains on several; take trainer.nodes=1")
    return _links[-1]
