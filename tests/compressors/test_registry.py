"""The registry: exact names, errors that say what to type, knobs read from signatures, outside packages."""

import string
import sys
import types
from collections.abc import Sequence
from typing import Literal

import pytest
from outside import offer_parts

import compressors
from compressors import Compressor, UsageError
from compressors.registry import Registry, conform, suggest


class Shrink(Compressor):
    """Test part."""

    def __init__(
        self,
        dim: int,
        *,
        rate: int = 2,
        mode: Literal["a", "b"] = "a",
        scale: float = 1.0,
        grid: tuple[int, int] | None = None,
        on: bool = False,
    ):
        super().__init__()
        self.out_dim, self.knobs = dim, (rate, mode, scale, grid, on)


@pytest.fixture
def registry():
    made = Registry("part", context=("dim", "llm_dim"))
    made.register("shrink")(Shrink)
    return made


def test_create(registry):
    """A context argument that the part does not take (llm_dim) is dropped; knobs take their types."""
    part = registry.create("shrink", dim=4, llm_dim=8, rate=3, grid=[2, 5], scale=2)
    assert part.knobs == (3, "a", 2.0, (2, 5), False)
    assert part.registered_name == "shrink"


def test_duplicate_name(registry):
    registry.register("shrink")(Shrink)  # the same class again is harmless
    Other = type("Shrink", (Compressor,), {"__module__": "elsewhere"})
    with pytest.raises(UsageError, match="part 'shrink' is already registered by .*test_registry"):
        registry.register("shrink")(Other)


def test_unknown_name_suggests():
    with pytest.raises(UsageError, match="unknown compressor 'avgpool'; did you mean 'avg_pool'. Known: a"):
        compressors.create("avgpool", dim=4)
    # exact names only
    with pytest.raises(UsageError, match="unknown compressor 'SAP'; did you mean 'sap'"):
        compressors.create("SAP", dim=4)


@pytest.mark.parametrize("name", [Shrink, None, 3, ["sap"]])
def test_a_name_that_is_no_text(registry, name):
    with pytest.raises(UsageError, match="^part=.*: give its name as text; @register") as caught:
        registry.create(name, dim=4)
    assert "\n" not in str(caught.value)


def test_unknown_knob_suggests():
    with pytest.raises(UsageError, match="compressor 'sap' has no knob 'rat'; did you mean 'rate'. Known: "):
        compressors.check("sap", rat=3)


@pytest.mark.parametrize(
    ("name", "known"), [("foo", ["hiprune", "holov"]), ("fish", ["bash", "zsh"]), ("x", ["sap"])]
)
def test_what_is_hardly_alike_is_not_meant(name, known):
    assert suggest(name, known) == f"; Known: {', '.join(known)}"


def test_a_list_that_is_not_whole_says_so():
    names = [f"setting_{number}" for number in range(50)]
    assert suggest("seting_1", names).startswith("; did you mean 'setting_1'? Near: setting_1, ")
    assert suggest("seting_1", names[:3]) == (
        "; did you mean 'setting_1'? Known: setting_0, setting_1, setting_2"
    )


def test_what_is_like_nothing():
    assert suggest("x", []) == "; there is none"
    assert suggest("xx", [f"{letter}{letter}" for letter in string.ascii_letters if letter not in "xX"]) == (
        "; none of the 50 known ones is like it"
    )


def test_missing_context():
    with pytest.raises(UsageError, match="compressor 'ldp' needs llm_dim"):
        compressors.create("ldp", dim=4)
    with pytest.raises(UsageError, match="pixel_shuffle with projector=true needs llm_dim"):
        compressors.create("pixel_shuffle", dim=4, projector=True)


@pytest.mark.parametrize(
    "knobs, message",
    [
        ({"rate": "3"}, r"shrink.rate='3': expected int, got str"),
        ({"rate": True}, r"shrink.rate=True: expected int, got bool"),
        ({"rate": 2.5}, r"shrink.rate=2.5: expected int, got float"),
        ({"mode": "c"}, r"shrink.mode='c': expected a \| b, got str"),
        ({"on": 1}, r"shrink.on=1: expected bool, got int"),
        ({"grid": (2, 3, 4)}, r"shrink.grid=\(2, 3, 4\): expected tuple\[int, int\] \| None"),
        ({"grid": (2, "3")}, r"shrink.grid=\(2, '3'\): expected tuple"),
    ],
)
def test_ill_typed_knob(registry, knobs, message):
    with pytest.raises(UsageError, match=message):
        registry.check("shrink", **knobs)


def test_a_number_that_is_too_large_is_echoed_as_typed():
    with pytest.raises(UsageError, match="^x=99999999999999999999999: a whole number has at most 64 bits$"):
        conform(99999999999999999999999, int, "x")
    with pytest.raises(UsageError, match="^x=0x3b9a"):  # of more digits than Python writes
        conform(10**9 << 20000, int, "x")


def test_conform_tuples():
    assert conform([1, "a"], tuple[int, str], "x") == (1, "a")
    assert conform([1, 2, 3], tuple[float, ...], "x") == (1.0, 2.0, 3.0)


def entry_point(monkeypatch, value: str, module: types.ModuleType | None = None):
    if module is not None:
        monkeypatch.setitem(sys.modules, module.__name__, module)
    offer_parts(monkeypatch, "test.group", ("outside", value))
    return Registry("part", group="test.group")


def test_entry_point(monkeypatch):
    module = types.ModuleType("outside_package")
    module.Outside = type("Outside", (Compressor,), {"__module__": "outside_package"})
    found = entry_point(monkeypatch, "outside_package:Outside", module)
    assert found.names() == ["outside"]
    assert found.get("outside") is module.Outside


@pytest.mark.parametrize("value", ["no_such_package:Outside", "json:Outside"])
def test_broken_entry_point_is_named_every_time(monkeypatch, value):
    found = entry_point(monkeypatch, value)
    for _ in range(2):
        with pytest.raises(UsageError, match=f"part 'outside' of entry point {value} does not load: "):
            found.get("outside")


def test_a_broken_entry_point_is_in_nobodys_way(monkeypatch):
    found = entry_point(monkeypatch, "no_such_package:Outside")
    inside = found.register("inside")(type("Inside", (), {}))
    assert found.names() == ["inside", "outside"] and found.get("inside") is inside


def test_an_entry_point_of_a_taken_name_is_refused(monkeypatch):
    module = types.ModuleType("outside_package")
    module.Outside = type("Outside", (Compressor,), {"__module__": "outside_package"})
    found = entry_point(monkeypatch, "outside_package:Outside", module)
    found.register("outside")(type("Inside", (), {}))
    with pytest.raises(UsageError, match="part 'outside' is already registered by "):
        found.get("outside")


def test_a_name_that_two_packages_offer_is_refused(monkeypatch):
    twice = ("same", "here:Part")  # one package, found in two places
    offer_parts(monkeypatch, "test.group", ("outside", "one:Part"), ("outside", "two:Part"), twice, twice)
    with pytest.raises(UsageError, match="test.group: 'outside' is offered as one:Part and as two:Part"):
        Registry("part", group="test.group").names()
    offer_parts(monkeypatch, "test.group", twice, twice)
    assert Registry("part", group="test.group").names() == ["same"]


def test_every_name_is_public():
    for name in compressors.__all__:
        assert getattr(compressors, name) is not None
    with pytest.raises(AttributeError):
        compressors.sapp  # noqa: B018


@pytest.mark.parametrize(
    ("hint", "value", "found"),
    [
        (list[int], (1, 2), [1, 2]),
        (Sequence[float], [1, 2], [1.0, 2.0]),
        (dict[str, float], {"a": 1}, {"a": 1.0}),
        (tuple, [1, "a"], (1, "a")),
        (list[int] | None, None, None),
    ],
)
def test_conform_collections(hint, value, found):
    got = conform(value, hint, "x")
    assert got == found and type(got) is type(found)


@pytest.mark.parametrize(
    ("hint", "value"), [(list[int], ["a"]), (dict[str, int], {"a": "b"}), (list[int], 3)]
)
def test_conform_refuses_what_is_inside(hint, value):
    with pytest.raises(UsageError, match="^x="):
        conform(value, hint, "x")
