"""The names and knobs of all parts, for settings and plans: the real registries, or what they said last.

A registry of ours is asked directly once it is imported, so that a class which a notebook or a test has
registered is there. Before that the answer comes from a file (`signature_cache.py`), because the import takes
seconds, most of the wait for a typo. Parts of outside packages are known by their entry points and always
asked themselves: an edited one is never out of date.
"""

import inspect
import sys
from collections.abc import Callable, Mapping
from functools import cache, cached_property
from typing import Any, NamedTuple

from compressors.errors import UsageError
from compressors.registry import Registry, suggest
from experiments.config.signature_cache import (
    PACKAGES,
    Signature,
    StoredRegistry,
    read_signature_file,
    write_signature_file,
)

# of a compressor: they decide what features it reads, and whether a projector follows
PLANNED_ATTRIBUTES = ("image_rate", "needs_levels", "needs_cues", "projects")
# Knobs that parts got when results had been published, with their defaults: at these they are in no key, so
# that older results keep theirs.
YOUNG_KNOBS: dict[str, Any] = {"tokens": None, "cues": False, "rotary": True, "uniform": 0.0}
# those that compressors alone have got: pruners have had theirs of this name from the first
YOUNG_COMPRESSOR_KNOBS: dict[str, Any] = {
    "positions": "renumber",
    "spaced": 0.0,
    "coverage": None,
    "per_image": False,
}
USUAL_DIMS = {"dim": 1152, "llm_dim": 2560}  # the paper's tower and LLM: defaults are made for such widths

# the widths of a cell's own tower and LLM, as `USUAL_DIMS`
WidthReader = Callable[[], Mapping[str, int]] | None


# ---- the real registries: importing them imports torch ----


def load_compressors() -> Registry:
    """The compressors' registry, filled."""
    import compressors

    compressors.names()  # imports the built-in methods, which the package itself does not
    from compressors.base import registry

    return registry


def load_query_modules() -> Registry:
    """The query modules' registry, filled."""
    from connectors.query_modules import registry

    return registry


def load_projectors() -> Registry:
    """The projectors' registry, filled."""
    from connectors.projector import registry

    return registry


def load_pruners() -> Registry:
    """The pruners' registry, filled."""
    from llm_adapters.pruning import registry

    return registry


class RegistryPlace(NamedTuple):
    """The module that defines a registry, and how it is loaded."""

    module: str
    load: Callable[[], Registry]


PLACES = {
    "compressors": RegistryPlace("compressors.base", load_compressors),
    "query_modules": RegistryPlace("connectors.query_module", load_query_modules),
    "projectors": RegistryPlace("connectors.projector", load_projectors),
    "pruners": RegistryPlace("llm_adapters.pruning.base", load_pruners),
}


# ---- what is remembered of them ----


@cache
def load_stored_registries() -> dict[str, StoredRegistry]:
    """All registries as the file has them; without a file they are imported, and it is written."""
    return read_signature_file(PLACES) or store_signatures()


def store_signatures() -> dict[str, StoredRegistry]:
    """Import the registries, note what they say and write the file."""
    registries: dict[str, StoredRegistry] = {}
    for key, place in PLACES.items():
        real = place.load()
        parts: dict[str, Signature | None] = {}
        for name in real.names():
            if is_built_in(real, name):
                parts[name] = read_signature(real, name)
        registries[key] = StoredRegistry(real.kind, real.group, tuple(sorted(real.context)), parts)
    write_signature_file(registries)
    return registries


def is_built_in(real: Registry, name: str) -> bool:
    """Whether a part is one of ours: neither an outside package's nor registered by a notebook."""
    if name in real.entry_points:
        return False
    return real.get(name).__module__.partition(".")[0] in PACKAGES


def read_signature(real: Registry, name: str) -> Signature:
    """What the part itself says. Attributes are known of our own parts only: others may set them late."""
    attributes: dict[str, Any] | None = {}
    if real.kind == "compressor":
        attributes = None
        if is_built_in(real, name):
            attributes = read_planned_attributes(real, name)
    return Signature(real.parameters(name), attributes, real.get(name).__module__)


def read_planned_attributes(real: Registry, name: str) -> dict[str, Any] | None:
    """Those of PLANNED_ATTRIBUTES that a compressor sets itself, with their values at default knobs; None for
    one that cannot be built with them."""
    import torch

    from compressors.base import Compressor

    try:
        with torch.device("meta"):
            part = real.create(name, **USUAL_DIMS)
    except Exception:  # whatever it is: a method that somebody is writing must not take --help along
        return None
    attributes: dict[str, Any] = {}
    for attribute in PLANNED_ATTRIBUTES:
        inherited = getattr(type(part), attribute) is getattr(Compressor, attribute)
        if attribute in vars(part) or not inherited:
            attributes[attribute] = getattr(part, attribute)
    return attributes


# ---- what settings and plans ask ----


class SignatureRegistry(Registry):
    """One of our registries, as far as settings and plans need it."""

    young_knobs: Mapping[str, Any] = YOUNG_KNOBS

    def __init__(self, key: str):
        self.place = PLACES[key]
        stored: dict[str, Signature | None] = {}
        described: Registry | StoredRegistry
        if self.is_imported:
            described = self.real
        else:
            described = load_stored_registries()[key]
            stored = described.parts
        super().__init__(described.kind, described.group, tuple(described.context))
        self._stored = stored
        self._read: dict[type, Signature] = {}  # by class: a notebook may register a name again

    @property
    def is_imported(self) -> bool:
        """Whether asking the registry itself costs nothing any more."""
        return self.place.module in sys.modules

    @cached_property
    def real(self) -> Registry:
        """The registry itself, filled; imports torch."""
        return self.place.load()

    def names(self) -> list[str]:
        """All names, outside packages' included, sorted."""
        if self.is_imported:
            return self.real.names()
        return sorted({*self._stored, *self.entry_points})

    def list_built_in(self) -> list[str]:
        """The names of our own parts, sorted."""
        if self.is_imported:
            return [name for name in self.real.names() if is_built_in(self.real, name)]
        return sorted(self._stored.keys() - self.entry_points.keys())

    def require(self, name: str) -> str:
        """`name`, or a UsageError with the closest one."""
        known_names = self.names()
        if name not in known_names:
            raise UsageError(f"unknown {self.kind} '{name}'{suggest(name, known_names)}")
        return name

    def get(self, name: str) -> type:
        """The class of that name, imported; a UsageError for an unknown name, without any import."""
        self.require(name)  # before `real`, which imports it all
        return self.real.get(name)

    def parameters(self, name: str) -> dict[str, inspect.Parameter]:
        """All constructor parameters of `name`, context included."""
        return self.read(name).parameters

    def read(self, name: str) -> Signature:
        """The signature of a part, from the file as long as its registry is not imported."""
        self.require(name)
        if not self.is_imported and name not in self.entry_points:
            stored = self._stored[name]
            if stored is not None:
                return stored
        part = self.real.get(name)
        if part not in self._read:
            self._read[part] = read_signature(self.real, name)
        return self._read[part]

    def find_knobs(self, name: str) -> Mapping[str, inspect.Parameter]:
        """The knobs of `name`; none of an unknown one, or of an outside package's that is broken."""
        if name not in self.names():
            return {}
        try:
            return self.knobs(name)
        except UsageError:
            return {}

    def list_modules(self, name: str) -> list[str]:
        """The modules that a part's code begins in: where its class is, and what its entry point names."""
        point = self.entry_points.get(name)
        if point is not None:
            return [self.real.get(name).__module__, point.module]
        if self.is_imported:
            return [self.real.get(name).__module__]
        return [self.read(name).module]

    def settled(self, name: str, knobs: Mapping[str, Any]) -> dict[str, Any]:
        """All knobs of `name`: as set, else their defaults; without young knobs at theirs."""
        settled_knobs: dict[str, Any] = {}
        for knob, parameter in self.knobs(name).items():
            if parameter.default is not parameter.empty:
                settled_knobs[knob] = parameter.default
        settled_knobs |= knobs
        for knob, default in self.young_knobs.items():
            if knob in settled_knobs and settled_knobs[knob] == default:
                del settled_knobs[knob]
        return settled_knobs


class CompressorRegistry(SignatureRegistry):
    """The compressors, which a plan asks what features they read."""

    young_knobs: Mapping[str, Any] = {**YOUNG_KNOBS, **YOUNG_COMPRESSOR_KNOBS}

    def find_image_rate(self, name: str, knobs: Mapping[str, Any], widths: WidthReader = None) -> int:
        """By how much a compressor with these knobs shrinks the image before the tower; 1: not at all."""
        return int(self.read_attribute(name, "image_rate", knobs, widths) or 1)

    def find_needed_levels(
        self, name: str, knobs: Mapping[str, Any], widths: WidthReader = None
    ) -> list[int]:
        """The hidden states of the tower that a compressor with these knobs reads beside its output."""
        return list(self.read_attribute(name, "needs_levels", knobs, widths) or ())

    def find_needed_cues(self, name: str, knobs: Mapping[str, Any], widths: WidthReader = None) -> list[str]:
        """The cues of the tower that a compressor with these knobs reads beside its output."""
        return list(self.read_attribute(name, "needs_cues", knobs, widths) or ())

    def find_projects(self, name: str, knobs: Mapping[str, Any], widths: WidthReader = None) -> bool:
        """Whether a compressor with these knobs ends at the LLM's width, so that no projector follows."""
        return bool(self.read_attribute(name, "projects", knobs, widths))

    def read_attribute(
        self, name: str, attribute: str, knobs: Mapping[str, Any], widths: WidthReader = None
    ) -> Any:
        """An attribute of the contract of a compressor with these knobs; None where it leaves it alone. The
        compressor is built to be asked, unless the knobs are the defaults or one of them is the answer."""
        attributes = self.read(name).attributes
        if attributes is not None and attribute not in attributes:
            return None
        settled_knobs = self.settled(name, knobs)
        if attribute == "needs_levels" and "levels" in settled_knobs:
            return settled_knobs["levels"]
        if attributes is not None and settled_knobs == self.settled(name, {}):
            return attributes[attribute]
        value = getattr(self.build_to_ask(name, knobs, widths), attribute)
        return None if isinstance(value, property) else value

    def build_to_ask(self, name: str, knobs: Mapping[str, Any], widths: WidthReader) -> object:
        """A compressor of usual widths, without weights; of the cell's own, which take a file of each model,
        where its knobs fit no usual ones. Its class where the cell's are not to be had: a cell's check says
        later whether the knobs fit them."""
        import torch

        try:
            with torch.device("meta"):
                return self.real.create(name, **USUAL_DIMS, **knobs)
        except Exception:  # no multiple of the heads, or whatever somebody's own constructor says
            if widths is None:
                raise
        try:
            dims = widths()
        except UsageError:
            return self.real.get(name)
        return self.real.create(name, **dims, **knobs)


@cache
def compressors() -> CompressorRegistry:
    """Visual compressors."""
    return CompressorRegistry("compressors")


@cache
def query_modules() -> SignatureRegistry:
    """What `+NAME` may add to a compressor."""
    return SignatureRegistry("query_modules")


@cache
def projectors() -> SignatureRegistry:
    """Between compressor and LLM."""
    return SignatureRegistry("projectors")


@cache
def pruners() -> SignatureRegistry:
    """What drops visual tokens inside the LLM."""
    return SignatureRegistry("pruners")


def registries() -> tuple[SignatureRegistry, ...]:
    """All of them."""
    return compressors(), query_modules(), projectors(), pruners()
