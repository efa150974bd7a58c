"""The command that counts the project's tables anew; the counts themselves are in test_spec.py."""

import json

from ablations.costs import prefill


def test_every_row_of_the_project_is_counted_once(tmp_path, monkeypatch):
    counted = []
    monkeypatch.setattr(prefill, "count_prefill", lambda config: counted.append(config) or len(counted))
    path = tmp_path / "new" / "prefill.json"
    assert prefill.main([f"to={path}"]) == 0
    counts = json.loads(path.read_text())
    assert counts.keys() == prefill.read_flop_counts(prefill.SHIPPED_COUNTS).keys()
    assert len(counted) == len(counts) and any(config.blind for config in counted)


def test_counts_are_kept_beside_the_report_unless_they_are_shipped(tmp_path, monkeypatch):
    path = tmp_path / "prefill.json"
    from experiments.config.cells import make_cells

    shipped, wider = (make_cells({"embq.dim": [dim], "compressor": ["sap+embq"]})[0] for dim in ("64", "96"))
    monkeypatch.setattr(prefill, "count_prefill", lambda config: 7)  # noqa: ARG005
    flops = prefill.look_up_counts([shipped.config, wider.config], path)
    assert flops[0] > 1e8 and flops[1] == 7
    assert prefill.read_flop_counts(path) == {prefill.digest_prefill(wider.config): 7}
    path.write_text("{")
    assert prefill.read_flop_counts(path) == {}


def test_bad_input(capsys):
    assert prefill.main(["out=x"]) == 2
    assert "out=x: no setting of this command" in capsys.readouterr().err
