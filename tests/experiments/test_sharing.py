import json
import shlex
from collections import Counter

import pytest
from fakes import FakeRunner, names, read_log

from compressors.key_value import parse_settings
from experiments import sharing
from experiments.runtime.progress import Reporter
from experiments.sweep import request

COST = {"data": 1.0, "features": 20.0, "pretrain": 300.0, "finetune": 4000.0, "evaluate": 50000.0}
SAP = ["compressor=sap,sap+embq", "seed=0", "blind=false"]


class Timed:
    """Fake stages that move a clock by a time of their kind."""

    def __init__(self, log):
        self.fake, self.now = FakeRunner(log), 0.0

    def __call__(self, kind):
        def run(*given, **named):
            self.now += COST[kind]
            self.fake(kind)(*given, **named)

        return run

    def clock(self):
        return self.now


def test_what_is_shared_is_counted_once(tmp_path):
    """sap and sap+embq agree up to stage 1; each alone computes data, features (twice: of either split) and
    stage 1 again."""
    asked = request.read_request(parse_settings([*names(tmp_path / "out"), *SAP]))
    timed = Timed(tmp_path / "log")
    saving = sharing.measure_sharing(asked, tmp_path, timed, Reporter(), timed.clock)
    runs = Counter(stage.kind for stage in asked.jobs[0][1].collect_stages().values())
    one = sum(COST[kind] * n for kind, n in runs.items())
    last = COST["finetune"] + COST["evaluate"]
    assert saving.one_by_one.total == saving.once.total == 2 * one
    assert saving.shared.total == one + last
    computed = Counter(line.split()[0] for line in read_log(tmp_path / "log"))  # with one cell to warm up
    assert computed == {kind: (5 if kind in ("finetune", "evaluate") else 4) * n for kind, n in runs.items()}
    assert not list(tmp_path.glob("alone-*"))


def test_a_cell_in_several_tables_counts_as_often_one_by_one(tmp_path):
    table = "title: one\nblocks: [{title: a, rows: [{label: sap, overrides: [compressor=sap]}]}]\n"
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text(table)
    tables = f"table={tmp_path}/one.yaml,{tmp_path}/two.yaml"
    asked = request.read_request(parse_settings([*names(tmp_path / "out"), tables, "seed=0", "blind=false"]))
    timed = Timed(tmp_path / "log")
    saving = sharing.measure_sharing(asked, tmp_path, timed, Reporter(), timed.clock)
    assert saving.one_by_one.total == 2 * saving.once.total == 2 * saving.shared.total > 0


def test_other_results_are_an_error(tmp_path):
    """Stages that see what was computed before them."""
    log = tmp_path / "log"
    fake = FakeRunner(log)

    def runner(kind):
        def run(config, inputs, out, report, **named):
            fake(kind)(config, inputs, out, report, **named)
            (out / "seen.txt").write_text(str(len(read_log(log))))

        return run

    asked = request.read_request(parse_settings([*names(tmp_path / "out"), *SAP]))
    with pytest.raises(sharing.ResultsDiffer, match="sap seed=0"):
        sharing.measure_sharing(asked, tmp_path, runner, Reporter())


def test_the_command_shows_and_writes(tmp_path, capsys):
    to = tmp_path / "new" / "sharing.json"
    given = [word for word in names(tmp_path / "out") if not word.startswith("out=")]
    given += [*SAP, f"to={to}"]
    assert sharing.main(given, FakeRunner(tmp_path / "log"), lambda _: None) == 0
    assert "what sharing stages saves" in capsys.readouterr().out
    found = json.loads(to.read_text())
    assert (found["cells"], found["rows"]) == (2, 2) and "compressor=sap,sap+embq" in found["command"]
    assert set(found["shared"]["stages"]) == {"data", "features", "pretrain", "finetune", "evaluate"}
    assert not (tmp_path / "out").exists()


def test_the_command_that_it_notes_can_be_typed_again():
    times = sharing.SharingTimes()
    asked = request.read_request(parse_settings(["compressor=sap", "seed=0"]))
    noted = json.loads(sharing.format_sharing_json(times, asked, ["table=mine.yaml", "rows=4 query tokens"]))
    assert shlex.split(noted["command"])[-2:] == ["table=mine.yaml", "rows=4 query tokens"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compressor=sep"], "unknown compressor 'sep'"),
        ([], "expected python -m experiments.sharing KEY=VALUE ... [to=FILE], found no cells"),
        (["compressor=sap", "launch.workers=2"], "launch.workers: cells are timed one by one"),
        (["compressor=avg_pool,sap", "sap.rate=5"], "sap: rate=5 does not divide the 12x12 patch grid"),
        (["compressor=sap", "--to", "a.json"], "--to: settings are spelled KEY=VALUE; write to=a.json"),
    ],
)
def test_bad_input_is_one_line(capsys, arguments, message):
    assert sharing.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}") and error.count("\n") == 1
