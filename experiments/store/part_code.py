"""What a stage's key knows of a part's code, so that an edited part never shows its old row.

A shipped part has a version (`shipped.py`). Of any other, in a package of the user's own or put into this
tree, the defining module and all modules that it imports are digested, but for libraries: what is installed,
and what our shipped parts are made of. Modules are found and read, not imported.
"""

import ast
import sys
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec, resolve_name
from pathlib import Path
from typing import Any

from compressors.errors import UsageError
from compressors.registry import Registry
from experiments.config import signatures
from experiments.config.signatures import SignatureRegistry
from experiments.registries import metrics
from experiments.runtime.memory import remember_for_request
from experiments.store.keys import digest_unchanged_file, digest_value
from experiments.store.shipped import SHIPPED_VERSIONS

REGISTRIES = {  # by the section of a stage's key
    "compressor": signatures.compressors,
    "evaluated_compressor": signatures.compressors,
    "projector": signatures.projectors,
    "query_module": signatures.query_modules,
    "prune": signatures.pruners,
}
INSTALLED_FOLDERS = {"site-packages", "dist-packages"}

# module -> by which import Python has it, and the digest of its file when that was first asked for
IMPORTED_MODULES: dict[str, tuple[ModuleSpec | None, str]] = {}

CODE_KEY = "its code"  # beside a part's name, and no name itself


def describe_code(registry: SignatureRegistry, part: str, knobs: Mapping[str, Any]) -> dict[str, Any]:
    """What a key holds of the code of a part and of those that its knobs name, as a host is named; nothing of
    shipped ones that are as they were. UsageError for one that stands in no file, or was edited after this
    process had imported it."""
    values = [value for value in knobs.values() if isinstance(value, str)]
    return describe_versions(registry, {part, *values} & set(registry.names()))


def describe_metric_code(names: Collection[str]) -> dict[str, Any]:
    """As `describe_code`, of metrics."""
    return describe_versions(metrics, names)


def describe_versions(registry: Registry, names: Collection[str]) -> dict[str, Any]:
    """As `describe_code`, of the parts of these names."""
    versions: dict[str, int | str] = {}
    for name in sorted(set(names)):
        version = find_version(registry, name)
        if version != 0:
            versions[name] = version
        if not is_shipped(registry, name):
            refuse_old_imports(registry, name)
    return {CODE_KEY: versions} if versions else {}


def is_shipped(registry: Registry, name: str) -> bool:
    """Whether a part is one of ours, and has a version instead of a digest."""
    return name in SHIPPED_VERSIONS[registry.kind]


def find_version(registry: Registry, name: str) -> int | str:
    """The version of a shipped part; of any other the digest of its code as this process runs it: of modules
    that it has imported as they were then. UsageError for code that stands in no file."""
    if is_shipped(registry, name):
        return SHIPPED_VERSIONS[registry.kind][name]
    digests: dict[str, str] = {}
    for module, path in list_own_files(registry, name).items():
        digests[module] = find_imported_digest(module, path) or digest_own_file(path)
    return digest_value(digests)


def find_imported_digest(name: str, path: Path) -> str | None:
    """The digest of a module's file when this process imported it, as far as that is known: as it was when it
    was first asked for. None for a module that is not imported."""
    module = sys.modules.get(name)
    if module is None:
        return None
    spec, digest = IMPORTED_MODULES.get(name, (None, ""))
    if not digest or spec is not module.__spec__:  # imported for the first time, again, or reloaded
        digest = digest_own_file(path)
        IMPORTED_MODULES[name] = module.__spec__, digest
    return digest


def refuse_old_imports(registry: Registry, name: str) -> None:
    """UsageError for a part that was edited after this process had imported it: a sweep that is asked for now
    would train or score by the code of before."""
    for module, path in list_own_files(registry, name).items():
        imported_digest = find_imported_digest(module, path)
        if imported_digest is not None and imported_digest != digest_own_file(path):
            raise UsageError(
                f"{registry.kind} '{name}' was edited after Python had imported its module {module}; reload "
                "the module or start Python again"
            )


def refuse_edited_code(depends: Mapping[str, Any]) -> None:
    """UsageError for a part of a stage whose code is not what was planned: it was edited since. A sweep whose
    process has imported it goes on with what it has."""
    sections: dict[str, Registry] = {section: registry() for section, registry in REGISTRIES.items()}
    for section, registry in (sections | {"metric": metrics}).items():
        for name, version in depends.get(section, {}).get(CODE_KEY, {}).items():
            if not is_shipped(registry, name):
                registry.get(name)  # what runs from here on is what stands in its files now
            if find_version(registry, name) != version:
                raise UsageError(
                    f"{registry.kind} '{name}' was edited after this run was planned; start the run again"
                )


@cache
def list_shipped_metric_modules() -> frozenset[str]:
    """The modules that shipped metrics are made of, and their packages."""
    starts = {
        point.module for name, point in metrics.entry_points.items() if name in SHIPPED_VERSIONS["metric"]
    }
    tops = {start.partition(".")[0] for start in starts}
    modules = collect_own_modules(starts, tops, ())
    return frozenset({*modules, *list_parents(modules)})


def find_distribution_modules(registry: Registry, name: str) -> frozenset[str]:
    """Top-level modules of the package that offers a part: its own code wherever it is installed."""
    point = registry.entry_points.get(name)
    if point is None or point.dist is None:
        return frozenset()
    return frozenset(file.parts[0].removesuffix(".py") for file in point.dist.files or ())


def list_own_files(registry: Registry, name: str) -> dict[str, Path]:
    """The files of all own modules that a part's code is in, by module. UsageError where it is in none."""
    if isinstance(registry, SignatureRegistry):
        modules = registry.list_modules(name)
        shipped_modules, packages = list_shipped_modules()
        known = frozenset(shipped_modules) | packages
    else:
        point = registry.entry_points.get(name)
        modules = [point.module if point is not None else registry.get(name).__module__]
        known = list_shipped_metric_modules()
    own_tops = find_distribution_modules(registry, name) | {module.partition(".")[0] for module in modules}
    files = list_modules_of(tuple(modules), own_tops, known)
    if not files:
        raise UsageError(
            f"{registry.kind} '{name}' of module {modules[0]} stands in no file, so its results could not be "
            "told from those of its next version; write it into one"
        )
    return files


# Once a request: an edited file may import other modules than those which run.
@remember_for_request()
def list_modules_of(
    starts: tuple[str, ...], own_tops: frozenset[str], known: frozenset[str]
) -> dict[str, Path]:
    """`collect_own_modules`, once for all cells that have a part."""
    return collect_own_modules(starts, own_tops, known)


def digest_own_file(path: Path) -> str:
    """The digest of a file of somebody's code, as it is now."""
    stat = path.stat()
    return digest_unchanged_file(path, stat.st_size, stat.st_mtime_ns)


@cache
def list_shipped_modules() -> tuple[dict[str, Path], frozenset[str]]:
    """The modules that shipped parts are made of, and the packages that list them, which import all parts."""
    starts: set[str] = set()
    for registry in signatures.registries():
        for name in SHIPPED_VERSIONS[registry.kind]:
            starts.update(registry.list_modules(name))
    packages = frozenset(list_parents(starts))
    tops = {start.partition(".")[0] for start in starts}
    return collect_own_modules(starts, tops, packages), packages


def collect_own_modules(
    starts: Iterable[str], own_tops: Collection[str], known: Collection[str]
) -> dict[str, Path]:
    """The files of `starts` and of what they import, by module, but for libraries and `known` modules."""
    files: dict[str, Path] = {}
    waiting = {*starts, *list_parents(starts)}
    while waiting:
        module = waiting.pop()
        if module in files or module in known:
            continue
        path = find_module_file(module)
        if path is None or is_library(module, path, own_tops):
            continue
        files[module] = path
        imported_modules = list_imported_modules(module, path)
        waiting |= imported_modules | list_parents(imported_modules)
    return files


def list_parents(modules: Iterable[str]) -> set[str]:
    """The packages that modules are in: importing a.b.c runs a and a.b."""
    parents: set[str] = set()
    for module in modules:
        names = module.split(".")
        for length in range(1, len(names)):
            parents.add(".".join(names[:length]))
    return parents


def find_module_file(module: str) -> Path | None:
    """Where a module lies; None for what has no file. Nothing is imported, its packages neither."""
    if module in sys.modules:
        file = getattr(sys.modules[module], "__file__", None)
        return Path(file) if file else None
    top, *names = module.split(".")
    try:
        spec = find_spec(top)
    except ValueError:  # a module that was made in this process
        return None
    for name in names:
        if spec is None or spec.submodule_search_locations is None:
            return None
        # by its last name alone: the whole one would ask for its package, which is not imported
        spec = PathFinder.find_spec(name, list(spec.submodule_search_locations))
    if spec is None or spec.origin is None or not spec.has_location:
        return None
    return Path(spec.origin)


def is_library(module: str, path: Path, own_tops: Collection[str]) -> bool:
    """Whether a module is neither somebody's own nor of a package that is among `own_tops`."""
    top = module.partition(".")[0]
    if top in own_tops:
        return False
    return top in sys.stdlib_module_names or not INSTALLED_FOLDERS.isdisjoint(path.parts)


def list_imported_modules(module: str, path: Path) -> set[str]:
    """What a module imports anywhere in its file, as names that may be modules."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # an extension module, or one that cannot be imported either
        return set()
    package = module if path.stem == "__init__" else module.rpartition(".")[0]
    modules: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = resolve_name("." * node.level + base, package)
            # a name of a package is a module of it, or something in its file
            modules.add(base)
            modules.update(f"{base}.{alias.name}" for alias in node.names)
    return modules
