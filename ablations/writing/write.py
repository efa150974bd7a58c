"""The files of a report, and what the terminal shows of it.

report.md  report.tex  report.html        the whole report
scores.csv  claims.csv                    its numbers
plots/*.svg  plots/attention-*.png
report.json  outcomes/table*.npz          what it can be made from again (outcomes.py)
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from ablations import outcomes
from ablations.claims.verdicts import Verdict
from ablations.outcomes import PLOTS_FOLDER, Report, ReportTable
from ablations.writing import grids, latex, page, plots, ranking, text
from ablations.writing.grids import WordGrid
from ablations.writing.page import PagePicture
from experiments.runtime.files import write_atomic
from experiments.runtime.text_tables import escape_markdown

REPORT_TITLE = "Ablations"
MARKDOWN_FILE = "report.md"
CLAIMS_PLOT = "claims"  # of all tables; the others are of one
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
    CLAIMS_PLOT: "The claims and their intervals; green holds, red does not hold, grey is not resolved.",
}


class RenderedReport(NamedTuple):
    """All that is written of a report, before anything is.

    texts    content by file name; svgs: plots by name, without ending
    """

    texts: dict[str, str]
    svgs: dict[str, str]
    grids: list[WordGrid]
    summary: list[str]


def render_report(report: Report) -> RenderedReport:
    """A report in all its forms."""
    verdicts: dict[str, list[Verdict]] = {}
    table_grids: dict[str, list[WordGrid]] = {}
    all_grids = []
    for table in report.tables:
        table_verdicts = grids.judge_table(table, table.claims)
        verdicts[table.name] = table_verdicts
        table_grids[table.name] = make_table_grids(table, table_verdicts)
        all_grids += table_grids[table.name]
    svgs = draw_plots(report, verdicts)
    summary = grids.summarize_claims(report, verdicts)
    notes = [
        grids.SCORES_NOTE,
        grids.CLAIMS_NOTE,
        *grids.list_published_scores(),
        *grids.describe_provenance(report),
    ]
    parts = order_page_parts(report, table_grids, page.prefix_svg_ids(svgs))
    texts = {
        MARKDOWN_FILE: render_markdown_report(report, all_grids, summary, notes, sorted(svgs)),
        "report.tex": latex.render_latex_document(all_grids, [*summary, *notes]),
        "report.html": page.render_html_page(REPORT_TITLE, summary, parts, notes),
        "scores.csv": text.render_scores_csv(report),
        "claims.csv": text.render_claims_csv(report.tables, verdicts),
    }
    return RenderedReport(texts, svgs, all_grids, summary)


def write_report(report: Report, rendered: RenderedReport, folder: Path, console: Console) -> None:
    """All files, and the report on the terminal."""
    # report.json comes last: the report is whole once it is there
    write_plots(rendered.svgs, folder / PLOTS_FOLDER)
    for name, content in rendered.texts.items():
        write_atomic(folder / name, content)
    outcomes.save_report(report, folder)
    print_report(rendered.grids, rendered.summary, rendered.texts[MARKDOWN_FILE], console, folder)


def make_table_grids(table: ReportTable, verdicts: Sequence[Verdict]) -> list[WordGrid]:
    """A table's scores, and its claims if it has any."""
    table_grids = [grids.make_scores_grid(table)]
    if verdicts:
        table_grids.append(grids.make_claims_grid(verdicts))
    return table_grids


# ---- plots ----


def draw_plots(report: Report, verdicts: Mapping[str, Sequence[Verdict]]) -> dict[str, str]:
    """File name without ending -> SVG, of what there is something to draw for."""
    svgs = {}
    headed_verdicts = []
    for table in report.tables:
        for verdict in verdicts[table.name]:
            headed_verdicts.append((table.heading, verdict))
        if not table.ids.size:
            continue
        for plot, draw_plot in PLOT_FUNCTIONS.items():
            svg = draw_plot(table)
            if svg:
                svgs[name_plot(table, plot)] = svg
    claims_svg = plots.draw_claims("Claims of the paper", headed_verdicts)
    if claims_svg:
        svgs[CLAIMS_PLOT] = claims_svg
    return svgs


def name_plot(table: ReportTable, plot: str) -> str:
    """The name of a table's plot, without ending."""
    return f"table{table.name}-{plot}"


def write_plots(svgs: Mapping[str, str], folder: Path) -> None:
    """The plots, and none of an earlier report that this one does not draw."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.svg"):
        if path.stem not in svgs:
            path.unlink()
    for name, svg in svgs.items():
        write_atomic(folder / f"{name}.svg", svg)


# ---- the whole report ----


def order_page_parts(
    report: Report, table_grids: Mapping[str, Sequence[WordGrid]], svgs: Mapping[str, str]
) -> list[WordGrid | PagePicture]:
    """The parts of the page: claims' picture, each table with its pictures, attention maps."""
    parts: list[WordGrid | PagePicture] = []
    if CLAIMS_PLOT in svgs:
        caption = PLOT_CAPTIONS[CLAIMS_PLOT]
        parts.append(PagePicture(caption, svgs[CLAIMS_PLOT]))
    for table in report.tables:
        parts += table_grids[table.name]
        for plot, caption in PLOT_CAPTIONS.items():
            name = name_plot(table, plot)
            if name in svgs:
                parts.append(PagePicture(caption, svgs[name]))
    if report.maps:
        images = "".join(map(page.embed_png, report.maps))
        parts.append(PagePicture(grids.caption_maps(report), images))
    return parts


def render_markdown_report(
    report: Report,
    all_grids: Iterable[WordGrid],
    summary: Sequence[str],
    notes: Sequence[str],
    plot_names: Iterable[str],
) -> str:
    """The whole report in Markdown; pictures lie beside it."""
    if report.maps:
        notes = [grids.caption_maps(report), *notes]
    summary = list(map(escape_markdown, summary))
    # the first two sentences are a paragraph, then a list
    parts = [f"# {REPORT_TITLE}\n", "\n".join(summary[:2]) + "\n"]
    if summary[2:]:
        parts += [*summary[2:], ""]
    parts += map(text.render_markdown_table, all_grids)
    parts.append("## Plots\n")
    paths = [f"{PLOTS_FOLDER}/{name}.svg" for name in plot_names]
    for number in range(1, len(report.maps) + 1):
        paths.append(outcomes.locate_map(Path(), number).as_posix())
    links = ""
    for path in paths:
        links += f"![{Path(path).stem}]({path})\n"
    parts.append(links)
    parts += ["\n\n".join(map(escape_markdown, notes)), ""]
    return "\n".join(parts)


def print_report(
    all_grids: Iterable[WordGrid], summary: Iterable[str], markdown: str, console: Console, folder: Path
) -> None:
    """On a terminal tables as they fit, elsewhere the Markdown."""
    if console.is_terminal:
        for grid in all_grids:
            console.print(*text.render_screen_tables(grid, console.width))
        for sentence in (*summary, grids.SCORES_NOTE, grids.CLAIMS_NOTE):
            console.print(sentence, markup=False, highlight=False)
    else:
        console.print(markdown, markup=False, highlight=False, soft_wrap=True)
    # whole lines, so that paths can be copied
    paths = [str(folder / name) for name in ("report.html", "report.md", "report.tex")]
    console.print("  ".join(paths), markup=False, highlight=False, soft_wrap=True)
