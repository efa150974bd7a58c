"""Registries read from source, not imported: a typo is answered before two seconds of torch are spent.

There is no second list: names, knobs, types and defaults come from the `@register("name")` classes, by `ast`.
What the source does not tell plainly (a constructor inherited from another package, an entry point) is asked
of the real registry.
"""

import ast
import importlib
import inspect
from collections.abc import Iterator
from functools import cache, cached_property
from importlib.metadata import entry_points

from compressors.errors import UsageError
from compressors.registry import Registry, suggest
from experiments.config.source import Module, module, parameters, resolve


class SourceRegistry(Registry):
    """The registry of module `home`, from the source of `root`, whose import fills it, and its imports."""

    def __init__(self, home: str, root: str):
        self.home, self.root = module(home), root
        self._parameters: dict[str, dict[str, inspect.Parameter]] = {}
        call = self.home.defined["registry"]
        given = {k: ast.literal_eval(v) for k, v in zip(("kind", "group", "context"), call.args)}
        super().__init__(**given, **{k.arg: ast.literal_eval(k.value) for k in call.keywords})

    @cached_property
    def real(self) -> Registry:
        """The registry itself, filled; imports torch."""
        package = importlib.import_module(self.root)
        getattr(package, "names", list)()  # a package that imports its parts on first use
        return importlib.import_module(self.home.name).registry

    @cached_property
    def found(self) -> dict[str, tuple[Module, ast.ClassDef]]:
        """Registered name -> (module, class)."""
        seen, queue, found = set(), [self.root], {}
        while queue:
            name = queue.pop()
            here = module(name) if name not in seen else None
            seen.add(name)
            if here is not None:
                queue.extend(here.neighbours())
                found |= {r: (here, c) for c in here.defined.values() for r in self._registered(c, here)}
        return found

    def _registered(self, node: ast.AST, here: Module) -> Iterator[str]:
        for call in getattr(node, "decorator_list", ()):
            if isinstance(call, ast.Call) and call.args and isinstance(call.args[0], ast.Constant):
                name = call.func.value if isinstance(call.func, ast.Attribute) else call.func
                found = resolve(name.id, here) if isinstance(name, ast.Name) else None
                if found and found[0] is self.home and name.id in ("register", "registry"):
                    yield call.args[0].value

    @cached_property
    def outside(self) -> set[str]:
        """Names that other packages offer."""
        return {p.name for p in entry_points(group=self.group)} if self.group else set()

    def names(self) -> list[str]:
        return sorted(self.outside | self.found.keys())

    def require(self, name: str) -> str:
        """`name`, or a UsageError with the closest one."""
        if name not in self.found and name not in self.outside:
            raise UsageError(f"unknown {self.kind} '{name}'{suggest(name, self.names())}")
        return name

    def get(self, name: str) -> type:
        return self.real.get(self.require(name))

    def parameters(self, name: str) -> dict[str, inspect.Parameter]:
        if name not in self._parameters:
            self._parameters[name] = self._read(name)
        return self._parameters[name]

    def _read(self, name: str) -> dict[str, inspect.Parameter]:
        self.require(name)
        for where, node in self.lineage(name):
            for item in node.body:
                if isinstance(item, ast.FunctionDef) and item.name == "__init__":
                    return parameters(item, where)
        return self.real.parameters(name)

    def settled(self, name: str, knobs: dict[str, object]) -> dict[str, object]:
        """All knobs of `name`: as set, else their defaults."""
        defaults = {k: p.default for k, p in self.knobs(name).items() if p.default is not p.empty}
        return defaults | knobs

    def lineage(self, name: str) -> Iterator[tuple[Module, ast.ClassDef]]:
        """A class and its bases as far as their source is in reach; nothing for an outside package's."""
        where, node = self.found.get(name, (None, None))
        while node is not None:
            yield where, node
            found = next((resolve(b.id, where) for b in node.bases if isinstance(b, ast.Name)), None)
            where, node = found if found and isinstance(found[1], ast.ClassDef) else (None, None)

    @cache  # noqa: B019  one registry of each kind lives as long as the process
    def mentions(self, name: str, attribute: str, base: str) -> bool:
        """Whether a class or a base below `base` speaks of `attribute`; True if its source is elsewhere."""
        lineage = [node for _, node in self.lineage(name) if node.name != base]
        words = {getattr(n, "attr", getattr(n, "id", None)) for node in lineage for n in ast.walk(node)}
        return not lineage or attribute in words


@cache
def compressors() -> SourceRegistry:
    """Visual compressors."""
    return SourceRegistry("compressors.base", "compressors")


@cache
def query_modules() -> SourceRegistry:
    """What `+NAME` may add to a compressor."""
    return SourceRegistry("connectors.query_module", "connectors.embq")


@cache
def projectors() -> SourceRegistry:
    """Between compressor and LLM."""
    return SourceRegistry("connectors.projector", "connectors.projector")


@cache
def pruners() -> SourceRegistry:
    """What drops visual tokens inside the LLM."""
    return SourceRegistry("llm_adapters.pruning.base", "llm_adapters.pruning")


def registries() -> tuple[SourceRegistry, ...]:
    """All of them."""
    return compressors(), query_modules(), projectors(), pruners()
