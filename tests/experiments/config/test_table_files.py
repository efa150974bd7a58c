"""Tables by name: those of every package that offers a folder, found without looking for any package."""

import sys
import types

import pytest
from outside import offer_parts

from compressors.errors import UsageError
from experiments.config import table_files, tables

ROW = "rows: [{label: a, overrides: [compressor=sap]}]\n"


@pytest.fixture
def offer(monkeypatch):
    """Make packages offer folders of tables, {package: folder}, and nobody else."""

    def call(**folders):
        offers = []
        for package, folder in folders.items():
            module = types.ModuleType(f"{package}_tables")
            module.FOLDER = folder
            monkeypatch.setitem(sys.modules, module.__name__, module)
            offers.append((package, f"{module.__name__}:FOLDER"))
        offer_parts(monkeypatch, table_files.TABLE_GROUP, *offers)

    return call


def make_folder(path, *names):
    path.mkdir()
    for name in names:
        (path / f"{name}.yaml").write_text(ROW)
    return path


def test_this_project_offers_its_tables():
    folder = table_files.find_table_folders()["ablations"]
    assert folder.parts[-2:] == ("ablations", "tables") and (folder / "table3.yaml").is_file()


def test_an_outside_package_offers_tables(offer, tmp_path):
    ours = make_folder(tmp_path / "ours", "table3")
    theirs = make_folder(tmp_path / "theirs", "table7", "widths")
    (theirs / "no_rows.yaml").write_text("- a list\n")
    offer(ours=ours, theirs=theirs)
    assert table_files.list_paper_tables() == ["3", "7"] and table_files.list_project_tables() == ["widths"]
    found = tables.load_table_files(["all", "widths"], {})
    assert [(table.name, table.path) for table in found] == [
        ("3", ours / "table3.yaml"),
        ("7", theirs / "table7.yaml"),
        ("widths", theirs / "widths.yaml"),
    ]
    assert [table.heading for table in found] == ["Table 3", "Table 7", "widths"]
    assert table_files.spell_table("widths", theirs / "widths.yaml") == "widths"
    elsewhere = make_folder(tmp_path / "elsewhere", "widths") / "widths.yaml"
    assert table_files.spell_table("widths", elsewhere) == str(elsewhere)
    with pytest.raises(UsageError, match=r"table=9: no table of that name in .*ours, .*theirs; there are"):
        table_files.find_table_file("9")


def test_a_name_of_two_packages_is_refused_until_a_path_is_given(offer, tmp_path):
    ours = make_folder(tmp_path / "ours", "table3", "widths")
    theirs = make_folder(tmp_path / "theirs", "table3")
    offer(ours=ours, theirs=theirs)
    with pytest.raises(UsageError) as error:
        tables.load_table_file("3", {})
    assert f"ours ({ours}/table3.yaml) and theirs ({theirs}/table3.yaml)" in str(error.value)
    assert tables.load_table_file("widths", {}).path == ours / "widths.yaml"
    assert tables.load_table_file(f"{theirs}/table3.yaml", {}).path == theirs / "table3.yaml"


def test_without_an_installed_package_one_line_says_what_to_do(offer, tmp_path):
    offer()
    with pytest.raises(UsageError, match="slothkit.tables; `pip install -e .`"):
        tables.load_table_file("3", {})
    path = make_folder(tmp_path / "mine", "own") / "own.yaml"
    assert tables.load_table_file(str(path), {}).name == "own"  # a path needs nobody


def test_an_offer_that_does_not_load_is_named(monkeypatch):
    offer_parts(monkeypatch, table_files.TABLE_GROUP, ("broken", "no_such_package:FOLDER"))
    with pytest.raises(UsageError, match="'broken' of entry point no_such_package:FOLDER does not load"):
        table_files.list_named_tables()


def test_two_packages_of_one_name_are_refused(monkeypatch):
    offers = [("tables", "one.tables:FOLDER"), ("tables", "two.tables:FOLDER")]
    offer_parts(monkeypatch, table_files.TABLE_GROUP, *offers)
    monkeypatch.setitem(sys.modules, "one", types.ModuleType("one"))
    module = types.ModuleType("one.tables")
    module.FOLDER = "."
    monkeypatch.setitem(sys.modules, "one.tables", module)
    with pytest.raises(UsageError, match="'tables' is offered as one.tables:FOLDER and as two.tables:FOLDER"):
        table_files.list_named_tables()
