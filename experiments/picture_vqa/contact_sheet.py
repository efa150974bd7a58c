"""A sheet of scenes with their questions, to look a data set over at a glance."""

from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

SHEET_COLUMNS = 3
# All in pixels.
CELL_SIDE = 252  # of the picture, one and a half times its size
CELL_WIDTH = CELL_SIDE + 330  # with its questions beside it
CELL_MARGIN = 10
LINE_HEIGHT = 13
QUESTION_LENGTH = 62  # characters that fit beside the picture


def draw_contact_sheet(folder: Path, records: list[dict[str, Any]]) -> Image.Image:
    """Every record's picture, its questions and answers beside it. `folder` is the data set's."""
    rows = -(-len(records) // SHEET_COLUMNS)  # rounded up
    cell_height = CELL_SIDE + CELL_MARGIN
    sheet = Image.new("RGB", (SHEET_COLUMNS * CELL_WIDTH, rows * cell_height), "white")
    for index, record in enumerate(records):
        row, column = divmod(index, SHEET_COLUMNS)
        _draw_cell(sheet, column * CELL_WIDTH, row * cell_height, folder / record["image"], record)
    return sheet


def _draw_cell(sheet: Image.Image, x: int, y: int, file: Path, record: dict[str, Any]) -> None:
    """One record: two lines a turn, the question and below it the answer with its family."""
    with Image.open(file) as picture:
        sheet.paste(picture.resize((CELL_SIDE, CELL_SIDE), Image.Resampling.LANCZOS), (x, y))
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=10)
    texts = [turn["value"].removeprefix("<image>\n") for turn in record["conversations"]]
    x += CELL_SIDE + CELL_MARGIN
    y += 4
    for question, answer, family in zip(texts[::2], texts[1::2], record["families"], strict=True):
        pen.text((x, y), question[:QUESTION_LENGTH], fill="black", font=font)
        answer_line = f"{answer}   ({family})"
        pen.text((x + CELL_MARGIN, y + LINE_HEIGHT - 2), answer_line, fill="teal", font=font)
        y += 2 * LINE_HEIGHT
