"""What a compressor tells of itself, for the list of `python -m compressors` and the gallery.

Nothing is written down a second time: knobs come from the signature, method, paper and token rule from the
docstring of the compressor's module, everything else from the compressor itself, built without memory.
"""

import inspect
import re
import sys
import typing
from dataclasses import dataclass
from inspect import Parameter

import torch

from compressors import Compressor, UsageError  # every built-in registers itself
from compressors.base import registry

DIM, LLM_DIM = 1152, 2560  # SigLIP-so400m, Phi-2
GRIDS = ((27, 27), (24, 24))  # so400m's, and one that even rates divide
PAPER = re.compile(r"arXiv \d{4}\.\d{4,5}|https?://[^\s,;)]+")
FLAGS = ("needs_text", "projects", "needs_levels")
NO, YES, HOST, UNKNOWN = "-", "yes", "host's", "?"


@dataclass(frozen=True)
class Facts:
    """One line each, at default knobs, a tower of `DIM` and an LLM of `LLM_DIM` channels."""

    name: str
    tokens: str  # 27x27 -> 81
    width: str  # of a token
    learned: str  # parameters: 1.3 M; -: none
    text: str  # reads the question: yes, -, or what makes it do so, such as text=true
    projects: str  # makes tokens as wide as the LLM's, likewise
    levels: str  # reads several hidden states of the tower, likewise
    source: str  # the paper's number or the repository; -: a control, or an outside package that names none
    title: str  # the first paragraph of the module's docstring
    summary: str  # that of the class
    rule: str  # H*W -> tokens, as the module's docstring has it, with an example
    knobs: tuple[str, ...]


def facts(name: str) -> Facts:
    """All of one registered compressor. UsageError for an unknown name."""
    cls = registry.get(name)
    module = inspect.cleandoc(getattr(sys.modules.get(cls.__module__), "__doc__", None) or "")
    title, summary = (
        " ".join(text.partition("\n\n")[0].split()) for text in (module, inspect.cleandoc(cls.__doc__ or ""))
    )
    paper = PAPER.search(f"{title} {summary}")
    rule = next((line.strip() for line in module.splitlines() if line.strip().startswith("H*W")), "")
    knobs = tuple(knob(k, p) for k, p in registry.knobs(name).items())
    return Facts(
        name,
        *sizes(name),
        *(when(name, flag) for flag in FLAGS),
        paper.group() if paper else NO,
        title,
        summary,
        rule,
        knobs,
    )


def build(name: str, **knobs: object) -> Compressor:
    """It, without memory."""
    with torch.device("meta"):
        return registry.create(name, dim=DIM, llm_dim=LLM_DIM, **knobs)


def sizes(name: str) -> tuple[str, str, str]:
    """Tokens, width and number of parameters; `?` where the defaults cannot be built."""
    try:
        part = build(name)
    except UsageError:  # an outside compressor whose defaults do not fit these widths
        return UNKNOWN, UNKNOWN, UNKNOWN
    count = sum(p.numel() for p in part.parameters())
    return rule_of(part), str(part.out_dim), amount(count) if count else NO


def rule_of(part: Compressor) -> str:
    """`27x27 -> 81`, at the first of `GRIDS` that it takes; of the image's patches, also if it is shrunk."""
    for height, width in GRIDS:
        try:
            count = part.num_tokens(height // part.image_rate, width // part.image_rate)
        except UsageError:
            continue
        return f"{height}x{width} -> {count}"
    return UNKNOWN


def amount(count: int) -> str:
    """1.3 M, 12.5 k, 900."""
    for unit, name in ((1e6, " M"), (1e3, " k")):
        if count >= unit:
            return f"{count / unit:.1f}{name}"
    return str(count)


def when(name: str, flag: str) -> str:
    """Whether a compressor has a flag of the contract, or which one of its switches gives it the flag."""
    knobs = registry.knobs(name)
    if "host" in knobs:  # a wrapper: as what it wraps
        return HOST
    switches: dict[str, object] = {k: not p.default for k, p in knobs.items() if isinstance(p.default, bool)}
    switches |= {k: (1,) for k, p in knobs.items() if p.default == () and p.annotation == tuple[int, ...]}
    for changed in ({}, *({k: value} for k, value in switches.items())):
        try:
            found = getattr(build(name, **changed), flag)
        except UsageError:
            continue
        if found:
            return "".join(f"{k}={'[...]' if v == (1,) else word(v)}" for k, v in changed.items()) or YES
    return NO


def word(value: object) -> str:
    """A value as a command line takes it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple):
        return f"[{','.join(map(word, value))}]"
    return str(value)


def knob(name: str, parameter: Parameter) -> str:
    """`rate=3`; a choice shows all of them, its default first."""
    default = parameter.default
    if default is Parameter.empty:
        return f"{name}=?"
    if typing.get_origin(parameter.annotation) is typing.Literal:
        options = typing.get_args(parameter.annotation)
        return f"{name}={'|'.join([default, *(option for option in options if option != default)])}"
    return f"{name}={word(default)}"
