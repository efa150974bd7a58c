"""What a reporter in another process is told arrives as it was said."""

import pickle

import pytest

from experiments.runtime.processor import read_processor_name
from experiments.runtime.progress import Reporter
from experiments.runtime.relay import RelayReporter, play_message


class Recorder(Reporter):
    """Remembers every call."""

    def __init__(self):
        self.calls = []

    def begin_stage(self, label):
        self.calls.append(("begin_stage", label))

    def announce_steps(self, total, done=0):
        self.calls.append(("announce_steps", total, done))

    def advance_steps(self, n=1, **fields):
        self.calls.append(("advance_steps", n, fields))

    def write_note(self, text):
        self.calls.append(("write_note", text))

    def write_warning(self, text):
        self.calls.append(("write_warning", text))


def tell_everything(report: Reporter) -> None:
    report.begin_stage("pretrain 0123")
    report.announce_steps(10)
    report.announce_steps(10, done=3)
    report.advance_steps()
    report.advance_steps(2, loss=1.5, n_rows=4)
    report.write_note("a [note]")
    report.write_warning("careful")


def test_messages_say_what_was_told():
    """Through pickles, as a pipe or a queue sends them."""
    told, played = Recorder(), Recorder()
    tell_everything(told)
    pickles = []
    tell_everything(RelayReporter(lambda message: pickles.append(pickle.dumps(message))))
    for message in map(pickle.loads, pickles):
        play_message(message, played)
    assert played.calls == told.calls and len(told.calls) == 7


def test_what_is_no_message_is_refused():
    with pytest.raises(TypeError, match="'begin_stage' is no message of a reporter"):
        play_message("begin_stage", Reporter())


def test_the_processor_has_a_name(tmp_path, monkeypatch):
    assert read_processor_name()
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr("experiments.runtime.processor.PROCESSOR_FILE", path)
    assert read_processor_name()  # where there is no such file
    path.write_text("processor\t: 0\nmodel name\t: A CPU: fast\nmodel name\t: another\n")
    assert read_processor_name() == "A CPU: fast"
