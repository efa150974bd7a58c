"""The files of a report, and what the terminal shows of it.

report.md  report.tex  report.html        the whole report
scores.csv  claims.csv                    its numbers
latex/table*.tex                          each table alone, for \\input
plots/*.svg *.pdf *.png  plots/attention-*.png
report.json  outcomes/table*.npz          what it can be made from again (report_files.py)
looks.json                                at how many seeds this report and those before it judged claims
"""

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from rich.console import Console

from ablations import report_files
from ablations.claims.verdicts import Verdict
from ablations.looks_file import add_looks, note_looks
from ablations.outcomes import Report, ReportTable
from ablations.plain_sweeps import SWEEP_NAME
from ablations.report_files import PLOTS_FOLDER
from ablations.writing import csv_files, latex, markdown, page, screen
from ablations.writing.grids import claims_grid, comparison, gains_grid, scores_grid, sentences
from ablations.writing.grids.word_grid import WordGrid
from ablations.writing.page import PagePicture, PageSection
from ablations.writing.plots import curves, family_bars, gains, intervals, pareto, ranking
from compressors.spelling import spell_commands
from experiments.figures.style import PictureFiles, render_files
from experiments.runtime.files import write_atomic
from experiments.runtime.text_tables import escape_markdown

REPORT_TITLE = "Ablations"  # of several tables; one has its own
LATEX_FOLDER = "latex"
MARKDOWN_FILE = "report.md"
CLAIMS_GRID = "claims"  # the others say what a row scores or is
CLAIMS_PLOT = "claims"  # of all tables; the others are of one
PLOT_FUNCTIONS = {
    "curves": curves.draw_curves,
    "pareto": pareto.draw_pareto,
    "ranking": ranking.draw_ranking,
    "families": family_bars.draw_families,
    "gain": gains.draw_gain,
}
PLOT_CAPTIONS = {
    "curves": "accuracy over rates; a colour a compressor, grey those with one rate alone; dashed: with a "
    "query module; bands: 95 % t-interval over seeds.",
    "pareto": "accuracy against visual and query tokens; orange with query tokens, blue without; bars: 95 % "
    "t-interval over seeds; dashed: the front that nothing cheaper beats.",
    "ranking": "accuracy by compressor; orange with query tokens, blue without, grey without an image; bars: "
    "95 % t-interval over seeds.",
    "families": "accuracy by family of questions; orange with query tokens, blue without, grey without an "
    "image; lines at the ends: 95 % t-interval over seeds; dotted: chance.",
    "gain": "what the query module adds; 95 % intervals, paired; orange where they leave out zero.",
    CLAIMS_PLOT: "The claims and their intervals; green holds, red does not hold, "
    "blue is a tie, grey is not resolved.",
}


class RenderedReport(NamedTuple):
    """All that is written of a report, before anything is.

    texts    content by file name; pictures: plots by name, without ending
    """

    texts: dict[str, str]
    pictures: dict[str, PictureFiles]
    grids: list[WordGrid]
    summary: list[str]


def render_report(report: Report) -> RenderedReport:
    """A report in all its forms."""
    verdicts: dict[str, list[Verdict]] = {}
    table_grids: dict[str, dict[str, WordGrid]] = {}
    for table in report.tables:
        verdicts[table.name] = claims_grid.judge_own_claims(table)
        table_grids[table.name] = make_table_grids(report, table, verdicts[table.name])
    all_grids = [grid for named_grids in table_grids.values() for grid in named_grids.values()]
    pictures = draw_plots(report, verdicts)
    summary = sentences.summarize_claims(report, verdicts)
    notes = [scores_grid.SCORES_NOTE]
    if summary:
        notes.append(claims_grid.CLAIMS_NOTE)
    notes += [*sentences.list_published_scores(report), *sentences.describe_provenance(report)]
    title = title_report(report)
    texts = {
        MARKDOWN_FILE: render_markdown_report(report, all_grids, summary, notes, sorted(pictures)),
        "report.tex": latex.render_latex_document(all_grids, [*summary, *notes]),
        "report.html": page.render_html_page(
            title, order_page_parts(report, table_grids, pictures, summary), notes
        ),
        "scores.csv": csv_files.render_scores_csv(report),
        "claims.csv": csv_files.render_claims_csv(report.tables, verdicts),
    }
    for name, named_grids in table_grids.items():
        for kind, grid in named_grids.items():
            texts[f"{LATEX_FOLDER}/table{name}-{kind}.tex"] = latex.render_latex_tabular(grid) + "\n"
    return RenderedReport(texts, pictures, all_grids, summary)


def title_report(report: Report) -> str:
    """What stands above all of it: of a single table its own title."""
    if len(report.tables) == 1:
        table = report.tables[0]
        return table.title if table.heading.startswith(SWEEP_NAME) else scores_grid.title_table(table)
    return REPORT_TITLE


def write_report(report: Report, rendered: RenderedReport, folder: Path) -> None:
    """All files."""
    # first of all: whoever sees any of the others has looked
    add_looks(folder, note_looks(report.tables))
    # report.json comes last: the report is whole once it is there
    write_plots(rendered.pictures, folder / PLOTS_FOLDER)
    (folder / LATEX_FOLDER).mkdir(exist_ok=True)
    for name, content in rendered.texts.items():
        write_atomic(folder / name, content)
    report_files.save_report(report, folder)
    remove_other_files(folder / LATEX_FOLDER, "table*.tex", rendered.texts)
    outcome_names = [report_files.locate_outcomes(Path(), table.name).name for table in report.tables]
    remove_other_files(folder / report_files.OUTCOMES_FOLDER, "table*.npz", outcome_names)


def remove_other_files(folder: Path, pattern: str, kept_names: Iterable[str]) -> None:
    """Remove what an earlier report has written and this one does not have."""
    kept = {Path(name).name for name in kept_names}
    for path in folder.glob(pattern):
        if path.name not in kept:
            path.unlink()


def make_table_grids(report: Report, table: ReportTable, verdicts: Sequence[Verdict]) -> dict[str, WordGrid]:
    """A table's scores, what query modules add, and its claims if it has any, by kind; of rows that are
    compared the scores by family and the settings that tell rows apart, too."""
    if not table.baseline:
        table_grids = {"scores": scores_grid.make_scores_grid(table)}
    else:
        # the report has the title of its only table already
        title = "Accuracy and cost" if len(report.tables) == 1 else scores_grid.title_table(table)
        table_grids = {"scores": comparison.make_comparison_grid(table, title)}
        if table.family_names:
            table_grids["families"] = comparison.make_families_grid(table)
        settings_grid = comparison.make_settings_grid(table)
        if settings_grid is not None:
            table_grids["settings"] = settings_grid
    query_gains = gains_grid.make_gains_grid(table)
    if query_gains is not None:
        table_grids["gains"] = query_gains
    if verdicts:
        table_grids[CLAIMS_GRID] = claims_grid.make_claims_grid(table, verdicts)
    return table_grids


# ---- plots ----


def draw_plots(report: Report, verdicts: Mapping[str, Sequence[Verdict]]) -> dict[str, PictureFiles]:
    """File name without ending -> picture, of what there is something to draw for."""
    pictures = {}
    headed_verdicts = []
    for table in report.tables:
        for verdict in verdicts[table.name]:
            headed_verdicts.append((table.heading, verdict))
        if not table.ids.size:
            continue
        for plot, draw_plot in PLOT_FUNCTIONS.items():
            figure = draw_plot(table)
            if figure is not None:
                pictures[name_plot(table, plot)] = render_files(figure)
    claims_figure = intervals.draw_claims(headed_verdicts)
    if claims_figure is not None:
        pictures[CLAIMS_PLOT] = render_files(claims_figure)
    return pictures


def name_plot(table: ReportTable, plot: str) -> str:
    """The name of a table's plot, without ending."""
    return f"table{table.name}-{plot}"


def caption_plots(report: Report) -> dict[str, str]:
    """The name of each plot that a report can have, without ending -> what stands below it."""
    captions = {CLAIMS_PLOT: PLOT_CAPTIONS[CLAIMS_PLOT]}
    for table in report.tables:
        for plot in PLOT_FUNCTIONS:
            captions[name_plot(table, plot)] = f"{table.heading}: {PLOT_CAPTIONS[plot]}"
    return captions


def write_plots(pictures: Mapping[str, PictureFiles], folder: Path) -> None:
    """The plots, and none of an earlier report that this one does not draw."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.*"):
        is_plot = path.suffix[1:] in PictureFiles._fields and not path.stem.startswith("attention-")
        if is_plot and path.stem not in pictures:
            path.unlink()
    for name, picture in pictures.items():
        for ending, content in picture._asdict().items():
            write_atomic(folder / f"{name}.{ending}", content)


# ---- the whole report ----


def order_page_parts(
    report: Report,
    table_grids: Mapping[str, Mapping[str, WordGrid]],
    pictures: Mapping[str, PictureFiles],
    summary: Sequence[str],
) -> list[WordGrid | PagePicture | PageSection]:
    """The parts of the page: each table with its pictures, attention maps, then what the claims came to."""
    svgs = page.prefix_svg_ids({name: picture.svg for name, picture in pictures.items()})
    captions = caption_plots(report)
    parts: list[WordGrid | PagePicture | PageSection] = []
    claims_grids = []
    for table in report.tables:
        for kind, grid in table_grids[table.name].items():
            if kind == CLAIMS_GRID:
                claims_grids.append(grid)
            else:
                parts.append(grid)
        for plot in PLOT_FUNCTIONS:
            name = name_plot(table, plot)
            if name in svgs:
                parts.append(PagePicture(captions[name], svgs[name]))
    if report.maps:
        images = "".join(map(page.embed_png, report.maps))
        parts += [PageSection("Attention", []), PagePicture(sentences.caption_maps(report), images)]
    if summary:
        parts.append(PageSection("Claims", summary))
    if CLAIMS_PLOT in svgs:
        parts.append(PagePicture(captions[CLAIMS_PLOT], svgs[CLAIMS_PLOT]))
    return [*parts, *claims_grids]


def render_markdown_report(
    report: Report,
    all_grids: Iterable[WordGrid],
    summary: Sequence[str],
    notes: Sequence[str],
    plot_names: Collection[str],
) -> str:
    """The whole report in Markdown; pictures lie beside it."""
    if report.maps:
        notes = [sentences.caption_maps(report), *notes]
    summary = list(map(escape_markdown, summary))
    parts = [f"# {escape_markdown(title_report(report))}\n"]
    if summary:  # the first two sentences are a paragraph, then a list
        parts.append("\n".join(summary[:2]) + "\n")
    if summary[2:]:
        parts += [*summary[2:], ""]
    parts += map(markdown.render_markdown_table, all_grids)
    if plot_names or report.maps:
        parts.append("## Plots\n")
    captions = caption_plots(report)
    for name in plot_names:
        picture = f"![{name}]({PLOTS_FOLDER}/{quote(name)}.svg)"
        parts.append(f"{picture}\n\n{escape_markdown(captions[name])}\n")
    for number in range(1, len(report.maps) + 1):
        path = report_files.locate_map(Path(), number)
        parts.append(f"![{path.stem}]({path.as_posix()})\n")
    parts += ["\n\n".join(map(escape_markdown, notes)), ""]
    return "\n".join(parts)


def print_report(rendered: RenderedReport, console: Console, folder: Path) -> None:
    """On a terminal tables as they fit, elsewhere the Markdown."""
    if console.is_terminal:
        for grid in rendered.grids:
            shown_grid = dataclasses.replace(grid, notes=list(map(spell_commands, grid.notes)))
            console.print(*screen.render_screen_tables(shown_grid, console.width))
        notes = [scores_grid.SCORES_NOTE]
        if rendered.summary:
            notes.append(claims_grid.CLAIMS_NOTE)
        for sentence in (*rendered.summary, *notes):
            console.print(sentence, markup=False, highlight=False)
    else:
        shown_text = spell_commands(rendered.texts[MARKDOWN_FILE])
        console.print(shown_text, markup=False, highlight=False, soft_wrap=True)
    # whole lines, so that paths can be copied
    paths = [str(folder / name) for name in ("report.html", "report.md", "report.tex")]
    console.print("  ".join(paths), markup=False, highlight=False, soft_wrap=True)
