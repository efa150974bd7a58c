"""The files of a report, and what the terminal shows of it.

report.md  report.tex  report.html        the whole report
scores.csv  claims.csv                    its numbers
plots/*.svg  plots/attention-*.png
report.json  outcomes/table*.npz          what it can be made from again (outcomes.py)
"""

from pathlib import Path

from rich.console import Console

from ablations import outcomes
from ablations.claims.verdicts import Verdict, judge_claims
from ablations.outcomes import Report
from ablations.writing import grids as view
from ablations.writing import latex, page, plots, ranking, text
from ablations.writing.grids import WordGrid
from experiments.runtime.files import write_atomic

REPORT_TITLE = "Ablations"
PLOT_FUNCTIONS = {
    "pareto": plots.draw_pareto,
    "ranking": ranking.draw_ranking,
    "gain": plots.draw_gain,
    "families": plots.draw_families,
}
PLOT_CAPTIONS = {
    "pareto": "Accuracy against visual tokens; bars: 95 % t-interval over seeds.",
    "ranking": "Accuracy by compressor; bars: 95 % t-interval over seeds.",
    "families": "Accuracy by family of questions.",
    "gain": "What the query module adds; paired bootstrap.",
    "claims": "The claims and their intervals; green holds, red does not hold, grey is not resolved.",
}


def write_report(report: Report, folder: Path, console: Console) -> None:
    """All files, and the report on the terminal."""
    verdicts = {
        table.name: judge_claims(
            table.claims,
            {row.label: row.outcomes for row in table.rows},
            table.families,
            table.picture_numbers,
        )
        for table in report.tables
    }
    pictures = draw_plots(report, verdicts)
    summary, end = (
        view.summarize_claims(report, verdicts),
        [*view.list_published_scores(), *view.describe_provenance(report)],
    )
    grids = {table.name: make_table_grids(table, verdicts[table.name]) for table in report.tables}
    every = [grid for found in grids.values() for grid in found]
    notes = [view.SCORES_NOTE, view.CLAIMS_NOTE]
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    for path in (folder / "plots").glob("*.svg"):  # an earlier report's that this one does not draw
        if path.stem not in pictures:
            path.unlink()
    for name, content in pictures.items():
        write_atomic(folder / "plots" / f"{name}.svg", content)
    words = render_markdown_report(report, every, summary, [*notes, *end], sorted(pictures))
    write_atomic(folder / "report.md", words)
    write_atomic(folder / "report.tex", latex.render_latex_document(every, [*summary, *notes, *end]))
    parts = order_page_parts(report, grids, page.prefix_svg_ids(pictures))
    if report.maps:
        parts.append((view.caption_maps(report), "".join(map(page.embed_png, report.maps))))
    write_atomic(folder / "report.html", page.render_html_page(REPORT_TITLE, summary, parts, [*notes, *end]))
    write_atomic(folder / "scores.csv", text.render_scores_csv(report))
    write_atomic(folder / "claims.csv", text.render_claims_csv(report.tables, verdicts))
    outcomes.save_report(report, folder)
    print_report(every, summary, words, console, folder)


def make_table_grids(table: outcomes.ReportTable, verdicts: list[Verdict]) -> list[WordGrid]:
    """A table's scores, and its claims if it has any."""
    return [view.make_scores_grid(table), *([view.make_claims_grid(verdicts)] if verdicts else [])]


def draw_plots(report: Report, verdicts: dict[str, list[Verdict]]) -> dict[str, str]:
    """File name without ending -> SVG, of what there is something to draw for."""
    found = {}
    for table in report.tables:
        for name, drawn in PLOT_FUNCTIONS.items():
            content = drawn(table) if table.ids.size else None
            if content:
                found[f"table{table.name}-{name}"] = content
    every = [(table.heading, each) for table in report.tables for each in verdicts[table.name]]
    content = plots.draw_claims("Claims of the paper", every)
    return found | ({"claims": content} if content else {})


def order_page_parts(report: Report, grids: dict[str, list[WordGrid]], pictures: dict[str, str]) -> list:
    """The parts of the page: claims' picture, then each table with its pictures."""
    found: list = [(PLOT_CAPTIONS["claims"], pictures["claims"])] if "claims" in pictures else []
    for table in report.tables:
        found += grids[table.name]
        for name, caption in PLOT_CAPTIONS.items():
            if f"table{table.name}-{name}" in pictures:
                found.append((caption, pictures[f"table{table.name}-{name}"]))
    return found


def render_markdown_report(
    report: Report, grids: list[WordGrid], summary: list[str], notes: list[str], pictures: list[str]
) -> str:
    """The whole report in Markdown; pictures lie beside it."""
    said = "\n".join(summary[:2]) + "\n" + "".join(f"{line}\n" for line in ["", *summary[2:]])
    maps = [outcomes.locate_map(Path(), number + 1).as_posix() for number in range(len(report.maps))]
    shown = [*(f"plots/{name}.svg" for name in pictures), *maps]
    if maps:
        notes = [view.caption_maps(report), *notes]
    parts = [
        f"# {REPORT_TITLE}\n",
        said,
        *(text.render_markdown_table(grid) for grid in grids),
        "## Plots\n",
        "".join(f"![{Path(each).stem}]({each})\n" for each in shown),
        "\n\n".join(notes),
        "",
    ]
    return "\n".join(parts)


def print_report(
    grids: list[WordGrid], summary: list[str], words: str, console: Console, folder: Path
) -> None:
    """On a terminal tables as they fit, elsewhere the Markdown."""
    if console.is_terminal:
        for grid in grids:
            console.print(*text.render_screen_tables(grid, console.width))
        for line in (*summary, view.SCORES_NOTE, view.CLAIMS_NOTE):
            console.print(line, markup=False, highlight=False)
    else:
        console.print(words, markup=False, highlight=False, soft_wrap=True)
    console.print(
        f"{folder / 'report.html'}  {folder / 'report.md'}  {folder / 'report.tex'}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
