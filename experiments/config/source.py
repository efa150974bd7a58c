"""Source of our packages read by `ast`: what a module defines, imports and declares, without importing it."""

import ast
import builtins
import inspect
import typing
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("compressors", "connectors", "llm_adapters")


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
    elif isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        for left, right in zip(target.elts, value.elts):
            yield from unpack(left, right)


@cache
def module(name: str) -> Module | None:
    """The source of a module of ours, None if there is none such. Locating it imports nothing."""
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
    return {
        a.arg: kinds(
            a.arg,
            kind,
            default=kinds.empty if d is None else literal(d),
            annotation=annotation(a.annotation, where),
        )
        for a, d, kind in rows
    }


def literal(node: ast.expr) -> object:
    """The value that an expression spells, or its text if it is not a literal."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node)
