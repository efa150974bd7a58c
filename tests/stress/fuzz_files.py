"""Files of every format with odd content: YAML, JSON, model folders, pictures, reports, Parquet's source."""

import json
import os
import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from factories import picture
from harm import FILE_HARMS, harm_bytes, harm_file, harm_text, harm_tree
from PIL import Image
from stock import ROOT, EmptyRunner, Stock, check_command, list_small_settings, replace_settings
from trials import Kind, Trial

from ablations.report_files import load_report
from compressors.errors import UsageError
from experiments import chat
from experiments.data import llava, parquet
from experiments.models.saved import open_picture
from experiments.sweep import __main__ as sweep
from llm_adapters.released import __main__ as released

PRESETS = sorted((ROOT / "experiments" / "presets").glob("*.yaml"))
TABLES = sorted((ROOT / "ablations" / "tables").glob("*.yaml"))
PICTURE_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA")
MODES = ("RGB", "L", "1", "P", "RGBA", "CMYK", "I;16", "F", "LA")


def make_kinds(stock: Stock) -> dict[str, Kind]:
    """A kind for each format and reader."""
    tower, llm = stock.backbones / "tower", stock.backbones / "llm"
    return {
        "preset.yaml": partial(draw_yaml, PRESETS, "preset"),
        "table.yaml": partial(draw_yaml, TABLES, "table"),
        "LLaVA JSON": partial(draw_llava, stock, check_samples),
        "LLaVA JSON, planned": partial(draw_llava, stock, partial(check_plan, stock)),
        "LLaVA JSON, trained on": partial(draw_llava, stock, partial(check_sweep, stock)),
        "LLaVA JSON to Parquet": partial(draw_llava, stock, check_parquet),
        "saved model": partial(draw_folder, stock.model, partial(check_chat, stock)),
        "tower folder": partial(draw_folder, tower, partial(check_source, stock, "tower")),
        "LLM folder": partial(draw_folder, llm, partial(check_source, stock, "llm")),
        "released checkpoint": partial(draw_folder, stock.released, check_released),
        "report": partial(draw_folder, stock.report, check_report),
        "picture": draw_picture,
    }


# ---- content ----


def harm_content(draw: random.Random, content: bytes, parse: Callable, write: Callable) -> bytes:
    """Bytes, text or what the text says, changed."""
    way = draw.random()
    if way < 0.15:
        return harm_bytes(draw, content)
    if way < 0.35:
        return harm_text(draw, content.decode()).encode(errors="surrogatepass")
    return write(harm_tree(draw, parse(content))).encode(errors="surrogatepass")


def harm_json(draw: random.Random, content: bytes) -> bytes:
    """A JSON file, changed."""
    return harm_content(draw, content, json.loads, partial(json.dumps, ensure_ascii=draw.random() < 0.5))


def harm_yaml(draw: random.Random, content: bytes) -> bytes:
    """A YAML file, changed."""
    return harm_content(draw, content, yaml.safe_load, partial(yaml.safe_dump, allow_unicode=True))


def write_harmed(draw: random.Random, source: Path, target: Path) -> str:
    """A harmed copy of a file, by its format; what stands in its head."""
    content = source.read_bytes()
    if draw.random() < 0.03:
        target.write_bytes(content)
        way = draw.choice(FILE_HARMS)
        harm_file(draw, target, way)
        return f"{target.name}: {way}"
    if source.suffix == ".json":
        content = harm_json(draw, content)
    elif source.suffix == ".yaml":
        content = harm_yaml(draw, content)
    else:
        content = harm_bytes(draw, content)
    target.unlink(missing_ok=True)
    target.write_bytes(content)
    return f"{target.name}: {len(content)} bytes {content[:200]!r}"


# ---- kinds ----


def draw_yaml(sources: list[Path], key: str, draw: random.Random, folder: Path) -> Trial:
    """A table or preset of the user's own, planned."""
    target = folder / f"mine-{key}.yaml"
    text = write_harmed(draw, draw.choice(sources), target)
    arguments = ["--plan", f"{key}={target}", "out=out"]
    return Trial(text, partial(check_command, sweep.main, arguments, False))


def draw_llava(stock: Stock, check: Callable[[Path], None], draw: random.Random, folder: Path) -> Trial:
    """Data with its pictures."""
    target = folder / "data.json"
    for path in stock.backbones.glob("*.png"):
        os.link(path, folder / path.name)
    text = write_harmed(draw, stock.backbones / "data.json", target)
    return Trial(text, partial(check, target))


def draw_folder(source: Path, check: Callable[[Path], None], draw: random.Random, folder: Path) -> Trial:
    """A folder with one harmed file."""
    target = folder / "folder"
    shutil.copytree(source, target, copy_function=os.link)
    path = draw.choice(sorted(path for path in source.rglob("*") if path.is_file()))
    inside = target / path.relative_to(source)
    inside.unlink()  # the other name of a file that stays
    return Trial(write_harmed(draw, path, inside), partial(check, target))


def draw_picture(draw: random.Random, folder: Path) -> Trial:
    """A picture of any mode and format."""
    path = folder / "picture"
    kind, mode = draw.choice(PICTURE_FORMATS), draw.choice(MODES)
    image: Any = picture(draw.randrange(9), (draw.randrange(1, 30), draw.randrange(1, 30)))
    image = Image.new("I;16", (9, 9)) if mode == "I;16" else image.convert(mode.replace("LA", "RGBA"))
    try:
        image.save(path, kind)
    except (OSError, KeyError, ValueError):  # a format that has no such mode
        picture(0, (9, 9)).save(path, "PNG")
    path.write_bytes(harm_bytes(draw, path.read_bytes()))
    text = f"{kind} {mode} {path.read_bytes()[:100]!r}"
    return Trial(text, partial(expect_usage_error, partial(open_picture, path)))


# ---- readers ----


def expect_usage_error(call: Callable[[], object]) -> None:
    """It works, or an error that a command prints as one line says in short why not."""
    try:
        call()
    except (UsageError, OSError) as error:
        words = str(error)
        assert len(words) < 1000, f"{len(words)} characters: {words[:100]}"


def check_samples(path: Path) -> None:
    """Data are read, asked one question at a time, and their pictures opened."""
    expect_usage_error(partial(read_samples, path))


def read_samples(path: Path) -> None:
    """All that a run reads of its data."""
    for sample in llava.split_questions(llava.load_samples(path)):
        for number in range(len(sample.images)):
            llava.open_image(sample, number)


def check_plan(stock: Stock, path: Path) -> None:
    """A sweep over the data is planned."""
    check_command(sweep.main, ["--plan", *set_data(stock, path)], False)


def check_sweep(stock: Stock, path: Path) -> None:
    """A sweep over the data runs."""
    check_command(sweep.main, set_data(stock, path))


def set_data(stock: Stock, path: Path) -> list[str]:
    """Settings of a sweep over data."""
    roles = [f"data.{role}={path}" for role in ("pretrain", "train", "test")]
    return replace_settings(list_small_settings(stock), roles)


def check_parquet(path: Path) -> None:
    """Data are written as Parquet."""
    check_command(parquet.main, [str(path), "data.parquet"])


def check_chat(stock: Stock, folder: Path) -> None:
    """A saved model is asked."""
    check_command(chat.main, [str(stock.picture), "what ?", f"model={folder}", "max_new_tokens=2"])


def check_source(stock: Stock, part: str, folder: Path) -> None:
    """A sweep with such a backbone: its model is built and checked."""
    arguments = replace_settings(list_small_settings(stock), [f"{part}.source={folder}"])
    check_command(partial(sweep.main, runner=EmptyRunner(Path("log"))), arguments)


def check_released(folder: Path) -> None:
    """A released checkpoint is converted."""
    check_command(released.main, ["convert", str(folder), "converted"])


def check_report(folder: Path) -> None:
    """A report is read."""
    expect_usage_error(partial(load_report, folder))
