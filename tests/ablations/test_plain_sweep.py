"""The report of a sweep that no table names: compared rows, what differs, a page that fits its window."""

import json
import re
import shutil
import subprocess

import pytest
from made_cells import runner

import slothkit
from ablations import plain_sweeps, report, report_files
from ablations.writing import write
from compressors.key_value import parse_settings
from experiments.config.cells import make_cells
from experiments.store.plan import plan_stages
from experiments.store.results import publish_cell
from experiments.store.store import Store

SWEEP = ["compressor=identity,avg_pool,sap,sap+embq", "seed=0,1"]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """The cells of a sweep, finished."""
    root = tmp_path_factory.mktemp("runs")
    store = Store(root, runner=runner(60))
    with store.open_root():
        for cell in make_cells({**parse_settings(SWEEP), "out": [str(root)]}):
            stage = plan_stages(cell.config)
            store.compute(stage)
            publish_cell(cell, stage, store)
    return root


@pytest.fixture(scope="module")
def made(out):
    assert report.main([*SWEEP, f"out={out}"]) == 0
    return out / "report"


def test_rows_are_compared_with_average_pooling(made):
    pytest.importorskip("pandas")
    [table] = report_files.load_report(made).tables
    scores = write.make_report_grids(report_files.load_report(made))[0]
    frame = scores.to_pandas().set_index("row")
    assert table.baseline == "avg_pool" and frame.loc["avg_pool", "difference to avg_pool"] == "baseline"
    means = {row.label: sum(table.compute_accuracies(row)) / 2 for row in table.rows}
    difference = float(frame.loc["sap", "difference to avg_pool"])
    assert difference == pytest.approx(means["sap"] - means["avg_pool"], abs=0.06)
    assert re.fullmatch(r"[+-]\d+\.\d to [+-]\d+\.\d", frame.loc["sap", "95 % interval"])
    share = frame.loc["sap", "% of uncompressed"]
    assert share == pytest.approx(100 * means["sap"] / means["identity"], abs=0.06)
    compressed = {label: mean for label, mean in means.items() if label != "identity"}
    [(number, _)] = scores.bold
    assert scores.lines[number][1][0] == max(compressed, key=compressed.get)
    assert frame["overall"].dtype == float


def test_nothing_is_said_of_claims_or_of_the_paper(made):
    for name in ("report.md", "report.html", "report.tex"):
        words = (made / name).read_text()
        assert "laim" not in words and "Published" not in words and "bf{" in words or name != "report.tex"
    assert "<b>" in (made / "report.html").read_text() and "**" in (made / "report.md").read_text()


@pytest.mark.parametrize(
    ("line", "title"),
    [
        (["compressor=avg_pool,sap", "finetune.epochs=2", "seed=0,1"], "compressor=avg_pool,sap"),
        (["compressor=sap", "finetune.epochs=2"], "compressor=sap finetune.epochs=2"),
    ],
)
def test_a_report_is_called_by_what_its_sweep_compares(line, title):
    assert plain_sweeps.title_sweep(parse_settings(line)) == title


def test_all_finished_cells_without_settings(out, made, tmp_path):
    assert report.main([f"out={out}", f"to={tmp_path}"]) == 0
    [asked], [found] = report_files.load_report(made).tables, report_files.load_report(tmp_path).tables
    assert {row.label: row.keys for row in asked.rows} == {row.label: row.keys for row in found.rows}


def test_the_line_of_a_sweep_as_it_was_typed(out, made, tmp_path, capsys):
    line = [*SWEEP, f"out={out}", f"to={tmp_path}", "launch.workers=2"]
    assert report.main([*line, "blind=false"]) == 0
    [asked], [found] = report_files.load_report(made).tables, report_files.load_report(tmp_path).tables
    assert [row.keys for row in asked.rows] == [row.keys for row in found.rows]
    assert report.main([*line, "blind=maybe"]) == 2
    assert "error: blind='maybe': expected bool" in capsys.readouterr().err


def test_changed_cells_are_left_out_and_named(out, tmp_path, capsys):
    shutil.copytree(out, tmp_path / "runs")
    [path] = (tmp_path / "runs" / "cells").glob("sap_seed=0-*/config.yaml")
    path.write_text(path.read_text().replace("max_new_tokens: 16", "max_new_tokens: 8"))
    assert report.main([f"out={tmp_path / 'runs'}"]) == 0
    assert f"warning: {path.parent} is left out" in capsys.readouterr().err


def test_the_report_from_python(out, made, tmp_path, capsys):
    pytest.importorskip("pandas")
    settings = {"compressor": ["identity", "avg_pool", "sap", "sap+embq"], "seed": [0, 1]}
    scores, families = slothkit.report(out=out, to=tmp_path, blind=False, **settings)
    assert capsys.readouterr().out == "" and "family" in families.title
    for name in ("scores.csv", "latex/tablesweep-scores.tex", "plots/tablesweep-pareto.svg"):
        assert (tmp_path / name).read_bytes() == (made / name).read_bytes()
    frame = scores.to_pandas().set_index("row")
    assert frame.loc["avg_pool", "difference to avg_pool"] == "baseline" and len(frame) == 5
    [again, _] = slothkit.report(results=tmp_path)
    assert again == scores
    with pytest.raises(slothkit.UsageError, match="unknown setting 'seeds'"):
        slothkit.report(out=out, seeds=[0])


def test_negative_differences_have_a_minus_in_latex(out, tmp_path):
    assert report.main([*SWEEP, "baseline=identity", f"out={out}", f"to={tmp_path}"]) == 0
    words = (tmp_path / "report.tex").read_text()
    assert re.search(r" \$-\$\d+\.\d", words) and not re.search(r"(?<!\S)-\d", words)


def test_another_baseline(out, tmp_path, capsys):
    assert report.main([*SWEEP, f"out={out}", f"to={tmp_path}", "baseline=sap"]) == 0
    assert "difference to sap" in (tmp_path / "report.md").read_text()
    assert report.main([*SWEEP, f"out={out}", f"to={tmp_path / 'no'}", "baseline=spa"]) == 2
    err = capsys.readouterr().err
    assert "baseline=spa: no finished row" in err and "did you mean 'sap'" in err and err.count("\n") == 1


def test_the_report_again_without_the_cells(made, tmp_path):
    assert report.main([f"results={made}", f"to={tmp_path}"]) == 0
    for path in made.rglob("*.*"):
        assert (tmp_path / path.relative_to(made)).read_bytes() == path.read_bytes(), path


def test_tables_alone_for_a_paper(made):
    words = (made / "latex" / "tablesweep-scores.tex").read_text()
    assert (
        words.startswith(r"\begin{tabular}") and words.endswith("\\end{tabular}\n") and r"\textbf{" in words
    )


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium is installed")
@pytest.mark.parametrize("width", [1280, 520])
def test_the_page_fits_its_window(made, tmp_path, width):
    script = (
        "<script>onload=()=>{let page=document.documentElement;document.body.innerHTML="
        "'<pre>'+JSON.stringify([innerWidth,page.scrollWidth,"
        "[...document.querySelectorAll('.wide')].filter(e=>e.scrollWidth>e.clientWidth).length])+'</pre>'}</script>"
    )
    path = tmp_path / "page.html"
    path.write_text((made / "report.html").read_text().replace("</body>", f"{script}</body>"))
    chromium = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900"]
    command = [*chromium, f"--user-data-dir={tmp_path}", "--dump-dom", f"file://{path}"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    window, page, scrolling_tables = json.loads(re.search(r"<pre>(.*?)</pre>", shown)[1])
    assert page <= window
    assert width < 1280 or scrolling_tables == 0  # no column is cut
