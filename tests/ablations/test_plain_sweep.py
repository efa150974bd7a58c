"""The report of a sweep that no table names: compared rows, what differs, a page that fits its window."""

import csv
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from made_cells import runner

import slothkit
from ablations import collect, plain_sweeps, report, report_files
from ablations.earlier import EarlierReport
from ablations.outcomes import Report, ReportRow, ReportTable
from ablations.references import add_references
from ablations.writing import csv_files, page, write
from ablations.writing.grids import comparison
from compressors.errors import UsageError
from compressors.key_value import parse_settings
from experiments.config.cells import make_cells
from experiments.config.tables import TableFile, TableRow
from experiments.store.plan import plan_stages
from experiments.store.results import publish_cell
from experiments.store.store import Store
from experiments.sweep.request import read_request

SWEEP = ["compressor=identity,avg_pool,sap,sap+embq", "seed=0,1"]
pytestmark = pytest.mark.usefixtures("without_plots")


def fill_lines(root, *lines):
    """The cells of these sweeps below `root`, finished."""
    store = Store(root, runner=runner(60))
    with store.open_root():
        for line in lines:
            for cell in make_cells({**parse_settings(line), "out": [str(root)]}):
                stage = plan_stages(cell.config)
                store.compute(stage)
                publish_cell(cell, stage, store)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """The cells of a sweep, finished."""
    root = tmp_path_factory.mktemp("runs")
    fill_lines(root, SWEEP)
    return root


@pytest.fixture(scope="module")
def made(out):
    assert report.main([*SWEEP, f"out={out}"]) == 0
    return out / "report"


def test_rows_are_compared_with_average_pooling(made):
    pytest.importorskip("pandas")
    made_report = report_files.load_report(made)
    [table] = made_report.tables
    scores = write.make_table_grids(made_report, table, [])["scores"]
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
        assert "laim" not in words and "Published" not in words, name
    assert "bf{" in (made / "report.tex").read_text()
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


def test_a_renamed_cell_keeps_its_row(out, tmp_path):
    root = tmp_path / "runs"
    shutil.copytree(out, root)
    for name, folder in (("sap_seed=0", "mysap"), ("sap_seed=1", "other")):
        [cell] = (root / "cells").glob(f"{name}-*")
        cell.rename(root / "cells" / folder)
    for settings in ([], ["seed=0,1"]):
        assert report.main([f"out={root}", *settings]) == 0
        [table] = report_files.load_report(root / "report").tables
        [sap] = [row for row in table.rows if row.label == "sap"]
        assert sorted(sap.outcomes) == [0, 1]


def test_a_directory_with_brackets_in_its_name(out, tmp_path):
    root = tmp_path / "runs (1), mine"
    shutil.copytree(out, root)
    report.make_report(out=root)
    assert report.main([f'out="{root}"', "to=" + str(tmp_path / "report")]) == 0
    commands = report_files.load_report(tmp_path / "report").provenance
    assert str(root) in json.dumps(commands)


def test_a_report_of_renamed_cells_alone_has_their_seeds(tmp_path):
    store = Store(tmp_path, runner=runner(60))
    with store.open_root():
        [cell] = make_cells({"compressor": ["sap"], "seed": ["7"], "out": [str(tmp_path)]})
        store.compute(plan_stages(cell.config))
        publish_cell(cell, plan_stages(cell.config), store).rename(tmp_path / "cells" / "mysap")
    assert report.main([f"out={tmp_path}"]) == 0
    [table] = report_files.load_report(tmp_path / "report").tables
    assert [sorted(row.outcomes) for row in table.rows] == [[7]]


def test_cells_whose_evaluations_are_gone_are_not_advised_away(out, tmp_path, capsys):
    """The sweep without settings would train something else."""
    root = tmp_path / "runs"
    shutil.copytree(out, root)
    shutil.rmtree(root / "evaluate")
    assert report.main([f"out={root}"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: out={root}: 8 cells lie in {root / 'cells'}, but evaluate/")
    assert line.endswith(" is gone; run their sweep's command again")


def test_damaged_cells_are_named_before_the_advice(out, tmp_path, capsys):
    root = tmp_path / "runs"
    shutil.copytree(out, root)
    for path in (root / "cells").glob("*/config.yaml"):
        path.unlink()
    assert report.main([f"out={root}"]) == 2
    *warnings, line = capsys.readouterr().err.splitlines()
    assert len(warnings) == 8
    assert all("is left out: " in warning and "no such file" in warning for warning in warnings)
    assert "8 cells lie in" in line and line.endswith("run their sweep's command again")


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        (["seed=5"], "none that is whole has seed=5; run their sweep's command with seed=5"),
        (
            ["compressor=sap", "sap.rate=4", "seed=5"],
            "run python -m experiments.sweep compressor=sap sap.rate=4 seed=5 out={}, with the same settings",
        ),
    ],
)
def test_the_advice_has_the_settings_of_the_line(out, tmp_path, settings, advice, capsys):
    assert report.main([f"out={out}", f"to={tmp_path}", *settings]) == 2
    assert capsys.readouterr().err.endswith(f"{advice.format(out)}\n")


@pytest.mark.usefixtures("plots")
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


@pytest.mark.usefixtures("plots")
def test_the_report_again_without_the_cells(made, tmp_path, capsys):
    assert report.main([f"results={made}", f"to={tmp_path / 'no'}", "measure=true"]) == 2
    assert "has no cells that could be measured" in capsys.readouterr().err
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


def test_stages_that_rows_share_are_told_at_one_seed(out, tmp_path):
    """Also where they have not finished at the same seeds."""
    root = tmp_path / "runs"
    shutil.copytree(out, root)
    [cell] = make_cells({"compressor": ["sap"], "seed": ["0"], "out": [str(root)]})
    shutil.rmtree(root / plan_stages(cell.config).name)
    assert report.main(["compressor=avg_pool,sap,sap+embq", "seed=0,1", f"out={root}"]) == 0
    [table] = report_files.load_report(root / "report").tables
    keys = table.training_by_label
    [sap] = [row for row in table.rows if row.label == "sap"]
    assert sap.missing == [0] and keys["sap"][0] == keys["sap+embq"][0] != keys["avg_pool"][0]


def test_a_blind_row_of_a_table_stands_there_once(tmp_path):
    table = tmp_path / "mine.yaml"
    table.write_text("rows:\n- {label: blind, overrides: [compressor=none]}\n- {label: sap, overrides: []}\n")
    store = Store(tmp_path / "runs", runner=runner(60))
    with store.open_root():
        [cell] = make_cells({"compressor": ["none"], "out": [str(store.root)]})
        store.compute(plan_stages(cell.config))
    assert report.main([f"table={table}", "seed=0", f"out={store.root}"]) == 0
    [found] = report_files.load_report(store.root / "report").tables
    assert [row.label for row in found.rows] == ["blind", "sap"] and found.rows[0].efficiency


def report_rows(root):
    """Row label -> its seeds, in the report of all that has finished below `root`."""
    assert report.main([f"out={root}"]) == 0
    tables = report_files.load_report(root / "report").tables
    return {row.label: sorted(row.outcomes) for table in tables for row in table.rows}


def test_rows_are_told_apart_by_their_projectors_knobs(tmp_path):
    fill_lines(tmp_path, ["compressor=sap", "mlp2x_gelu.depth=3,4"], ["compressor=sap", "projector=linear"])
    assert report_rows(tmp_path) == {
        "sap projector=linear": [0],
        "sap projector=mlp2x_gelu mlp2x_gelu.depth=3": [0],
        "sap projector=mlp2x_gelu mlp2x_gelu.depth=4": [0],
    }


def test_a_compressor_that_projects_itself_has_no_knobs_of_a_projector():
    [cell] = make_cells(parse_settings(["compressor=pixel_shuffle", "pixel_shuffle.projector=true"]))
    assert not any("depth" in setting for setting in plain_sweeps.list_settings(cell.config))


def label_lines(*lines):
    """What the cells of these sweeps are called in a report of all cells."""
    configs = []
    for line in lines:
        configs += [cell.config for cell in make_cells(parse_settings(line))]
    return [(cell.label, cell.config.seed) for cell in plain_sweeps.label_configs(configs)]


@pytest.mark.parametrize(
    "setting",
    [
        "trainer.gradient_checkpointing=true",
        "trainer.compile=true",
        "trainer.strategy=ddp",
        "finetune.checkpointing=true",
        "data.validation=[test]",
        "evaluate.cache=dynamic",
        "trainer.checkpoint_every=5",
    ],
)
def test_settings_that_no_result_shows_split_no_row(setting):
    line = ["compressor=sap", "seed=1", setting]
    assert label_lines(["compressor=sap"], line) == [("sap", 0), ("sap", 1)]


def test_settings_that_act_on_nothing_in_a_row_are_not_told_there():
    lines = [["compressor=sap"], ["compressor=sap", "lora.rank=4", "lora.alpha=8,16"]]
    assert [label for label, _ in label_lines(*lines)] == [
        "sap lora.rank=0",
        "sap lora.rank=4 lora.alpha=16.0",
        "sap lora.rank=4 lora.alpha=8.0",
    ]


def test_settings_that_a_cell_could_not_be_without_are_told(tmp_path):
    judged = ["compressor=sap", "evaluate.metric=judge", f"judge.model={tmp_path}"]
    labels = [label for label, _ in label_lines(["compressor=sap"], judged)]
    assert labels == ["sap evaluate.metric=exact", f"sap evaluate.metric=judge judge.model={tmp_path}"]


def test_many_cells_are_named_by_few_plans(monkeypatch):
    planned = []
    monkeypatch.setattr(plain_sweeps, "plan_stages", lambda config: planned.append(1) or plan_stages(config))
    seeds = ",".join(map(str, range(50)))
    line = ["compressor=sap", "finetune.lr=0.001,0.002", f"seed={seeds}"]
    assert len(label_lines(line, [*line, "trainer.compile=true"])) == 200
    assert len(planned) == 16  # two settings of four rows, as they are and changed


def test_a_cell_that_starts_from_another_is_found_where_both_were_moved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fill_lines(Path("old"), ["compressor=sap"])
    [trained] = Path("old/finetune").iterdir()
    (trained / "model").mkdir()
    (trained / "model/config.json").write_text('{"model_type": "slothkit", "compressor": "sap"}')
    (trained / "model/model.safetensors").write_bytes(b"weights")
    asked = read_request(
        parse_settings(["compressor=avg_pool", "finetune.init=sap", "out=old", "blind=false"])
    )
    store = Store(Path("old"), runner=runner(60))
    with store.open_root():
        for cell, stage in asked.jobs:
            store.compute(stage)
            publish_cell(cell, stage, store)
    seeds = report_rows(Path("old"))
    assert seeds.keys() == {"avg_pool", "sap"}
    Path("old").rename("new")
    assert report_rows(Path("new")) == seeds


def test_two_cells_of_a_row_at_one_seed_are_refused(out):
    cells = make_cells({**parse_settings(["compressor=avg_pool,sap"]), "out": [str(out)]})
    row = TableRow("", "both", "", tuple(cells))
    file = TableFile("mine", "", out, (row,))
    with pytest.raises(UsageError, match="row 'both': two cells with other settings have seed=0"):
        collect.collect_table(file, (), Store(out), EarlierReport())


def test_a_row_that_is_called_as_the_blind_one_keeps_its_cost(tmp_path):
    table = tmp_path / "mine.yaml"
    table.write_text("rows:\n- {label: blind, overrides: [compressor=sap]}\n")
    fill_lines(tmp_path / "runs", ["compressor=none,sap"])
    assert report.main([f"table={table}", "seed=0", f"out={tmp_path / 'runs'}"]) == 0
    [found] = report_files.load_report(tmp_path / "runs/report").tables
    assert [row.efficiency.get("visual_tokens") for row in found.rows] == [0, 16]


def test_files_of_tables_that_are_reported_no_more_are_removed(out, tmp_path):
    table = tmp_path / "mine.yaml"
    table.write_text("rows:\n- {label: mine, overrides: [compressor=sap]}\n")
    assert report.main([f"table={table}", f"out={out}", f"to={tmp_path}"]) == 0
    assert (tmp_path / "outcomes/tablemine.npz").exists()
    assert report.main([f"out={out}", f"to={tmp_path}"]) == 0
    names = [path.name for path in tmp_path.rglob("table*.*")]
    assert "tablesweep.npz" in names and not any("mine" in name for name in names)


def test_pictures_of_a_table_of_any_name_are_linked():
    table = ReportTable("my (own) table", "my (own) table", "", (), [])
    name = write.name_plot(table, "pareto")
    words = write.render_markdown_report(Report([table], {}), [], [], [], [name])
    assert f"![{name}](plots/tablemy%20%28own%29%20table-pareto.svg)" in words
    svgs = page.prefix_svg_ids({name: '<svg><g id="a"/><use href="#a" clip-path="url(#b)"/></svg>'})
    expected = '<svg><g id="plot1-a"/><use href="#plot1-a" clip-path="url(#plot1-b)"/></svg>'
    assert svgs == {name: expected}


def test_seeds_are_numbers(out, tmp_path, capsys):
    assert report.main([f"out={out}", f"to={tmp_path}", "seed=0"]) == 0
    [table] = report_files.load_report(tmp_path).tables
    assert {seed for row in table.rows for seed in row.outcomes} == {0}
    for text in ("abc", "00"):
        assert report.main([f"out={out}", f"to={tmp_path}", f"seed={text}"]) == 2
        assert f"error: seed='{text}': expected int" in capsys.readouterr().err


def test_a_missing_seed_is_named_once(out, tmp_path):
    """A knob that no part has makes the same cell twice."""
    line = ["compressor=avg_pool,sap+embq", "embq.num_queries=4,9", "seed=0,5"]
    assert report.main([*line, f"out={out}", f"to={tmp_path}"]) == 0
    [table] = report_files.load_report(tmp_path).tables
    assert [row.missing for row in table.rows if row.label == "avg_pool"] == [[5]]


def make_compared_table(outcomes_by_settings, pictures):
    """A table of rows by compressor and rate, each with its outcomes by seed."""
    rows, finished_rows = [], []
    for (compressor, rate), outcomes in outcomes_by_settings.items():
        [cell] = make_cells({"compressor": [compressor], f"{compressor}.rate": [str(rate)]})
        row = ReportRow("", f"{compressor} at {rate}", outcomes=outcomes)
        row.efficiency["visual_tokens"] = 144 // rate**2
        rows.append(row)
        finished_rows.append((row, cell.config))
    families = np.full(len(pictures), "all")
    chance = {"overall": 0.0, "families": {"all": 0.0}}
    table = ReportTable("sweep", "sweep", "", (), rows, pictures, families, pictures, chance)
    add_references(table, finished_rows, "avg_pool")
    return table


def answer_right(share, seeds=2):
    """So many of a hundred questions, at each seed."""
    return {seed: np.arange(100) < share for seed in range(seeds)}


def test_the_best_row_needs_no_row_to_be_compared_with():
    shares = {("avg_pool", 2): 50, ("avg_pool", 3): 45, ("sap", 2): 60, ("sap", 4): 90}
    outcomes = {settings: answer_right(share) for settings, share in shares.items()}
    grid = comparison.make_comparison_grid(make_compared_table(outcomes, np.arange(100).astype(str)), "")
    [(number, _)] = grid.bold
    assert grid.lines[number][1][0] == "sap at 4"
    assert any(note == "No single row of avg_pool has the settings of sap at 4." for note in grid.notes)


def test_one_picture_has_no_interval():
    outcomes = {("avg_pool", 3): answer_right(50), ("sap", 3): answer_right(60)}
    grid = comparison.make_comparison_grid(make_compared_table(outcomes, np.full(100, "one")), "")
    assert grid.lines[-1][1][3:5] == ["+10.0", "**"]
    assert any(note.startswith("** All questions are about one picture") for note in grid.notes)
    assert not any("one seed in common" in note for note in grid.notes)


def test_one_seed_in_common_is_no_item_of_a_list():
    outcomes = {("avg_pool", 3): answer_right(50), ("sap", 3): answer_right(60, seeds=1)}
    grid = comparison.make_comparison_grid(make_compared_table(outcomes, np.arange(100).astype(str)), "")
    assert grid.lines[-1][1][4].endswith("*")
    assert any(note.startswith("*: one seed in common") for note in grid.notes)


def test_rows_without_a_seed_in_common_say_so():
    outcomes = {("avg_pool", 3): {0: answer_right(50)[0]}, ("sap", 3): {1: answer_right(60)[1]}}
    grid = comparison.make_comparison_grid(make_compared_table(outcomes, np.arange(100).astype(str)), "")
    assert grid.lines[-1][1][3:5] == ["", "no seed in common"]


def test_families_called_as_a_column_keep_their_column():
    table = make_compared_table({("sap", 3): answer_right(60)}, np.arange(100).astype(str))
    table.families = np.where(np.arange(100) < 50, "overall", "seeds")
    header, line = csv.reader(csv_files.render_scores_csv(Report([table], {})).splitlines())
    scores = dict(zip(header, line))
    assert len(scores) == len(header)
    assert float(scores["family overall"]) == 100 and float(scores["overall"]) == 60


def test_a_blind_row_has_the_seeds_that_sweeps_have_added(tmp_path):
    """The first sweep adds it at its first seed, a later one of a further seed at that one."""
    store = Store(tmp_path / "runs", runner=runner(60))
    axes = {"compressor": ["sap"], "out": [str(store.root)]}
    with store.open_root():
        for seed in ("0", "1", "3"):
            for compressor in ["sap"] if seed == "1" else ["sap", "none"]:
                [cell] = make_cells({**axes, "compressor": [compressor], "seed": [seed]})
                store.compute(plan_stages(cell.config))
    line = ["compressor=sap", "seed=0,1,3", f"out={store.root}"]
    assert report.main(line) == 0
    [found] = report_files.load_report(store.root / "report").tables
    blind = next(row for row in found.rows if row.label == "blind")
    assert sorted(blind.outcomes) == [0, 3] and blind.missing == []
