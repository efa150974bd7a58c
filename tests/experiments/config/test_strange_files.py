"""YAML and names that strangers wrote: one line before there is a cell, and nothing leads out."""

import os
from pathlib import Path

import pytest

from compressors.errors import UsageError
from compressors.key_value import parse_settings
from experiments.config.cells import make_cells
from experiments.config.overrides import parse_value
from experiments.config.presets import read_yaml
from experiments.config.sources import resolve_source
from experiments.config.table_files import check_table_name
from experiments.config.tables import load_table_file

FAULTS = {
    "digits": b"seed: " + b"9" * 5000,
    "depth": b"a: " + b"[" * 20_000,
    "null byte": b"seed: \0",
    "not UTF-8": b"seed: \xff\xfe",
    "unknown tag": b"a: !!python/object/apply:os.system [id]",
    "empty number": b"a: !!int ''",
    "no date": b"a: !!timestamp x",
    "no switch": b"a: !!bool x",
    "words in words": b"'5'",
    "itself": b"a: &a [*a]",
    "a number": b"5",
    "half a lookup": b"a: ${",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_yaml_that_is_none_is_one_line(tmp_path, fault):
    path = tmp_path / "x.yaml"
    path.write_bytes(FAULTS[fault])
    with pytest.raises(UsageError, match="x.yaml: not ") as caught:
        read_yaml(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < len(str(path)) + 300


@pytest.mark.parametrize("word", ["12:30", "9:1", "010", "0x1F", "1_000", "-1:30", "1:30.5", "0b11", "007"])
def test_numbers_of_old_yaml_are_words(tmp_path, word):
    path = tmp_path / "x.yaml"
    lines = [
        f"a: {word}",
        f"b: [{word}, '{word}']  # {word}",
        f"{word}: {{c: {word} }}",
        "d: |",
        f"  {word} {word}",
    ]
    path.write_text("\n".join([*lines, ""]))
    content = read_yaml(path)
    assert content == {"a": word, "b": [word, word], word: {"c": word}, "d": f"{word} {word}\n"}
    assert parse_value(f"[{word},2]", "x") == [word, 2] and parse_value(word, "x") == word
    with pytest.raises(UsageError, match="sap.rate='.*': expected int"):
        make_cells(parse_settings(["compressor=sap", f"sap.rate={word}"]))


def test_other_numbers_stay_numbers(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("a: [0, -3, 10, 0.5, -0.25, 1e-3, 5e-5, 1.0e+3, .5, 010]\n")
    assert read_yaml(path)["a"] == [0, -3, 10, 0.5, -0.25, 1e-3, 5e-5, 1000.0, 0.5, "010"]


def test_labels_of_a_table_are_what_they_say(tmp_path):
    path = tmp_path / "t.yaml"
    path.write_text("rows:\n- {label: 9:1, overrides: [compressor=sap]}\n- {label: 010, absent: x}\n")
    assert [row.label for row in load_table_file(str(path), {}).rows] == ["9:1", "010"]


def test_a_fifo_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.yaml")
    for setting in ("preset", "table"):
        with pytest.raises(UsageError, match="x.yaml: "):
            if setting == "preset":
                make_cells(parse_settings([f"preset={tmp_path / 'x.yaml'}"]))
            else:
                load_table_file(str(tmp_path / "x.yaml"), {})


@pytest.mark.parametrize(
    "override",
    [
        "prompt.system=${oc.env:HOME}",
        "llm.source=a/${oc.env:HOME}",
        "seed=${oc.env:HOME}",
        "data.train=[${oc.env:HOME}]",
        "matryoshka.host=${oc.env:HOME}",
        "matryoshka.knobs={a: '${oc.env:HOME}'}",
    ],
)
def test_nothing_is_looked_up_in_the_environment(tmp_path, override):
    compressor = "compressor=matryoshka"
    (tmp_path / "t.yaml").write_text(f"rows:\n- {{label: a, overrides: ['{compressor}', \"{override}\"]}}\n")
    for make in (
        lambda: make_cells(parse_settings([compressor, override])),
        lambda: load_table_file(str(tmp_path / "t.yaml"), {}),
    ):
        with pytest.raises(UsageError) as caught:
            make()
        assert override.partition("=")[0] in str(caught.value)
        assert os.environ["HOME"] not in str(caught.value).replace(str(tmp_path), "")


def test_a_preset_is_no_way_to_the_environment(tmp_path):
    (tmp_path / "p.yaml").write_text("prompt: {system: '${oc.env:HOME}'}\n")
    with pytest.raises(UsageError, match="nothing is looked up in"):
        make_cells(parse_settings([f"preset={tmp_path / 'p.yaml'}"]))
    with pytest.raises(UsageError, match="prompt.user=.*nothing is looked up in"):
        make_cells({"prompt.user": ["${"]})  # nor half a way: settings are written down as YAML


@pytest.mark.parametrize(
    "name", ["..", "../config", "/etc", "", "tiny", "tiny/../tiny/llm", "tiny/llm/", "a\0b", "a" * 5000]
)
def test_an_asset_is_one_of_the_list(name):
    with pytest.raises(
        UsageError, match="no such asset; there are: asset:tiny/llm, asset:tiny/tower"
    ) as caught:
        resolve_source(f"asset:{name}")
    assert len(str(caught.value)) < 300
    assert Path(resolve_source("asset:tiny/llm"), "config.json").is_file()


@pytest.mark.parametrize("name", ["../x", "/x", "a/b", "", ".", "a\0", "a\n", "<b>", 'a"b', "a" * 101, "-x"])
def test_results_are_called_by_plain_names(name):
    with pytest.raises(UsageError, match="table name"):
        check_table_name(name)
    assert check_table_name("größer (2), 3.5-b") == "größer (2), 3.5-b"
