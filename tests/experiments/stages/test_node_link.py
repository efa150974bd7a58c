"""What nodes say to each other: a meeting, trainings, faults, and the end."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from lightning.fabric.plugins.environments.lightning import find_free_network_port

from compressors.errors import UsageError
from experiments.runtime import nodes
from experiments.runtime.nodes import Node
from experiments.runtime.progress import Reporter
from experiments.stages import follow
from experiments.stages.training import node_link
from experiments.stages.training.node_link import NodeFailed, NodeLink
from experiments.stages.training.ranks import launch_processes
from experiments.store.store import NotFinite

PLAN = {"versions": {"torch": "2.1"}, "stages": "abc", "devices": [["trainer.devices=auto", "8 x cuda"]]}


@pytest.fixture
def links(monkeypatch):
    monkeypatch.setattr(node_link, "LAST_WORDS_SECONDS", 2)
    port = find_free_network_port()
    both = [NodeLink(Node(rank, 2, "127.0.0.1", port)) for rank in range(2)]
    yield both
    for link in both:
        link.heartbeat.stop()


@pytest.fixture
def together():
    """Calls a function for each node at once; results, or what was raised."""

    def call(*functions):
        with ThreadPoolExecutor(len(functions)) as pool:
            futures = [pool.submit(function) for function in functions]
            return [future.exception() or future.result() for future in futures]

    return call


def test_nodes_meet_train_and_end(links, together):
    first, second = links

    def lead():
        first.meet_others(PLAN)
        launch = first.announce_launch("finetune/abc", 8)
        with first.sharing(launch):
            first.await_ready(launch)
        first.leave()
        return launch

    def train_along():
        fault = follow.find_difference(second.hear_plan(), PLAN, 1)
        second.answer_plan(fault)
        launch = second.wait_for_launch()
        with second.sharing(launch):
            second.say_ready(launch)
        assert second.wait_for_launch() is None
        second.leave()
        return launch

    announced, heard = together(lead, train_along)
    assert announced == heard
    assert (heard.stage, heard.processes) == ("finetune/abc", 8)
    assert second.place_processes(heard) == Node(1, 2, "127.0.0.1", heard.port)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({**PLAN, "versions": {"torch": "2.2"}}, "torch is 2.1 on node 0, 2.2 on node 1"),
        ({**PLAN, "stages": "abd"}, "node 1 plans other stages than node 0"),
        (
            {**PLAN, "devices": [["trainer.devices=auto", "1 x cpu"]]},
            "node 1 has 1 x cpu, node 0 has 8 x cuda",
        ),
    ],
)
def test_nodes_that_differ_are_told_so_on_both(links, together, own, message):
    first, second = links

    def lead():
        try:
            first.meet_others(PLAN)
        except UsageError as error:
            first.leave(str(error))
            raise

    def answer():
        try:
            second.answer_plan(follow.find_difference(second.hear_plan(), own, 1))
        finally:
            second.leave()

    for error in together(lead, answer):
        assert isinstance(error, UsageError)
        assert str(error).startswith(
            f"trainer.nodes=2: {message}" if own["devices"] == PLAN["devices"] else ""
        )
        assert message in str(error)


def test_a_node_that_does_not_come_or_has_ended_is_named(links, monkeypatch):
    first, second = links
    monkeypatch.setattr(node_link, "MEETING_SECONDS", 0.3)
    with pytest.raises(UsageError, match="node 1 has not come in 0.3 seconds; start the command once on"):
        first.meet_others(PLAN)
    second.leave()
    with pytest.raises(UsageError, match="node 1 has ended; see its output"):
        first.meet_others(PLAN)


@pytest.mark.parametrize(
    ("raised", "kind", "message"),
    [
        (UsageError("no file a.json"), UsageError, "node 1: no file a.json"),
        (NotFinite("step 3: nan"), NotFinite, "step 3: nan"),
        (RuntimeError("trace\nOutOfMemoryError: 80 GiB"), NodeFailed, "node 1: OutOfMemoryError: 80 GiB"),
        (KeyboardInterrupt(), NodeFailed, "node 1: interrupted"),
    ],
)
def test_what_ends_a_training_on_one_node_ends_it_on_all(links, raised, kind, message):
    first, second = links
    launch = first.announce_launch("finetune/abc", 1)

    def lead():
        with first.sharing(launch):
            wait_for_fault(first, launch)

    def fail():
        with second.sharing(launch):
            raise raised

    with ThreadPoolExecutor() as pool:
        leading = pool.submit(lead)
        with pytest.raises((type(raised), NodeFailed)):
            fail()
        error = leading.exception()
    assert type(error) is kind
    assert str(error) == message


def test_a_node_that_has_gone_is_not_waited_for_again(links):
    first, _ = links
    launch = first.announce_launch("finetune/abc", 1)
    with (
        pytest.raises(NodeFailed, match="^node 0: OSError: x; node 1: has gone without a word$"),
        first.sharing(launch),
    ):
        raise RuntimeError("OSError: x")
    with pytest.raises(UsageError, match="node 1 has gone; start the command again on all nodes"):
        first.announce_launch("finetune/abd", 1)


def test_a_node_that_gives_no_sign_has_gone(monkeypatch):
    monkeypatch.setattr(nodes, "SILENCE_SECONDS", 1.0)
    monkeypatch.setattr(nodes, "BEAT_SECONDS", 0.1)
    port = find_free_network_port()
    first, second, third = [NodeLink(Node(rank, 3, "127.0.0.1", port)) for rank in range(3)]
    launch = first.announce_launch("finetune/abc", 1)
    end = time.monotonic() + 2
    while time.monotonic() < end:
        first.check_fault(launch)
        assert second.wait_for("nothing", 0.1) is None
    third.heartbeat.stop()
    with pytest.raises(NodeFailed):
        wait_for_fault(first, launch)
    assert first.gone == [2]
    first.heartbeat.stop()
    with pytest.raises(UsageError, match="node 0 has ended without a word"):
        second.wait_for_launch() and second.wait_for_launch()
    second.heartbeat.stop()


def wait_for_fault(link, launch):
    while True:
        link.check_fault(launch)
        time.sleep(0.05)


def test_lost_connections_are_no_cause_beside_another_one(links):
    first, second = links
    launch = first.announce_launch("finetune/abc", 1)
    second.tell_end(launch, RuntimeError("OutOfMemoryError: 80 GiB"))
    with pytest.raises(NodeFailed, match="^node 1: OutOfMemoryError: 80 GiB$"), first.sharing(launch):
        raise RuntimeError("[gloo] Connection closed by peer")


def dies_on_the_second_node(report):  # noqa: ARG001
    if os.environ["NODE_RANK"] == "1":
        raise RuntimeError("no memory left")
    torch.distributed.TCPStore("127.0.0.1", 0, is_master=True).wait(["what never comes"])


@pytest.mark.slow
def test_processes_of_a_node_end_with_those_of_another(links, together):
    launch = links[0].announce_launch("finetune/abc", 1)

    def start(link):
        with link.sharing(launch):
            launch_processes(
                dies_on_the_second_node,
                1,
                Reporter(),
                node=link.place_processes(launch),
                watch=lambda: link.check_fault(launch),
            )

    for error in together(*(lambda link=link: start(link) for link in links)):
        assert isinstance(error, NodeFailed)
        assert str(error) == "node 1: RuntimeError: no memory left"
