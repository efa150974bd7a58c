"""Files that somebody else has made: a fault is one line of bounded length that names the file."""

import os

import pytest

from compressors.errors import UsageError
from compressors.reading import parse_json, read_json_file

FAULTS = {
    "cut": (b'{"a": ', "not JSON"),
    "nothing": (b"", "not JSON"),
    "null byte": (b"\0", "not JSON"),
    "depth": (b"[" * 200_000, "not JSON"),
    "digits": (b"9" * 5000, "not JSON"),
    "not UTF-8": (b'{"a": "\xff"}', "not UTF-8"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_no_json_is_one_line(tmp_path, fault):
    content, message = FAULTS[fault]
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(UsageError, match=f"x.json: {message}") as caught:
        read_json_file(tmp_path / "x.json")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < len(str(tmp_path)) + 300


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "fifo.json")
    for name in ("fifo.json", ".", "/dev/zero"):
        with pytest.raises(UsageError, match="not a regular file"):
            read_json_file(tmp_path / name)
    for name, message in (
        ("gone", "no such file"),
        ("a\0b", "cannot be read"),
        ("x" * 5000, "cannot be read"),
    ):
        with pytest.raises(UsageError, match=message) as caught:
            read_json_file(tmp_path / name)
        assert len(str(caught.value)) < 600


def test_json_is_read(tmp_path):
    (tmp_path / "x.json").write_text('{"fuchs": "\u00fc"}')
    assert read_json_file(tmp_path / "x.json") == {"fuchs": "\u00fc"}


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path):
    (tmp_path / "x.json").write_text('{"fuchs": "\u00fc"}', encoding="utf-8-sig")
    assert read_json_file(tmp_path / "x.json") == {"fuchs": "\u00fc"}
    assert parse_json("\ufeff[1]", "x.jsonl, line 1") == [1]
