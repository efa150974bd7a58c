"""The files of a report, and what the terminal shows of it.

report.md  report.tex  report.html        the whole report
scores.csv  claims.csv                    its numbers
plots/*.svg  plots/attention-*.png
report.json  outcomes/table*.npz          what it can be made from again (outcomes.py)
"""

from pathlib import Path

from rich.console import Console

from ablations import outcomes
from ablations.claims.verdicts import Verdict, judge
from ablations.outcomes import Report
from ablations.writing import grids as view
from ablations.writing import latex, page, plots, ranking, text
from ablations.writing.grids import Grid
from experiments.runtime.files import write_atomic

TITLE = "Ablations"
PLOTS = {"pareto": plots.pareto, "ranking": ranking.ranking, "gain": plots.gain, "families": plots.families}
CAPTIONS = {
    "pareto": "Accuracy against visual tokens; bars: 95 % t-interval over seeds.",
    "ranking": "Accuracy by compressor; bars: 95 % t-interval over seeds.",
    "families": "Accuracy by family of questions.",
    "gain": "What the query module adds; paired bootstrap.",
    "claims": "The claims and their intervals; green holds, red does not hold, grey is not resolved.",
}


def write(report: Report, folder: Path, console: Console) -> None:
    """All files, and the report on the terminal."""
    verdicts = {
        table.name: judge(
            table.claims, {row.label: row.outcomes for row in table.rows}, table.families, table.picture
        )
        for table in report.tables
    }
    pictures = draw(report, verdicts)
    summary, end = view.summary(report, verdicts), [*view.published(), *view.provenance(report)]
    grids = {table.name: tables_of(table, verdicts[table.name]) for table in report.tables}
    every = [grid for found in grids.values() for grid in found]
    notes = [view.NOTE, view.CLAIMS]
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    for path in (folder / "plots").glob("*.svg"):  # an earlier report's that this one does not draw
        if path.stem not in pictures:
            path.unlink()
    for name, content in pictures.items():
        write_atomic(folder / "plots" / f"{name}.svg", content)
    words = markdown(report, every, summary, [*notes, *end], sorted(pictures))
    write_atomic(folder / "report.md", words)
    write_atomic(folder / "report.tex", latex.document(every, [*summary, *notes, *end]))
    parts = in_order(report, grids, page.inline(pictures))
    if report.maps:
        parts.append((view.maps_caption(report), "".join(map(page.png, report.maps))))
    write_atomic(folder / "report.html", page.page(TITLE, summary, parts, [*notes, *end]))
    write_atomic(folder / "scores.csv", text.scores_csv(report))
    write_atomic(folder / "claims.csv", text.claims_csv(report.tables, verdicts))
    outcomes.save(report, folder)
    show(every, summary, words, console, folder)


def tables_of(table: outcomes.Table, verdicts: list[Verdict]) -> list[Grid]:
    """A table's scores, and its claims if it has any."""
    return [view.scores(table), *([view.claims(verdicts)] if verdicts else [])]


def draw(report: Report, verdicts: dict[str, list[Verdict]]) -> dict[str, str]:
    """File name without ending -> SVG, of what there is something to draw for."""
    found = {}
    for table in report.tables:
        for name, drawn in PLOTS.items():
            content = drawn(table) if table.ids.size else None
            if content:
                found[f"table{table.name}-{name}"] = content
    every = [(table.heading, each) for table in report.tables for each in verdicts[table.name]]
    content = plots.forest("Claims of the paper", every)
    return found | ({"claims": content} if content else {})


def in_order(report: Report, grids: dict[str, list[Grid]], pictures: dict[str, str]) -> list:
    """The parts of the page: claims' picture, then each table with its pictures."""
    found: list = [(CAPTIONS["claims"], pictures["claims"])] if "claims" in pictures else []
    for table in report.tables:
        found += grids[table.name]
        for name, caption in CAPTIONS.items():
            if f"table{table.name}-{name}" in pictures:
                found.append((caption, pictures[f"table{table.name}-{name}"]))
    return found


def markdown(
    report: Report, grids: list[Grid], summary: list[str], notes: list[str], pictures: list[str]
) -> str:
    """The whole report in Markdown; pictures lie beside it."""
    said = "\n".join(summary[:2]) + "\n" + "".join(f"{line}\n" for line in ["", *summary[2:]])
    maps = [outcomes.map_file(Path(), number + 1).as_posix() for number in range(len(report.maps))]
    shown = [*(f"plots/{name}.svg" for name in pictures), *maps]
    if maps:
        notes = [view.maps_caption(report), *notes]
    parts = [
        f"# {TITLE}\n",
        said,
        *(text.markdown(grid) for grid in grids),
        "## Plots\n",
        "".join(f"![{Path(each).stem}]({each})\n" for each in shown),
        "\n\n".join(notes),
        "",
    ]
    return "\n".join(parts)


def show(grids: list[Grid], summary: list[str], words: str, console: Console, folder: Path) -> None:
    """On a terminal tables as they fit, elsewhere the Markdown."""
    if console.is_terminal:
        for grid in grids:
            console.print(*text.screen(grid, console.width))
        for line in (*summary, view.NOTE, view.CLAIMS):
            console.print(line, markup=False, highlight=False)
    else:
        console.print(words, markup=False, highlight=False, soft_wrap=True)
    console.print(
        f"{folder / 'report.html'}  {folder / 'report.md'}  {folder / 'report.tex'}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
