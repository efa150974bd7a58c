"""Registries read from source, without importing it: a typo is answered before two seconds of torch are spent.

There is no second list: names, knobs, types and defaults come from the `@register("name")` classes themselves, by `ast`.
What the source does not tell plainly (a constructor that is inherited from another package, an entry point) is asked of
the real registry.
"""
import ast
import builtins
import importlib
import inspect
import typing
from collections.abc import Iterator
from functools import cache, cached_property
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from compressors.errors import UsageError
from compressors.registry import Registry, suggest

PACKAGES = ("compressors", "connectors")


class Module:
    """The top level of one module's source: what it defines and what it imports from where."""

    def __init__(self, name: str, path: Path):
        self.name = name
        tree = ast.parse(path.read_text(encoding="utf-8"))
        self.defined: dict[str, ast.expr | ast.ClassDef] = {}
        self.imported: dict[str, tuple[str, str]] = {}
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                self.defined[node.name] = node
            elif isinstance(node, ast.Assign):
                self.defined.update(pair for target in node.targets for pair in unpack(target, node.value))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                self.imported.update({a.asname or a.name: (node.module, a.name) for a in node.names})

    def neighbours(self) -> Iterator[str]:
        """Modules of the same package that this one imports."""
        package = self.name.partition(".")[0]
        for module, name in self.imported.values():
            if module.partition(".")[0] == package:
                yield from (module, f"{module}.{name}")


def unpack(target: ast.expr, value: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    """(name, expression) pairs of an assignment, `a, b = x, y` included."""
    if isinstance(target, ast.Name):
        yield target.id, value
    elif isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
        for left, right in zip(target.elts, value.elts):
            yield from unpack(left, right)


@cache
def module(name: str) -> Module | None:
    """The source of a module of ours, None if there is none such. A top-level package is located without import."""
    package, *rest = name.split(".")
    if package not in PACKAGES:
        return None
    base = Path(find_spec(package).submodule_search_locations[0], *rest)
    path = next((p for p in (base / "__init__.py", base.with_suffix(".py")) if p.is_file()), None)
    return path and Module(name, path)


def resolve(name: str, where: Module | None) -> tuple[Module, ast.expr | ast.ClassDef] | None:
    """Where `name`, as seen in `where`, is defined; imports are followed."""
    while where is not None and name not in where.defined:
        if name not in where.imported:
            return None
        source, name = where.imported[name]
        where = module(source)
    return where and (where, where.defined[name])


class Names(dict):
    """The names of a module for evaluating an annotation; what cannot be resolved stands for anything."""

    def __init__(self, where: Module):
        super().__init__(vars(builtins))
        self.where = where

    def __missing__(self, name: str) -> object:
        if hasattr(typing, name):
            return getattr(typing, name)
        found = resolve(name, self.where)
        return annotation(found[1], found[0]) if found and isinstance(found[1], ast.expr) else typing.Any


def annotation(node: ast.expr | None, where: Module) -> object:
    """The type that an annotation spells; `inspect.Parameter.empty` when its source does not tell."""
    if node is None:
        return inspect.Parameter.empty
    try:
        return eval(compile(ast.Expression(node), where.name, "eval"), {"__builtins__": {}}, Names(where))
    except (AttributeError, TypeError):  # torch.Tensor, nn.Module: never a knob's type
        return inspect.Parameter.empty


def parameters(node: ast.FunctionDef, where: Module) -> dict[str, inspect.Parameter]:
    """A constructor's parameters, `self` left out."""
    given, kinds = node.args, inspect.Parameter
    positional = [*given.posonlyargs, *given.args]
    defaults = [None] * (len(positional) - len(given.defaults)) + list(given.defaults)
    rows = [(a, d, kinds.POSITIONAL_OR_KEYWORD) for a, d in zip(positional, defaults)][1:]
    rows += [(a, d, kinds.KEYWORD_ONLY) for a, d in zip(given.kwonlyargs, given.kw_defaults)]
    return {a.arg: kinds(a.arg, kind, default=kinds.empty if d is None else literal(d),
                         annotation=annotation(a.annotation, where)) for a, d, kind in rows}


def literal(node: ast.expr) -> object:
    """The value that an expression spells, or its text if it is not a literal."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node)


class SourceRegistry(Registry):
    """The registry that lives in module `home`, from the source of `root` (whose import fills it) and its imports."""

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
        """Whether a class or a base below `base` speaks of `attribute`; True where its source is out of reach."""
        lineage = [node for _, node in self.lineage(name) if node.name != base]
        return not lineage or any(
            attribute in (getattr(n, "attr", None), getattr(n, "id", None)) for c in lineage for n in ast.walk(c)
        )


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
