"""A sheet of scenes with their questions, to look a data set over at a glance."""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

COLUMNS, SIDE, MARGIN, LINE = 3, 252, 10, 13
WIDTH = SIDE + 330


def draw_contact_sheet(folder: Path, records: list[dict]) -> Image.Image:
    """Every record's picture, its questions and answers beside it."""
    rows = -(-len(records) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * WIDTH, rows * (SIDE + MARGIN)), "white")
    for index, record in enumerate(records):
        corner = (index % COLUMNS * WIDTH, index // COLUMNS * (SIDE + MARGIN))
        _cell(sheet, corner, folder / record["image"], record)
    return sheet


def _cell(sheet: Image.Image, corner: tuple[int, int], file: Path, record: dict) -> None:
    x, y = corner
    with Image.open(file) as picture:
        sheet.paste(picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS), corner)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=10)
    values = [turn["value"].removeprefix("<image>\n") for turn in record["conversations"]]
    for line, (question, answer) in enumerate(zip(values[::2], values[1::2], strict=True)):
        top = y + 4 + line * 2 * LINE
        pen.text((x + SIDE + MARGIN, top), question[:62], fill="black", font=font)
        pen.text(
            (x + SIDE + 2 * MARGIN, top + LINE - 2), f"{answer}   ({record['families'][line]})", "teal", font
        )
