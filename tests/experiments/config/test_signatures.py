"""Signatures: the file says what the registries say, is made again when it does not count, and is never asked
about what is registered in the process or comes from another package."""

import inspect
import os
import subprocess
import sys
import types
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from fakes import config

import compressors
from compressors.base import Compressor
from compressors.errors import UsageError
from compressors.key_value import parse_settings
from connectors.projector import registry as real_projectors
from connectors.query_modules import registry as real_query_modules
from experiments.config import signature_cache, signatures
from experiments.config.cells import make_cells
from experiments.store.key_settings import find_image_rate, find_tower_needs
from llm_adapters.pruning import registry as real_pruners

ROOT = Path(__file__).parents[3]
REAL = {
    "compressors": compressors.names.__self__,
    "query_modules": real_query_modules,
    "projectors": real_projectors,
    "pruners": real_pruners,
}


@pytest.fixture
def cache_folder(tmp_path, monkeypatch):
    """An empty cache directory of the user."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def unimported(monkeypatch, request):
    """The compressors as a process that has not imported them sees them; asking the real ones is counted."""
    request.getfixturevalue("cache_folder")
    signatures.store_signatures()
    loads = []

    def load():
        loads.append(1)
        return REAL["compressors"]

    monkeypatch.setitem(signatures.PLACES, "compressors", signatures.RegistryPlace("not.imported", load))
    signatures.load_stored_registries.cache_clear()
    yield signatures.CompressorRegistry("compressors"), loads
    signatures.load_stored_registries.cache_clear()


@pytest.mark.parametrize("key", REAL)
@pytest.mark.parametrize("is_imported", [True, False])
@pytest.mark.usefixtures("cache_folder")
def test_signatures_are_the_real_ones(key, is_imported, monkeypatch):
    real = REAL[key]
    if not is_imported:
        signatures.store_signatures()
        place = signatures.RegistryPlace("not.imported", lambda: pytest.fail("the file says all of it"))
        monkeypatch.setitem(signatures.PLACES, key, place)
        signatures.load_stored_registries.cache_clear()
    source = signatures.SignatureRegistry(key)
    assert source.is_imported is is_imported
    assert source.names() == source.list_built_in() == real.names()
    assert (source.kind, source.group, source.context) == (real.kind, real.group, real.context)
    for name in real.names():
        parameters, expected = source.parameters(name), real.parameters(name)
        assert list(parameters) == list(expected)
        assert parameters == expected
        for knob in real.knobs(name):
            # what an error prints has to be the same too
            assert str(parameters[knob].annotation) == str(expected[knob].annotation)
            assert type(parameters[knob].default) is type(expected[knob].default)
    signatures.load_stored_registries.cache_clear()


@pytest.mark.parametrize(
    "hint",
    [
        int,
        float | None,
        str | int | None,
        Literal["keep", "drop", 3, None],
        Literal["auto"] | int,
        tuple[int, ...],
        tuple[int, str],
        list[float],
        dict[str, list[bool]],
        dict,
        Any,
    ],
)
def test_types_of_knobs(hint):
    decoded = signature_cache.decode_type(signature_cache.encode_type(hint))
    assert decoded == hint and str(decoded) == str(hint)


@pytest.mark.parametrize(
    "value", [None, True, 3, 0.1, "a", (1, (2, "b")), [1, (2,)], {"a": {1: (2.5, None)}}]
)
def test_values_of_knobs(value):
    decoded = signature_cache.decode_value(signature_cache.encode_value(value))
    assert decoded == value and type(decoded) is type(value)


def test_what_the_file_cannot_spell_is_left_to_the_real_registry():
    for hint in (Path, set[int], inspect.Parameter):
        with pytest.raises(TypeError):
            signature_cache.encode_type(hint)
    with pytest.raises(TypeError):
        signature_cache.encode_value({"a": Path()})
    knob = inspect.Parameter("knob", inspect.Parameter.KEYWORD_ONLY, annotation=Path)
    stored = signature_cache.StoredRegistry(
        "part", None, (), {"odd": signature_cache.Signature({"knob": knob}, {}, "odd")}
    )
    decoded = signature_cache.decode_registry(signature_cache.encode_registry(stored))
    assert decoded.parts == {"odd": None}


def run_help(folder: Path) -> tuple[str, bool]:
    """The text of a sweep's --help in a fresh process, and whether it has imported torch."""
    code = (
        "import sys; from experiments.sweep import __main__ as sweep; sweep.main(['--help']); "
        "sys.stderr.write(str('torch' in sys.modules))"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout, done.stderr == "True"


def test_the_first_help_makes_the_file_and_the_second_reads_it(cache_folder):
    first, second = run_help(cache_folder), run_help(cache_folder)
    assert (first[1], second[1]) == (True, False)
    assert first[0] == second[0] and "window_attention_pool" in second[0]
    assert [path.suffix for path in (cache_folder / "slothkit" / "signatures").iterdir()] == [".json"]


def damage(content: str) -> list[str]:
    sources = signature_cache.digest_sources()
    return [
        "",
        content[: len(content) // 2],
        "[]",
        "\x00",
        "[" * 100_000,
        f'{{"sources": "{sources}"}}',
        f'{{"sources": "{sources}", "registries": {{}}}}',
        content.replace('"int"', '"__import__"'),
        content.replace('"KEYWORD_ONLY"', '"nothing"'),
        content.replace('"parts"', '"other"'),
    ]


@pytest.mark.usefixtures("cache_folder")
def test_a_damaged_file_is_made_again():
    signatures.store_signatures()
    path = signature_cache.find_signature_file()
    whole = path.read_text()
    assert signature_cache.read_signature_file(REAL)["compressors"].parts.keys() == {
        *REAL["compressors"].names()
    }
    for content in damage(whole):
        path.write_text(content)
        assert signature_cache.read_signature_file(REAL) is None
    signatures.load_stored_registries.cache_clear()
    assert signatures.load_stored_registries()["projectors"].kind == "projector"
    assert path.read_text() == whole
    signatures.load_stored_registries.cache_clear()


@pytest.mark.usefixtures("cache_folder")
def test_a_file_of_other_sources_does_not_count(tmp_path, monkeypatch):
    signatures.store_signatures()
    assert signature_cache.read_signature_file(REAL) is not None
    packages = {name: tmp_path / name for name in signature_cache.PACKAGES}
    for folder in packages.values():
        folder.mkdir()
        (folder / "part.py").write_text("a = 1\n")
    digests = []
    monkeypatch.setattr(signature_cache, "find_package_folder", packages.__getitem__)
    for content in ("a = 1\n", "a = 2\n", "a = 1\n"):
        (packages["connectors"] / "part.py").write_text(content)
        digests.append(signature_cache.digest_sources())
    (packages["connectors"] / "new.py").write_text("")
    digests.append(signature_cache.digest_sources())
    assert digests[0] == digests[2] and len(set(digests)) == 3
    assert signature_cache.read_signature_file(REAL) is None


def test_a_cache_directory_that_cannot_be_written_is_no_reason_to_fail(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert signatures.store_signatures()["pruners"].kind == "pruner"
    assert signature_cache.read_signature_file(REAL) is None
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.usefixtures("cache_folder")
def test_processes_that_write_it_at_once_leave_a_whole_file():
    """Workers of a test suite, or of a sweep, begin together."""
    stored = signatures.store_signatures()
    signatures.load_stored_registries.cache_clear()
    code = (
        "from experiments.config import signature_cache as c, signatures as s\n"
        "stored = c.read_signature_file(s.PLACES)\n"
        "for _ in range(30):\n"
        "    c.write_signature_file(stored)\n"
        "    assert c.read_signature_file(s.PLACES) == stored\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) for _ in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert signature_cache.read_signature_file(REAL) == stored
    assert len(list(signature_cache.find_signature_file().parent.iterdir())) == 1


def make_rate_version() -> type[Compressor]:
    class Mine(Compressor):
        def __init__(self, dim: int, *, rate: int = 2):
            super().__init__()
            self.out_dim, self.image_rate = dim, rate

    Mine.__qualname__ = "Mine"
    return Mine


def make_factor_version() -> type[Compressor]:
    class Mine(Compressor):
        def __init__(self, dim: int, *, factor: int = 2):
            super().__init__()
            self.out_dim, self.image_rate = dim, factor

    Mine.__qualname__ = "Mine"
    return Mine


def test_a_class_registered_in_the_process_is_found():
    """By a notebook, after the file was made; and with another knob, when its cell runs again."""
    try:
        for knob, make in (("rate", make_rate_version), ("factor", make_factor_version)):
            compressors.register("mine")(make())
            assert "mine" in signatures.compressors().names()
            assert "mine" not in signatures.compressors().list_built_in()
            assert list(signatures.compressors().knobs("mine")) == [knob]
            cell = config("compressor=mine", f"mine.{knob}=3")
            assert cell.knobs("mine") == {knob: 3}
            mine = config("compressor=mine")
            assert find_image_rate(cell, cell.compressor) == 3 and find_image_rate(mine, "mine") == 2
        with pytest.raises(UsageError, match="'mine' has no knob 'rate'"):
            signatures.compressors().check("mine", rate=4)
    finally:
        REAL["compressors"]._classes.pop("mine", None)
    with pytest.raises(UsageError, match="unknown compressor 'mine'"):
        signatures.compressors().require("mine")


def test_the_file_answers_plans_at_default_knobs_and_the_compressor_at_others(unimported):
    registry, loads = unimported
    assert registry.find_image_rate("sap", {"rate": 2}) == 1
    assert registry.find_image_rate("downsample", {}) == registry.find_image_rate("matryoshka", {}) + 2 == 3
    assert registry.find_needed_levels("token_packer", {"levels": (1, 2), "heads": 16}) == [1, 2]
    assert registry.find_needed_levels("matryoshka", {}) == []
    assert not loads
    assert registry.find_image_rate("downsample", {"rate": 2}) == 2
    knobs = {"host": "window_attention_pool", "knobs": {"levels": [3], "heads": 1}}
    assert registry.find_needed_levels("matryoshka", knobs) == [3]
    assert loads


@pytest.mark.parametrize("name", compressors.names())
def test_plans_know_what_the_compressor_says(name):
    cell = config(f"compressor={name}")
    part = compressors.create(name, dim=128, llm_dim=256, **cell.knobs(name))
    assert find_image_rate(cell, name) == part.image_rate
    needs = {"levels": [*part.needs_levels], "cues": [*part.needs_cues]}
    assert find_tower_needs(cell, name) == {need: values for need, values in needs.items() if values}


def test_parts_of_other_packages_are_asked_themselves(unimported, monkeypatch):
    registry, loads = unimported
    real = REAL["compressors"]

    class Outside(Compressor):
        def __init__(self, dim: int, *, strength: float = 0.5):
            super().__init__()
            self.out_dim, self.image_rate, self.strength = dim, 4, strength

    module = types.ModuleType("outside_package")
    module.Outside = Outside
    monkeypatch.setitem(sys.modules, "outside_package", module)
    point = EntryPoint("outside", "outside_package:Outside", real.group)
    monkeypatch.setitem(vars(registry), "entry_points", {"outside": point})
    monkeypatch.setitem(vars(real), "entry_points", {"outside": point})
    assert "outside" in registry.names() and registry.require("outside") == "outside"
    assert "outside" not in registry.list_built_in() and not loads
    try:
        assert registry.check("outside", strength=1) == {"strength": 1.0}
        assert registry.find_image_rate("outside", {}) == 4 and loads
        signatures.store_signatures()
        assert "outside" not in signature_cache.read_signature_file(REAL)["compressors"].parts
    finally:
        real._classes.pop("outside", None)


@pytest.mark.parametrize("heads", [16, 64])
def test_plans_do_not_refuse_what_fits_the_cell_s_own_widths(heads):
    """64 heads are for the tower of 128, and for no usual one."""

    def init(self, dim: int, *, heads: int = 8):
        Compressor.__init__(self)
        self.out_dim, self.image_rate = dim, 2
        self.attend = torch.nn.MultiheadAttention(dim, heads)
        if dim == 1152 and heads == 64:
            raise ValueError("not at this width")

    real = REAL["compressors"]
    real._classes["wide"] = type("Wide", (Compressor,), {"__init__": init})
    try:
        sources = ["tower.source=asset:tiny/tower", "llm.source=asset:tiny/llm"]
        [cell] = make_cells(parse_settings(["compressor=wide", f"wide.heads={heads}", *sources]))
        assert find_image_rate(cell.config, "wide") == 2
        # a width that nobody knows refuses nothing
        assert find_tower_needs(config("compressor=wide", "wide.heads=64"), "wide") == {}
    finally:
        real._classes.pop("wide", None)


def test_heads_of_token_packer_are_judged_at_the_cell_s_own_width():
    cell = config("compressor=token_packer", "token_packer.heads=16")
    assert find_tower_needs(cell, "token_packer") == {}
    assert signatures.compressors().find_projects("token_packer", {"heads": 16})


def test_an_unknown_name_imports_nothing(unimported):
    registry, loads = unimported
    with pytest.raises(UsageError, match="unknown compressor 'sapp'; did you mean 'sap'"):
        registry.get("sapp")
    with pytest.raises(UsageError, match="'sap' has no knob 'rte'; did you mean 'rate'"):
        registry.check("sap", rte=3)
    assert not loads


def test_a_compressor_that_cannot_be_built_does_not_take_help_along(monkeypatch):
    real = REAL["compressors"]

    def broken(self, dim: int, *, rate: int = 3):
        raise NameError(f"half written {self} {dim} {rate}")

    monkeypatch.setattr(real.get("downsample"), "__init__", broken)
    signature = signatures.read_signature(real, "downsample")
    assert list(signature.parameters) == ["dim", "rate"] and signature.attributes is None
