"""Values that nobody should write, and what may happen to text, trees and files."""

import copy
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WORDS = (
    *("", " ", "-1", "0", "1", "2", "3", "1.5", "-0.0", "nan", "inf", "-inf", "1e3", "1e400", "1e-400"),
    *("9" * 30, "9" * 5000, "0x10", "1_000", "\u0663", "true", "false", "null", "None", "yes", "~"),
    *("[]", "[1,2]", "[1,[2]]", "{}", "{a: 1}", "[", "}", "'", '"', "a,b", ",", ",,", "a=b", "=", "*a", "&a"),
    *("!!python/object:os.system", "!!binary x", "${oc.env:HOME}", "${", "${nothing}", "???", "../..", "."),
    *("/dev/null", "/dev/full", "/proc/nothing", "file\n", "\t", "\n", "a" * 300, "b" * 50_000, "\u00e9"),
    *("\U0001f9a5", "\u202e", "\udcff", "<image>", "--", "-", "%s", "{0}", "\\", "asset:", "asset:../.."),
    *("+", "cache:x", "open_clip:x", "sap", "sap+embq", "none", "sap+", "identity", "2020-01-01", "1:30"),
    *("[" * 1000 + "]" * 1000, "@", "1,1", "0,1", "[0]", "[-1]", "sap,sap", "cpu", "cuda", "64", ".5"),
)
VALUES = (
    *(None, True, False, -1, 0, 1, 2, 3, 5, 7, 64, 10**30, 1.5, -0.5, 0.0, float("nan"), float("inf")),
    *("", "x", "a" * 300, "\ud800", "\x00", "<image>", "<video>"),
    *([], [1], [0, 0], [2, -1], ["x"], [[]], {}, {"a": 1}),
)


def draw_word(draw: random.Random) -> str:
    """One of the odd words, now and then two of them."""
    if draw.random() < 0.1:
        return draw.choice(WORDS) + draw.choice(WORDS)
    return draw.choice(WORDS)


def draw_value(draw: random.Random) -> Any:
    """One of the odd values, now and then an odd word."""
    if draw.random() < 0.2:
        return draw_word(draw)
    return copy.deepcopy(draw.choice(VALUES))


def harm_text(draw: random.Random, text: str) -> str:
    """A span deleted, doubled, replaced or moved, or all that comes after it."""
    start = draw.randrange(len(text) + 1)
    end = min(len(text), start + draw.choice([1, 2, 5, 20, 100]))
    before, span, after = text[:start], text[start:end], text[end:]
    way = draw.randrange(5)
    if way == 0:
        return before + after
    if way == 1:
        return before + span * draw.choice([2, 3, 50]) + after
    if way == 2:
        return before + draw_word(draw) + after
    if way == 3:
        return after + span + before
    return before


def harm_bytes(draw: random.Random, content: bytes) -> bytes:
    """Emptied, cut, some bytes changed, or something added."""
    way = draw.randrange(5)
    start = draw.randrange(len(content) + 1)
    if way == 0:
        return b""
    if way == 1:
        return content[:start]
    if way == 2:
        return content[:start] + draw.randbytes(8) + content[start:]
    if way == 3:
        return content + draw.randbytes(8)
    changed = bytearray(content)
    for _ in range(draw.choice([1, 4, 64])):
        if changed:
            # headers are short, and there most is decided
            reach = len(changed) if draw.random() < 0.5 else min(len(changed), 200)
            changed[draw.randrange(reach)] = draw.randrange(256)
    return bytes(changed)


def list_places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) in a tree of mappings and lists."""
    keys: Any = ()
    if isinstance(tree, dict):
        keys = list(tree)
    elif isinstance(tree, list):
        keys = range(len(tree))
    for key in keys:
        yield tree, key
        yield from list_places(tree[key])


def harm_tree(draw: random.Random, tree: Any) -> Any:
    """A copy in which one to three places are replaced, deleted, wrapped, doubled or renamed."""
    whole = [copy.deepcopy(tree)]
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        container, key = draw.choice(list(list_places(whole)))
        way = draw.randrange(6)
        if way == 0 and container is not whole:
            del container[key]
        elif way == 1:
            container[key] = [container[key]]
        elif way == 2 and isinstance(container, dict):
            container[draw_word(draw)] = container.pop(key)
        elif way == 3 and isinstance(container, list) and container is not whole:
            container.append(copy.deepcopy(container[key]))
        elif way == 4 and isinstance(container[key], str):
            container[key] = harm_text(draw, container[key])
        else:
            container[key] = draw_value(draw)
    return whole[0]


FILE_HARMS = ("cut", "flip", "empty", "delete", "directory", "fifo", "link to nothing", "link to itself")


def harm_file(draw: random.Random, path: Path, way: str) -> None:
    """One of FILE_HARMS."""
    content = path.read_bytes()
    if way in ("cut", "flip", "empty"):
        changed = bytearray(content)
        if way == "cut":
            changed = changed[: draw.randrange(len(changed) + 1)]
        elif way == "empty":
            changed.clear()
        elif changed:
            changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
        path.unlink()  # it may be a second name of a file that stays
        path.write_bytes(changed)
        return
    path.unlink()
    if way == "directory":
        path.mkdir()
        (path / "inside").write_bytes(content)
    elif way == "fifo":
        os.mkfifo(path)
    elif way == "link to nothing":
        path.symlink_to(path.with_name("nothing"))
    elif way == "link to itself":
        path.symlink_to(path.name)


def copy_tree(source: Path, target: Path) -> Path:
    """A folder whose files may be harmed without harm to `source`'s."""
    shutil.copytree(source, target, symlinks=True)
    return target
