"""The command, on cells that nobody trained: what it prints, writes, and makes again from what it wrote."""

import csv
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from made_cells import fill
from rich.console import Console

from ablations import finished, report, report_files
from ablations.claims.verdicts import judge_claims
from ablations.outcomes import ReportRow, ReportTable
from ablations.writing import screen, write
from ablations.writing.grids import scores_grid
from compressors.key_value import parse_settings
from experiments.store import results
from experiments.sweep import request

pytestmark = pytest.mark.usefixtures("without_plots")


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """Tables 3 and 5 at seeds 0 to 2; one cell and one row are missing."""
    root = tmp_path_factory.mktemp("runs")
    fill(
        root,
        ["3", "5"],
        lambda label, seed: label == "random" or (label, seed) == ("16 queries", 1),
        seed="0,1,2",
    )
    return root


@pytest.fixture(scope="module")
def made(out, tmp_path_factory):
    """A report of it."""
    folder = tmp_path_factory.mktemp("report")
    assert report.main(["table=3,5", f"out={out}", f"to={folder}"]) == 0
    return folder


def rows_of(path, *keys):
    with open(path) as file:
        return {tuple(row[key] for key in keys): row for row in csv.DictReader(file)}


@pytest.mark.usefixtures("plots")
@pytest.mark.slow
def test_prints_the_tables(out, made, capsys):
    assert report.main(["table=3,5", f"out={out}", f"to={made}"]) == 0
    printed, err = capsys.readouterr()
    assert err == "" and (made / "report.md").read_text() in printed
    assert "## Table 3: compression" in printed and "## Table 5: fusion" in printed
    assert "Table 4" not in printed


def test_means_and_intervals(out, made):
    found = rows_of(made / "scores.csv", "table", "row")
    right = [
        [json.loads(line)["correct"] for line in path.read_text().splitlines()]
        for path in sorted(out.glob("cells/avg_pool_seed=*/predictions.jsonl"))
    ]
    means = 100 * np.array(right).mean(1)
    row = found["3", "avg_pool"]
    assert row["seeds"] == "3" and row["questions"] == "240"
    assert float(row["overall"]) == pytest.approx(means.mean(), abs=1e-3)
    assert float(row["overall_pm"]) == pytest.approx(4.3027 * means.std(ddof=1) / 3**0.5, abs=1e-3)
    assert row["visual_tokens"] == "16" and int(row["prefill_flops"]) > 5e8
    assert found["3", "1 query"]["ours"] == "our choice of number"


def test_rows_of_one_cell_are_the_same(made):
    found = rows_of(made / "scores.csv", "table", "row")
    assert len({found[key]["overall"] for key in (("3", "sap+embq"), ("3", "dot token"), ("5", "add"))}) == 1


def test_a_report_remembers_the_looks_before_it(out, made, tmp_path):
    """Of an earlier report, and of one that stood in its folder, whatever is in between."""
    folder = tmp_path / "report"
    first = ["table=5", f"out={out}", f"to={folder}"]
    assert report.main([*first, "seed=0,1"]) == 0
    looks = rows_of(folder / "claims.csv", "row", "other", "looks")
    assert {key[2] for key in looks} == {""}
    assert report.main(first) == 0
    assert report.main(first) == 0  # again with as many seeds: no other look
    for path in (folder, tmp_path / "again"):
        assert report.main(["table=3,5", f"out={out}", f"to={path}", f"earlier={folder}"]) == 0
        claims = json.loads((path / "report.json").read_text())["tables"][1]["claims"]
        assert [claim["looks"] for claim in claims] == [[[2] * len(claim["pairs"])] for claim in claims]
        lines = rows_of(path / "claims.csv", "table", "row", "other", "looks", "corrected")
        assert {key[3] for key in lines if key[0] == "5" and not key[1]} == {"2"}
        assert all(key[4] for key in lines if key[3])
    assert report.main([*first, "seed=0,1"]) == 0  # fewer: the look with three is kept, and came after
    [claim] = json.loads((folder / "report.json").read_text())["tables"][0]["claims"]
    assert claim["looks"] == [[3] * len(claim["pairs"])]
    lines = rows_of(folder / "claims.csv", "looks", "corrected")
    assert {key for key in lines if key[0]} == {("3", "")}
    assert '"looks": []' in (made / "report.json").read_text()


def test_what_is_missing_is_said_and_the_rest_is_there(made):
    words = (made / "report.md").read_text()
    assert "Missing: random (seed 0, 1, 2); 16 queries (seed 1); python -m experiments.sweep table=3" in words
    assert re.search(r"\| random† +\| +\| missing \|", words)
    claims = rows_of(made / "claims.csv", "claim", "row", "other")
    assert claims["9 queries are enough", "9 queries", "16 queries"]["seeds"] == "2"
    assert claims["9 queries are enough", "9 queries", "25 queries"]["seeds"] == "3"


def test_disagreement_is_said_plainly(made):
    """sap+embq is twenty points below uncompressed in truth."""
    words = (made / "report.md").read_text()
    assert "These runs contradict:" in words
    claim = '"SAP+EmbQ loses only marginally against the uncompressed model" (FlashSloth, Table 3)'
    assert f"{claim} does not hold here" in words
    verdicts = {
        key[0]: row["verdict"]
        for key, row in rows_of(made / "claims.csv", "claim", "row").items()
        if not key[1]
    }
    assert verdicts["Average pooling loses clearly against the uncompressed model"] == "holds"
    assert verdicts["SAP+EmbQ loses only marginally against the uncompressed model"] == "does not hold"
    assert verdicts["... on perception (MME, MMB; here attribute and recognition)"] == "no results"


def test_published_numbers_stand_apart(made):
    words = (made / "report.md").read_text()
    (line,) = [line for line in words.splitlines() if "86.3" in line]
    assert line.startswith("Published, not ours: FlashSloth as released")
    assert "86.3" not in (made / "scores.csv").read_text()


def test_nothing_is_invented(made):
    words = (made / "report.md").read_text()
    assert "Not measured: TTFT, peak memory; measure=true measures them." in words and "| TTFT" not in words


def test_times_are_measured_when_asked_and_kept(tmp_path):
    root, folder = tmp_path / "runs", tmp_path / "report"
    fill(root, ["5"], seed="0")
    asked = ["table=5", f"out={root}", f"to={folder}"]
    assert report.main([*asked, "measure=true"]) == 0
    first = rows_of(folder / "scores.csv", "row")["add",]
    assert 0 < float(first["ttft_ms_low"]) <= float(first["ttft_ms"]) <= float(first["ttft_ms_high"])
    assert float(first["peak_memory_mib"]) > 5  # the weights alone are
    assert report.main(asked) == 0
    assert rows_of(folder / "scores.csv", "row")["add",] == first
    words = (folder / "report.md").read_text()
    assert "| TTFT ms |" in words and "TTFT and peak memory: " in words and "Not measured" not in words
    (folder / "measured.json").write_text("{")
    assert report.main(asked) == 0
    assert not rows_of(folder / "scores.csv", "row")["add",].get("ttft_ms")


def test_measured_columns_are_shown():
    row = ReportRow("", "sap", "", {0: np.array([True])}, [], {"visual_tokens": 16, "ttft_ms": 12.3})
    grid = scores_grid.make_scores_grid(
        ReportTable("x", "x", "", (), [row], np.array(["a#0"]), np.array(["all"]))
    )
    assert grid.header == ["", "seeds", "overall", "visual tokens", "TTFT ms"]
    assert grid.lines[0][1] == ["sap", "1", "100.0", "16", "12.3"]


@pytest.mark.usefixtures("plots")
def test_the_report_again_without_the_cells(made, tmp_path, capsys):
    assert report.main([f"results={made}", f"to={tmp_path}"]) == 0
    assert "Table 3" in capsys.readouterr().out
    names = {path.relative_to(made) for path in made.rglob("*") if path.is_file()}
    assert {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()} == names
    assert "plots/table3-pareto.svg" in map(str, names) and "outcomes/table5.npz" in map(str, names)
    assert all((made / name).read_bytes() == (tmp_path / name).read_bytes() for name in names)


def test_outcomes_are_small_and_whole(out, made):
    table = report_files.load_report(made).tables[0]
    right = {row.label: row.outcomes for row in table.rows}["sap"]
    (path,) = out.glob("cells/sap_seed=1-*/predictions.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert right[1].tolist() == [row["correct"] for row in rows]
    assert table.ids.tolist() == [row["id"] for row in rows]
    assert len(set(table.picture_numbers)) == 60
    assert (made / "outcomes" / "table3.npz").stat().st_size < path.stat().st_size / 2


def remove_digests(folder: Path) -> None:
    """A report as earlier versions wrote it."""
    content = json.loads((folder / "report.json").read_text())
    for entry in content["tables"]:
        del entry["outcomes_sha256"]
    (folder / "report.json").write_text(json.dumps(content))


def test_a_report_without_some_of_its_outcomes_is_refused(made, tmp_path, capsys):
    shutil.copytree(made, tmp_path / "damaged")
    path = tmp_path / "damaged" / "outcomes" / "table5.npz"
    with np.load(path) as arrays:
        fewer = {**arrays, "right": arrays["right"][:-1]}
    np.savez_compressed(path, **fewer)
    assert report.main([f"results={tmp_path / 'damaged'}"]) == 2
    err = capsys.readouterr().err
    assert f"{path}: is damaged or of another report" in err and err.count("\n") == 1
    remove_digests(tmp_path / "damaged")
    assert report.main([f"results={tmp_path / 'damaged'}"]) == 2
    err = capsys.readouterr().err
    assert "ablations.report` wrote (ValueError: outcomes of" in err and err.count("\n") == 1


def test_outcomes_of_another_report_are_refused(made, tmp_path, capsys):
    shutil.copytree(made, tmp_path / "swapped")
    for name in ("table3.npz", "table5.npz"):
        path = tmp_path / "swapped" / "outcomes" / name
        with np.load(path) as arrays:
            np.savez_compressed(path, **{**arrays, "right": ~arrays["right"]})
    assert report.main([f"results={tmp_path / 'swapped'}"]) == 2
    err = capsys.readouterr().err
    assert "table3.npz: is damaged or of another report, report.json has another digest" in err
    assert err.count("\n") == 1


def test_pictures_are_whole(made):
    names = sorted(path.stem for path in (made / "plots").glob("*.svg"))
    assert names == ["claims", "table3-families", "table3-gain", "table3-pareto", "table5-families"]
    for ending, start in (("pdf", b"%PDF"), ("png", b"\x89PNG")):
        files = sorted((made / "plots").glob(f"*.{ending}"))
        assert [path.stem for path in files] == names
        assert all(path.read_bytes().startswith(start) for path in files)
    for path in (made / "plots").glob("*.svg"):
        assert ElementTree.parse(path).getroot().tag.endswith("svg")


def test_the_page_needs_nothing_else(made):
    words = (made / "report.html").read_text()
    assert words.count("<svg") == 5 and words.count("<h2>") == 6
    assert "<h2>Table 3: what EmbQ adds</h2>" in words
    for text in (words, (made / "report.md").read_text()):
        assert "The claims and their intervals; green holds" in text
        assert "Table 3: accuracy by family of questions; orange with query tokens" in text
    assert words.index("Table 5: fusion") < words.index("<h2>Claims</h2>")  # accuracy first
    assert not re.search(r'(src|href)="(?!#)', re.sub(r'xlink:href="#', "", words).replace("xmlns", ""))
    ids = re.findall(r'id="([^"]+)"', words)
    assert len(set(ids)) == len(ids)
    assert set(re.findall(r'"#([^"]+)"', words)) <= set(ids)


def test_latex(made):
    words = (made / "report.tex").read_text()
    assert words.count(r"\begin{longtable}") == words.count(r"\end{longtable}") == 5
    # the head of the first page, and that of the others
    assert words.count(r"\toprule") == 10 and words.count(r"\bottomrule") == 5 and "avg\\_pool" in words
    tables = re.findall(r"\\begin\{longtable\}\{@\{\}([^\n]*)@\{\}\}\n(.*?)\\end\{longtable\}", words, re.S)
    assert len(tables) == 5
    for kinds, body in tables:
        columns = len(re.sub(r">\{[^}]*\}|\{[^}]*\}", "", kinds))
        rows = [line for line in body.splitlines() if "&" in line]
        assert {len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows} == {columns}
    assert words.isascii() and words.count(r"\shortstack[r]{visual\\tokens}") == 4


@pytest.mark.parametrize("width", [80, 200])
def test_on_a_terminal(made, width):
    kept = report_files.load_report(made)
    console = Console(width=width, force_terminal=True, record=True, file=io.StringIO())
    for table in kept.tables:
        found = judge_claims(
            table.claims, {r.label: r.outcomes for r in table.rows}, table.families, table.picture_numbers
        )
        for grid in write.make_table_grids(kept, table, found).values():
            console.print(*screen.render_screen_tables(grid, console.width))
    words = console.export_text()
    assert max(map(len, words.splitlines())) <= width
    assert words.count("uncompressed") >= 2 and words.count("±") > 12  # numbers are never cut


def test_all_seeds_there_by_default(out, tmp_path):
    assert report.main(["table=5", f"out={out}", f"to={tmp_path}"]) == 0
    assert rows_of(tmp_path / "scores.csv", "row")["gated",]["seeds"] == "3"
    assert report.main(["table=5", f"out={out}", f"to={tmp_path}", "seed=2"]) == 0
    assert rows_of(tmp_path / "scores.csv", "row")["gated",]["seeds"] == "1"
    assert "one seed" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize("harm", ["cut", "same size", "note of another", "note without seconds"])
def test_a_damaged_cell_is_named_and_missing(tmp_path, capsys, harm):
    root = tmp_path / "runs"
    fill(root, ["5"], seed="0")
    folder, other = list(root.glob("evaluate/*"))[:2]
    path = folder / "predictions.jsonl"
    if harm == "cut":
        path.write_text(path.read_text()[:-50])
    elif harm == "same size":
        path.write_text(path.read_text().replace('"correct": true', '"correct": null', 1))
    elif harm == "note of another":
        shutil.copytree(other, folder, dirs_exist_ok=True)
    else:
        note = json.loads((folder / "done.json").read_text())
        (folder / "done.json").write_text(json.dumps({**note, "seconds": "long"}))
    assert report.main(["table=5", f"out={root}"]) == 0
    assert "Missing: " in (root / "report" / "report.md").read_text()
    assert capsys.readouterr().err.count(f"warning: {folder} is damaged (") == 1


def test_a_table_of_one_s_own(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "rows:\n- {label: small, overrides: [compressor=sap]}\n"
        "- {label: all, overrides: [compressor=identity]}\n"
        "claims:\n- {text: more is better, source: me, better: {row: all, than: small}}\n"
    )
    fill(tmp_path / "runs", [str(path)], seed="0,1")
    assert report.main([f"table={path}", f"out={tmp_path / 'runs'}"]) == 0
    words = (tmp_path / "runs" / "report" / "report.md").read_text()
    assert "## mine" in words and "| more is better | all &gt; small |" in words


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table=9"], "table=9"),
        (["sedd=0"], "unknown setting 'sedd'; did you mean 'seed'"),
        (["table=3", "preset=tiny,small"], "preset=tiny,small: a report takes one value"),
        (["to=a,b"], "to=a,b: takes one value"),
        (["out=no/where"], "out=no/where: no such directory; python -m experiments.sweep out=no/where"),
        (["table=all", "out=no/where"], "no such directory; python -m experiments.sweep table=3,4,5,6"),
        (["results=x", "baseline=y"], "baseline: cells are not looked at with results=x"),
        (["results=no/where"], "results=no/where: no no/where/report.json"),
        (["results=x", "seed=1"], "seed: cells are not looked at with results=x"),
        (["results=x", "earlier=y"], "earlier: cells are not looked at with results=x"),
        (["earlier=no/where"], "earlier=no/where: no no/where/report.json"),
        (["--tabel"], "--tabel: no such flag; settings are spelled KEY=VALUE"),
        (["--to", "x"], "--to: settings are spelled KEY=VALUE; write to=x"),
    ],
)
def test_bad_input(arguments, message, capsys):
    assert report.main(arguments) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_nothing_finished(tmp_path, capsys):
    assert report.main(["table=all", f"out={tmp_path}"]) == 2
    said = "no cell of table 3,4,5,6 has finished there; run python -m experiments.sweep"
    assert said in capsys.readouterr().err


def test_help_is_quick():
    """Nothing heavy is imported for it."""
    code = (
        "import sys; from ablations import report; report.main(['--help']); "
        "sys.exit(any(m in sys.modules for m in ('torch', 'scipy', 'numpy', 'matplotlib')))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_a_report_does_not_import_torch(made, tmp_path):
    code = (
        f"import sys; from ablations import report; "
        f"code = report.main(['results={made}', 'to={tmp_path}']); "
        "sys.exit(code or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
    assert (tmp_path / "report.md").is_file()


def test_what_is_missing_can_be_run_as_it_is_told(tmp_path):
    path = tmp_path / "my own.yaml"
    path.write_text(
        "rows:\n- {label: a, overrides: [compressor=sap]}\n- {label: b, overrides: [compressor=dct]}\n"
    )
    root = tmp_path / "runs"
    fill(root, [str(path)], lambda label, seed: (label, seed) == ("b", 1), seed="0,1", **{"sap.rate": "3"})
    assert report.main([f"table={path}", f"out={root}", "sap.rate=3"]) == 0
    (told,) = re.findall(
        "Missing: b .seed 1.; python -m experiments.sweep (.*) runs them",
        (root / "report" / "report.md").read_text(),
    )
    asked = request.read_request(parse_settings([*shlex.split(told), "blind=false"]))
    assert [(cell.label, cell.config.seed, cell.config.knobs("sap")) for cell, _ in asked.jobs] == [
        ("a", 0, {"rate": 3}),
        ("a", 1, {"rate": 3}),
        ("b", 0, {}),
        ("b", 1, {}),
    ]


@pytest.mark.usefixtures("plots")
def test_labels_of_any_signs(tmp_path):
    """A formula that is none, what LaTeX would read as an argument, what Markdown would read as a cell."""
    labels = ["rate $r^{$", "[2, 4] layers", "*starred", "a|b", "100 % & more_"]
    path = tmp_path / "signs.yaml"
    rows = "".join(
        f"- {{label: '{label}', overrides: [compressor=sap, sap.rate={rate}]}}\n"
        for label, rate in zip(labels, (1, 2, 3, 4, 6))
    )
    path.write_text(
        f"rows:\n{rows}claims:\n- {{text: 'cost: $5', source: me, better: "
        "{row: 'rate $r^{$', than: 'a|b'}}\n"
    )
    root = tmp_path / "runs"
    fill(root, [str(path)], seed="0,1")
    assert report.main([f"table={path}", f"out={root}", "measure=false"]) == 0
    folder = root / "report"
    lines = [line for line in (folder / "report.md").read_text().splitlines() if "layers |" in line]
    assert lines and all("[2, 4] layers" in line for line in lines)
    tex = shutil.which("pdflatex") or shutil.which("tectonic")
    if tex:
        done = subprocess.run(
            [tex, "-halt-on-error", "report.tex"], cwd=folder, capture_output=True, input=b"", timeout=60
        )
        assert done.returncode == 0, done.stdout[-2000:]


def test_questions_of_a_picture_are_drawn_together(tmp_path):
    """Also where every question is a record of its own, as in POPE."""
    rows = [
        {
            "id": f"{i}#0",
            "images": [f"{i // 4}.png"],
            "family": "all",
            "question": "?",
            "answer": "yes",
            "prediction": "yes",
            "correct": True,
        }
        for i in range(12)
    ]
    rows += [
        {
            "id": f"text-{i // 2}#{i % 2}",
            "images": [],
            "family": "all",
            "question": "?",
            "answer": "yes",
            "prediction": "yes",
            "correct": True,
        }
        for i in range(4)
    ]
    path = tmp_path / "predictions.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    table = ReportTable("x", "x", "", (), [])
    table.pictures = np.array([finished.identify_picture(sample) for sample in results.read_questions(path)])
    assert table.picture_numbers.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3, 3, 4, 4]


def test_rows_that_miss_the_same_seeds_stand_together():
    rows = [
        ReportRow("", "a", missing=[3, 4]),
        ReportRow("", "b", missing=[1]),
        ReportRow("", "c", missing=[3, 4]),
    ]
    table = ReportTable("mine", "mine", "", (), rows, sweep="python -m experiments.sweep table=mine")
    assert scores_grid.list_table_notes(table) == [
        "Missing: a, c (seed 3, 4); b (seed 1); python -m experiments.sweep table=mine runs them."
    ]


@pytest.mark.slow
def test_scores_of_another_metric_stay_what_they_are(tmp_path):
    """Written as scores, read as scores, and claims are judged of them."""
    root = tmp_path / "runs"
    fill(root, ["5"], seed="0,1", **{"evaluate.metric": "anls"})
    asked = ["table=5", "seed=0,1", "evaluate.metric=anls", f"out={root}"]
    assert report.main(asked) == 0
    [table] = report_files.load_report(root / "report").tables
    assert table.title.endswith("(scored by anls)") and table.chance["overall"] == 0.5
    for row in table.rows:
        for scores in row.outcomes.values():
            assert scores.dtype == np.float64 and set(scores.tolist()) == {0.1, 1.0}
    with np.load(root / "report" / "outcomes" / "table5.npz") as arrays:
        assert "right" not in arrays and arrays["scores"].shape == (6, 240)
    before = (root / "report" / "scores.csv").read_bytes()
    assert report.main([f"results={root / 'report'}", f"to={tmp_path / 'again'}"]) == 0
    assert (tmp_path / "again" / "scores.csv").read_bytes() == before
    # as cells of an earlier report
    other = ["table=5", "seed=0,1", "evaluate.metric=anls", f"out={tmp_path / 'none'}"]
    assert report.main([*other, f"earlier={root / 'report'}", f"to={tmp_path / 'taken'}"]) == 0
    assert (tmp_path / "taken" / "scores.csv").read_bytes() == before
    # the same answers, right or wrong
    exact = fill(tmp_path / "exact", ["5"], seed="0,1")
    assert report.main(["table=5", "seed=0,1", f"out={exact.root}"]) == 0
    [usual] = report_files.load_report(exact.root / "report").tables
    for row, usual_row in zip(table.rows, usual.rows):
        for seed, scores in row.outcomes.items():
            assert np.array_equal(np.where(usual_row.outcomes[seed], 1.0, 0.1), scores)


@pytest.mark.parametrize("change", ["shape", "range", "type"])
def test_scores_that_are_none_are_refused(made, tmp_path, change):
    folder = tmp_path / "report"
    shutil.copytree(made, folder)
    path = folder / "outcomes" / "table5.npz"
    with np.load(path) as arrays:
        kept = {name: arrays[name] for name in ("ids", "pictures", "families")}
        cells = len(arrays["right"])
    remove_digests(folder)
    scores = np.full((cells, len(kept["ids"])), 0.5)
    changed = {"shape": scores[:, 1:], "range": scores + 1, "type": scores.astype(np.float32)}[change]
    np.savez(path, scores=scores, **kept)
    assert report_files.load_report(folder).tables[1].rows[0].outcomes
    np.savez(path, scores=changed, **kept)
    with pytest.raises(ValueError, match="table5.npz: scores"):
        report_files.load_report(folder)


def test_the_committed_outcomes_keep_their_bytes():
    """They are bits, whatever else outcomes may be."""
    folder = Path(report.__file__).parent / "results" / "tiny"
    tables = report_files.load_report(folder).tables
    assert {"3", "4", "5", "6"} <= {table.name for table in tables}
    for table in tables:
        assert (
            report_files.pack_outcomes(table) == report_files.locate_outcomes(folder, table.name).read_bytes()
        )


def test_a_row_that_cannot_be_says_why_below_the_table():
    """And in what is kept of it."""
    why = "the tower has no text encoder"
    absent = [ReportRow("controls", name, absent=why) for name in ("cdpruner", "trim")]
    table = ReportTable("mine", "mine", "", (), absent)
    grid = scores_grid.make_scores_grid(table)
    assert [line[:3] for _, line in grid.lines] == [
        [f"{name}‡", "", "cannot be"] for name in ("cdpruner", "trim")
    ]
    assert grid.notes == [f"‡ cdpruner, trim: {why}."]
    (first, _) = report_files.make_table_entry(table)["rows"]
    assert report_files.load_report_row(first, np.zeros((0, 0))).absent == why
    assert (
        "absent"
        not in report_files.make_table_entry(ReportTable("a", "a", "", (), [ReportRow("", "b")]))["rows"][0]
    )


ROWS_TABLE = """\
rows:
- {label: a, overrides: [compressor=identity]}
- {label: "b, c", overrides: [compressor=avg_pool]}
- {label: d, overrides: [compressor=sap]}
claims:
- {text: first, source: me, better: {row: a, than: "b, c"}}
- {text: second, source: me, better: {row: a, than: d}}
"""


@pytest.mark.parametrize("rows", ['rows=a,"b, c"', 'rows=["b, c",a]'])
def test_some_rows_of_a_table(tmp_path, rows):
    """Claims on the others are said to be left out, also by a report that is made again from its files."""
    table = tmp_path / "mine.yaml"
    table.write_text(ROWS_TABLE)
    fill(tmp_path / "runs", [str(table)], skip=lambda label, _: label == "b, c", seed="0,1")
    whole, some, again = (tmp_path / name for name in ("whole", "some", "again"))
    assert report.main([f"table={table}", f"out={tmp_path / 'runs'}", f"to={whole}"]) == 0
    assert report.main([f"table={table}", f"out={tmp_path / 'runs'}", rows, f"to={some}"]) == 0
    assert report.main([f"results={some}", f"to={again}"]) == 0
    for folder in (some, again):
        assert set(rows_of(folder / "scores.csv", "row")) == {("a",), ("b, c",)}
        words = (folder / "report.md").read_text()
        assert "Left out by rows=: d." in words and "left out by rows=: d; source: me |" in words
        assert f"Missing: b, c (seed 0, 1); python -m experiments.sweep table={table} 'rows=a" in words
        claims = rows_of(folder / "claims.csv", "claim", "row")
        assert claims["second", ""]["verdict"] == "no results"
        assert claims["first", ""]["note"] == "no results of b, c"
    assert "left out" not in (whole / "report.md").read_text()
    assert "left_out" not in (whole / "report.json").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rows=sap", "seed=0"], "rows=sap: rows of which table? name it with table="),
        (["table=5", "rows=[add,nobody]"], "rows=nobody: no row of table 5 is called so; Known: add, gated"),
    ],
)
def test_rows_that_are_not_there(out, arguments, message, capsys):
    assert report.main([*arguments, f"out={out}"]) == 2
    assert message in capsys.readouterr().err
