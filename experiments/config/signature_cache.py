"""A file that remembers the signatures of our parts, so that a typo is answered before torch is imported.

The file is a note of what the real registries said, in JSON, in the user's cache directory. It counts as long
as the sources that it was made from are the same, byte for byte; a missing, stale or damaged one is made
again. Nothing in it is executed: types are spelled out below, one by one.
"""

import hashlib
import inspect
import json
import operator
import sys
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

from experiments.config.sources import find_cache_root
from experiments.runtime.files import write_atomic

PACKAGES = ("compressors", "connectors", "llm_adapters")  # whose import fills the registries

PLAIN_TYPES: dict[str, Any] = {
    "int": int,
    "float": float,
    "bool": bool,
    "str": str,
    "None": type(None),
    "Any": Any,
    "list": list,
    "tuple": tuple,
    "dict": dict,
    "...": Ellipsis,  # of tuple[int, ...]
}
GENERIC_TYPES: dict[str, Any] = {
    "list": list,
    "tuple": tuple,
    "dict": dict,
    "Sequence": Sequence,
    "Mapping": Mapping,
}
# What reading a file of another shape may raise.
DAMAGE_ERRORS = (AttributeError, KeyError, RecursionError, TypeError, ValueError)


class Signature(NamedTuple):
    """What planning has to know of one part.

    parameters   of its constructor, `self` left out
    attributes   of the contract, those that the part sets itself, with their values at default knobs; None:
                 not known, the part has to be asked
    module       that defines it
    """

    parameters: dict[str, inspect.Parameter]
    attributes: dict[str, Any] | None
    module: str


class StoredRegistry(NamedTuple):
    """A registry as the file has it. A part without a signature is one whose types the file cannot spell."""

    kind: str
    group: str | None
    context: tuple[str, ...]
    parts: dict[str, Signature | None]


# ---- the file ----


def read_signature_file(keys: Iterable[str]) -> dict[str, StoredRegistry] | None:
    """The registries called `keys`; None if there is no file, or none that counts."""
    try:
        content = json.loads(find_signature_file().read_text(encoding="utf-8"))
        if content["sources"] != digest_sources():
            return None
        return {key: decode_registry(content["registries"][key]) for key in keys}
    except (OSError, *DAMAGE_ERRORS):
        return None


def write_signature_file(registries: Mapping[str, StoredRegistry]) -> None:
    """Keep `registries` for the next process. Where the file cannot be written, the next process imports the
    registries again: slower, and no reason to fail."""
    encoded = {key: encode_registry(stored) for key, stored in registries.items()}
    content = json.dumps({"sources": digest_sources(), "registries": encoded}, indent=1)
    try:
        path = find_signature_file()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content)
    except (OSError, RuntimeError):  # RuntimeError: a user without a home directory
        return


def find_signature_file() -> Path:
    """One file for each checkout and Python, so that two of them do not take turns in making it again."""
    place = f"{find_package_folder(PACKAGES[0])} {sys.version}"
    return find_cache_root() / "signatures" / f"{hashlib.sha256(place.encode()).hexdigest()[:16]}.json"


def digest_sources() -> str:
    """A hash of all that the signatures follow from, and of how this file spells them."""
    paths = [Path(__file__), Path(__file__).with_name("signatures.py")]
    for package in PACKAGES:
        paths += sorted(find_package_folder(package).rglob("*.py"))
    digest = hashlib.sha256(sys.version.encode())
    for path in paths:
        content = path.read_bytes()
        # the length keeps two files apart from one that holds the text of both
        digest.update(f"{path} {len(content)} ".encode())
        digest.update(content)
    return digest.hexdigest()


def find_package_folder(package: str) -> Path:
    """Where a package of ours lies; it is not imported."""
    spec = find_spec(package)
    assert spec is not None and spec.submodule_search_locations  # it was installed together with this file
    return Path(spec.submodule_search_locations[0])


# ---- registries, parts and parameters as JSON ----


def encode_registry(stored: StoredRegistry) -> dict[str, Any]:
    """A registry as JSON has it."""
    parts: dict[str, Any] = {}
    for name, signature in stored.parts.items():
        parts[name] = None
        if signature is not None:
            try:
                parts[name] = encode_signature(signature)
            except TypeError:  # a type or default that has no spelling here: the real registry will be asked
                continue
    return {"kind": stored.kind, "group": stored.group, "context": sorted(stored.context), "parts": parts}


def decode_registry(content: Any) -> StoredRegistry:
    """The reverse of `encode_registry`; one of DAMAGE_ERRORS if `content` is something else."""
    parts: dict[str, Signature | None] = {}
    for name, signature in content["parts"].items():
        parts[name] = None
        if signature is not None:
            parts[name] = decode_signature(signature)
    return StoredRegistry(content["kind"], content["group"], tuple(content["context"]), parts)


def encode_signature(signature: Signature) -> dict[str, Any]:
    """A part as JSON has it; what a parameter lacks, a type or a default, is left out. TypeError for a type
    or a value without a spelling."""
    parameters: list[dict[str, Any]] = []
    for parameter in signature.parameters.values():
        entry: dict[str, Any] = {"name": parameter.name, "kind": parameter.kind.name}
        if parameter.annotation is not parameter.empty:
            entry["type"] = encode_type(parameter.annotation)
        if parameter.default is not parameter.empty:
            entry["default"] = encode_value(parameter.default)
        parameters.append(entry)
    attributes = encode_value(signature.attributes)
    return {"parameters": parameters, "attributes": attributes, "module": signature.module}


def decode_signature(content: Any) -> Signature:
    """The reverse of `encode_signature`."""
    parameters: dict[str, inspect.Parameter] = {}
    for entry in content["parameters"]:
        # "KEYWORD_ONLY" and the others are attributes of the class; of its enumeration they are private
        parameter = inspect.Parameter(entry["name"], getattr(inspect.Parameter, entry["kind"]))
        if "type" in entry:
            parameter = parameter.replace(annotation=decode_type(entry["type"]))
        if "default" in entry:
            parameter = parameter.replace(default=decode_value(entry["default"]))
        parameters[parameter.name] = parameter
    return Signature(parameters, decode_value(content["attributes"]), content["module"])


# ---- types and values ----


def encode_type(hint: Any) -> Any:
    """A knob's type: "int", {"list": ["int"]}, {"Union": ["int", "None"]}, {"Literal": ["keep", "drop"]}.
    TypeError for any other."""
    for name, plain in PLAIN_TYPES.items():
        if hint is plain:
            return name
    origin = typing.get_origin(hint)
    options = typing.get_args(hint)
    if origin is Literal and all(isinstance(option, (str, int, type(None))) for option in options):
        return {"Literal": list(options)}
    if origin in (typing.Union, types.UnionType):
        return {"Union": list(map(encode_type, options))}
    for name, generic in GENERIC_TYPES.items():
        if origin is generic:
            return {name: list(map(encode_type, options))}
    raise TypeError(f"{hint}: no type of a knob")


def decode_type(content: Any) -> Any:
    """The reverse of `encode_type`."""
    if isinstance(content, str):
        return PLAIN_TYPES[content]
    ((name, options),) = content.items()
    if name == "Literal":
        return Literal[tuple(options)]
    decoded = list(map(decode_type, options))
    if name == "Union":
        # `|` and not typing.Union: an error that prints the type has to read as the constructor does
        return reduce(operator.or_, decoded)
    return GENERIC_TYPES[name][tuple(decoded)]


def encode_value(value: object) -> Any:
    """A default. JSON has neither tuples nor keys other than text: {"tuple": [...]}, {"dict": [[key, item]]}.
    TypeError for what a knob cannot be."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, list):
        return list(map(encode_value, value))
    if isinstance(value, tuple):
        return {"tuple": list(map(encode_value, value))}
    if isinstance(value, dict):
        return {"dict": [list(map(encode_value, pair)) for pair in value.items()]}
    raise TypeError(f"{value!r}: no value of a knob")


def decode_value(content: Any) -> Any:
    """The reverse of `encode_value`."""
    if isinstance(content, list):
        return list(map(decode_value, content))
    if not isinstance(content, dict):
        return content
    ((name, items),) = content.items()
    if name == "tuple":
        return tuple(map(decode_value, items))
    if name == "dict":
        return {decode_value(key): decode_value(item) for key, item in items}
    raise ValueError(f"{name}: no value of a knob")
