"""A sheet of scenes with their questions, to look a data set over at a glance."""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

SHEET_COLUMNS, CELL_SIDE, CELL_MARGIN, LINE_HEIGHT = 3, 252, 10, 13
CELL_WIDTH = CELL_SIDE + 330


def draw_contact_sheet(folder: Path, records: list[dict]) -> Image.Image:
    """Every record's picture, its questions and answers beside it."""
    rows = -(-len(records) // SHEET_COLUMNS)
    sheet = Image.new("RGB", (SHEET_COLUMNS * CELL_WIDTH, rows * (CELL_SIDE + CELL_MARGIN)), "white")
    for index, record in enumerate(records):
        corner = (index % SHEET_COLUMNS * CELL_WIDTH, index // SHEET_COLUMNS * (CELL_SIDE + CELL_MARGIN))
        _draw_cell(sheet, corner, folder / record["image"], record)
    return sheet


def _draw_cell(sheet: Image.Image, corner: tuple[int, int], file: Path, record: dict) -> None:
    x, y = corner
    with Image.open(file) as picture:
        sheet.paste(picture.resize((CELL_SIDE, CELL_SIDE), Image.Resampling.LANCZOS), corner)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=10)
    values = [turn["value"].removeprefix("<image>\n") for turn in record["conversations"]]
    for line, (question, answer) in enumerate(zip(values[::2], values[1::2], strict=True)):
        top = y + 4 + line * 2 * LINE_HEIGHT
        pen.text((x + CELL_SIDE + CELL_MARGIN, top), question[:62], fill="black", font=font)
        pen.text(
            (x + CELL_SIDE + 2 * CELL_MARGIN, top + LINE_HEIGHT - 2),
            f"{answer}   ({record['families'][line]})",
            "teal",
            font,
        )
