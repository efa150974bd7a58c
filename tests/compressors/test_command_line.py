"""The one grammar: words, settings, flags, what is said about the others, and how a command ends."""

import errno
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from compressors import command_line, setting_fields
from compressors.command_line import Command
from compressors.errors import UsageError
from compressors.key_value import parse_settings, split_at_commas
from compressors.setting_fields import collect_settings, setting


@dataclass(frozen=True)
class Inner:
    """A section."""

    depth: int = setting(2, "how deep", low=1, below=9)


@dataclass(frozen=True)
class Options:
    """What the command of these tests may be told."""

    count: int = setting(3, "how many", low=1, was=("data-rows",))
    share: float = setting(0.5, "how much of it", above=0)
    name: str = setting("sap", "a word")
    to: Path = setting(Path("out"), "folder to write to")
    limit: int | None = setting(None, "only the first")
    mode: str = setting("a", "which way", choices=("a", "b"))
    late: str | None = setting(None, "listed when asked", choices=lambda: (None, *LATE))
    sizes: tuple[int, ...] = setting((1, 2), "several", low=1)
    quick: bool = setting(False, "less of it")


LATE = ["x"]


@dataclass(frozen=True)
class Nested:
    """Settings inside a section, beside a field that is none."""

    inner: Inner = field(default_factory=Inner)
    parts: dict = field(default_factory=dict)
    files: list[str] = setting(["a.json"], "files")


@dataclass(frozen=True)
class Required:
    """A setting without a default."""

    out: Path = setting(None, "where the cells are", required=True)


COMMAND = Command("python -m command [WORD ...]", "Does it.", Options, words=(0, None))


def options(*arguments: str) -> Options:
    return COMMAND.read(arguments).options


# ---- values ----


def test_values_have_the_type_of_their_setting():
    read = options("count=4", "share=1", "name=1e3", "to=a/b", "limit=7", "mode=b", "sizes=3,4", "quick=true")
    expected = Options(
        count=4, share=1.0, name="1e3", to=Path("a/b"), limit=7, mode="b", sizes=(3, 4), quick=True
    )
    assert read == expected and isinstance(read.share, float)
    assert options("limit=null").limit is None
    assert options("count=1e2").count == 100 and options("count=+5").count == 5
    for text in ("inf", "1e400"):  # beyond a float
        with pytest.raises(UsageError, match="share=inf: must be a finite number"):
            options(f"share={text}")
    with pytest.raises(UsageError, match="count=inf: expected int, got float"):
        options("count=1e400")
    # quotes hold a comma together, and are no part of the value
    assert options('to="a, b"').to == Path("a, b") and options("name='a,b'").name == "a,b"
    assert options("count=12345678901234567891").count == 12345678901234567891  # no float on the way
    assert options() == Options()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("count=three", "count='three': expected int, got str"),
        ("count=1.5", "count=1.5: expected int, got float"),
        ("count=true", "count=True: expected int, got bool"),
        ("count=0", "count=0: must be at least 1"),
        ("count=1,2", "count=1,2: takes one value"),
        ("count=null", "count='null': expected int"),
        ("share=0", "share=0.0: must be more than 0"),
        ("share=nan", "share=nan: must be more than 0"),
        ("mode=c", "mode=c: must be one of a, b"),
        ("late=y", "late=y: must be one of null, x"),
        ("sizes=1,0", "sizes=0: must be at least 1"),
        ("sizes=1,x", "sizes='x': expected int"),
        ("quick=1", "quick=1: expected bool"),
        ("cuont=4", "cuont=4: no setting of this command; did you mean 'count'?"),
    ],
)
def test_bad_values_are_one_line(argument, message):
    with pytest.raises(UsageError) as caught:
        options(argument)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_choices_may_be_listed_when_they_are_asked_for(monkeypatch):
    monkeypatch.setitem(globals(), "LATE", ["x", "y"])
    assert options("late=y").late == "y" and options("late=null").late is None
    assert collect_settings(Options)["late"].choices == (None, "x", "y")
    assert collect_settings(Options)["count"].choices == ()
    assert "listed when asked (null, x, y)" in COMMAND.help()


def test_settings_of_sections_have_dotted_paths():
    settings = collect_settings(Nested)
    assert list(settings) == ["inner.depth", "files"]
    assert (settings["inner.depth"].default, settings["inner.depth"].help) == (2, "how deep")
    assert settings["inner.depth"].rules == {"low": 1, "below": 9}
    assert Nested().files == ["a.json"] and Nested().files is not Nested().files
    with pytest.raises(UsageError, match="inner.depth=9: must be less than 9"):
        setting_fields.check_bounds("inner.depth", 9, settings["inner.depth"].rules)


def test_a_setting_without_a_default_is_asked_for():
    command = Command("python -m command", "Does it.", Required)
    assert command.read(["out=runs"]).options.out == Path("runs")
    with pytest.raises(UsageError, match="out= is missing: where the cells are"):
        command.read([])
    assert "out=..." in command.help()


# ---- the line ----


def test_commas_split_only_at_top_level():
    assert split_at_commas("1,[2,3],{a: 4, b: 5},'6,7',\"8,9\"") == [
        "1",
        "[2,3]",
        "{a: 4, b: 5}",
        "'6,7'",
        '"8,9"',
    ]
    assert parse_settings(["a=1, 2", "b="]) == {"a": ["1", "2"], "b": [""]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a=[1,2"], "a=.1,2: a bracket is not closed"),
        (["a='1"], "a='1: a quote is not closed"),
        (["a"], "'a': expected key=value"),
        (["=3"], "'=3': expected key=value"),
        (["a=1", "a=2"], "a is given twice; for both write a=1,2"),
    ],
)
def test_malformed_settings(arguments, message):
    with pytest.raises(UsageError, match=message):
        parse_settings(arguments)


def test_words_settings_and_flags_come_in_any_order():
    command = Command("python -m command", "Does it.", Options, words=(0, None), flags=("--plan",))
    line = command.read(["one.png", "count=4", "--plan", "what is 1 + 1 = ?", "two.png"])
    assert line.words == ["one.png", "what is 1 + 1 = ?", "two.png"]
    assert line.options.count == 4 and line.flags == {"--plan"} and line.overrides == {}


def test_a_file_with_an_equals_sign_is_a_word(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b.png").write_text("")
    (tmp_path / "--odd.png").write_text("")
    assert COMMAND.read(["a=b.png", "--odd.png"]).words == ["a=b.png", "--odd.png"]
    with pytest.raises(UsageError, match="no setting of this command"):
        COMMAND.read(["a=c.png"])
    # a setting of its own stays one, whatever files there are
    (tmp_path / "count=4").write_text("")
    assert options("count=4").count == 4


def test_settings_of_a_cell_are_handed_on():
    command = Command("python -m command", "Does it.", Options, overrides=True)
    line = command.read(["compressor=sap,tome", "count=4", "sap.rate=2"])
    assert line.overrides == {"compressor": ["sap", "tome"], "sap.rate": ["2"]} and line.options.count == 4
    with pytest.raises(UsageError, match="'sap': expected key=value"):
        command.read(["sap"])


@pytest.mark.parametrize(
    ("words", "arguments", "message"),
    [
        ((1, 1), [], "expected USAGE, found nothing"),
        ((1, 1), ["a", "b"], r"expected USAGE, found 2 words \(a, b\)"),
        ((2, None), ["a"], r"expected USAGE, found 1 words \(a\)"),
    ],
)
def test_too_few_and_too_many_words(words, arguments, message):
    with pytest.raises(UsageError, match=message):
        Command("USAGE", "Does it.", Options, words=words).read(arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--count", "4"], "--count: settings are spelled KEY=VALUE; write count=4"),
        (["--count=4"], "--count=4: settings are spelled KEY=VALUE; write count=4"),
        (["--data-rows", "4"], "--data-rows: settings are spelled KEY=VALUE; write count=4"),
        (["--count"], "--count: settings are spelled KEY=VALUE; write count=..."),
        (["--quick"], "--quick: settings are spelled KEY=VALUE; write quick=true"),
        (["--cuont", "4"], "--cuont: no setting of this command; did you mean 'count'?"),
    ],
)
def test_an_old_flag_is_refused_with_the_new_spelling(arguments, message):
    with pytest.raises(UsageError) as caught:
        COMMAND.read(arguments)
    assert str(caught.value).startswith(message)


# ---- how a command ends ----


def test_help_names_every_setting_with_default_and_choices(capsys):
    assert COMMAND.run(lambda _: 1, ["count=zero", "--help"]) == 0  # asked for, so it comes before errors
    text = capsys.readouterr().out
    assert text.startswith("Usage: python -m command [WORD ...]\n\nDoes it.\n\n")
    lines = [" ".join(line.split()) for line in text.splitlines()]
    for line in (
        "count=3 how many",
        "share=0.5 how much of it",
        "limit=null only the first",
        "mode=a which way (a, b)",
        "late=null listed when asked (null, x)",
        "sizes=1,2 several",
        "quick=false less of it",
        "--help --version",
    ):
        assert line in lines


def test_version(capsys, monkeypatch):
    assert COMMAND.run(lambda _: 1, ["--version"]) == 0
    assert capsys.readouterr().out == f"slothkit {command_line.installed_version()}\n"
    monkeypatch.setattr(command_line, "version", missing_package)
    assert command_line.installed_version() == "(not installed)"


def missing_package(_name: str) -> str:
    raise command_line.PackageNotFoundError


def fail(error: BaseException):
    raise error


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UsageError("bad\n  input"), 2, "bad input"),
        (
            OSError(errno.ENOSPC, "No space left", "a/b"),
            2,
            "a/b: No space left; free space there or write to another place",
        ),
        (
            OSError(errno.EDQUOT, "Quota exceeded", "a/b"),
            2,
            "a/b: Quota exceeded; free space there or write to another place",
        ),
        (
            FileExistsError(errno.EEXIST, "File exists", "a"),
            2,
            "a: a file, not a folder; write to another place",
        ),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "/proc/x"),
            2,
            "/proc/x: No such file or directory; write to another place",
        ),
        (OSError("odd"), 2, "odd; write to another place"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_a_user_can_mend_is_one_line(error, code, message, capsys):
    assert COMMAND.run(lambda _: fail(error), []) == code
    assert capsys.readouterr().err == f"error: {message}\n"


def test_a_fault_of_ours_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        COMMAND.run(lambda _: 1 // 0, [])


def test_the_exit_code_is_the_body_s_and_the_line_that_of_the_process(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["command", "a", "count=4"])
    assert COMMAND.run(lambda line: line.options.count + len(line.words)) == 5


def test_it_needs_the_standard_library_only():
    code = (
        "import sys; import compressors.command_line; "
        "sys.exit('torch' in sys.modules or 'rich' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0
