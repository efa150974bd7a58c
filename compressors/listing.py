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
from compressors.registry import naming_part
from compressors.setting_fields import format_value

DIM = 1152  # SigLIP-so400m
LLM_DIM = 2560  # Phi-2
GRIDS = ((27, 27), (24, 24))  # so400m's, and one that even rates divide
PAPER = re.compile(r"arXiv \d{4}\.\d{4,5}|https?://[^\s,;)]+")
NO = "-"
YES = "yes"
HOST = "host's"
TOWER = "tower's"
UNKNOWN = "?"


@dataclass(frozen=True)
class CompressorFacts:
    """One line each, at default knobs, a tower of `DIM` and an LLM of `LLM_DIM` channels."""

    name: str
    tokens: str  # 27x27 -> 81
    width: str  # of a token
    learned: str  # parameters: 1.3 M; -: none
    # reads the question: yes, -, what makes it do so, such as text=true, or by the tower's text encoder
    text: str
    projects: str  # makes tokens as wide as the LLM's, likewise
    levels: str  # reads several hidden states of the tower, likewise
    cues: str  # what else it asks the tower for: attention, keys, cls
    source: str  # the paper's number or the repository; -: a control, or an outside package that names none
    title: str  # the first paragraph of the module's docstring
    summary: str  # that of the class
    rule: str  # H*W -> tokens, as the module's docstring has it, with an example
    knobs: tuple[str, ...]


def collect_facts(name: str) -> CompressorFacts:
    """All of one registered compressor. UsageError for an unknown name, and for one whose code is broken."""
    cls = registry.get(name)
    with naming_part(registry.kind, name, cls):
        return read_facts(name, cls)


def read_facts(name: str, cls: type[Compressor]) -> CompressorFacts:
    """All of one registered compressor, whose code may raise anything."""
    # a class made in a notebook or by `exec` has no module with a docstring
    module_text = inspect.cleandoc(getattr(sys.modules.get(cls.__module__), "__doc__", None) or "")
    title = take_first_paragraph(module_text)
    summary = take_first_paragraph(inspect.cleandoc(cls.__doc__ or ""))
    paper = PAPER.search(f"{title} {summary}")
    tokens, width, learned = describe_sizes(name)
    return CompressorFacts(
        name=name,
        tokens=tokens,
        width=width,
        learned=learned,
        text=describe_text(name),
        projects=describe_flag(name, "projects"),
        levels=describe_flag(name, "needs_levels"),
        cues=describe_cues(name),
        source=paper.group() if paper else NO,
        title=title,
        summary=summary,
        rule=find_token_rule(module_text),
        knobs=tuple(format_knob(knob, parameter) for knob, parameter in registry.knobs(name).items()),
    )


def take_first_paragraph(text: str) -> str:
    """Its words on one line."""
    paragraph = text.partition("\n\n")[0]
    return " ".join(paragraph.split())


def find_token_rule(module_text: str) -> str:
    """The line of a module's docstring that says how many tokens it makes, such as "H*W -> Q"."""
    for line in module_text.splitlines():
        if line.strip().startswith("H*W"):
            return line.strip()
    return ""


def build_without_memory(name: str, **knobs: object) -> Compressor:
    """It, without memory."""
    with torch.device("meta"):
        return registry.create(name, dim=DIM, llm_dim=LLM_DIM, **knobs)


def describe_sizes(name: str) -> tuple[str, str, str]:
    """Tokens, width and number of parameters; `?` where the defaults cannot be built."""
    try:
        part = build_without_memory(name)
    except UsageError:  # an outside compressor whose defaults do not fit these widths
        return UNKNOWN, UNKNOWN, UNKNOWN
    count = sum(parameter.numel() for parameter in part.parameters())
    learned = format_count(count) if count else NO
    return describe_token_rule(part), str(part.out_dim), learned


def describe_cues(name: str) -> str:
    """What else it asks the tower for; `?` where the defaults cannot be built."""
    try:
        return ", ".join(build_without_memory(name).needs_cues)
    except UsageError:
        return UNKNOWN


def describe_token_rule(part: Compressor) -> str:
    """`27x27 -> 81`, at the first of `GRIDS` that it takes; of the image's patches, also if it is shrunk."""
    for height, width in GRIDS:
        try:
            count = part.num_tokens(height // part.image_rate, width // part.image_rate)
        except UsageError:
            continue
        return f"{height}x{width} -> {count}"
    return UNKNOWN


def format_count(count: int) -> str:
    """1.3 M, 12.5 k, 900."""
    for unit, name in ((1e6, " M"), (1e3, " k")):
        if count >= unit:
            return f"{count / unit:.1f}{name}"
    return str(count)


def describe_flag(name: str, flag: str) -> str:
    """Whether a compressor has a flag of the contract, or which one of its switches gives it the flag."""
    if "host" in registry.knobs(name):  # a wrapper: as what it wraps
        return HOST
    if has_flag(name, flag):
        return YES
    for knob, parameter in registry.knobs(name).items():
        if isinstance(parameter.default, bool):
            switched = not parameter.default
            if has_flag(name, flag, **{knob: switched}):
                return f"{knob}={format_value(switched)}"
        takes_levels = parameter.default == () and parameter.annotation == tuple[int, ...]
        if takes_levels and has_flag(name, flag, **{knob: (1,)}):
            return f"{knob}=[...]"
    return NO


def describe_text(name: str) -> str:
    """Whether a compressor reads the question, and if by the tower's own text encoder."""
    if has_flag(name, "needs_tower_text"):
        return TOWER
    return describe_flag(name, "needs_text")


def has_flag(name: str, flag: str, **knobs: object) -> bool:
    """Whether a compressor with these knobs has a flag of the contract; not where it cannot be built."""
    try:
        return bool(getattr(build_without_memory(name, **knobs), flag))
    except UsageError:
        return False


def format_knob(name: str, parameter: Parameter) -> str:
    """`rate=3`; a choice shows all of them, its default first."""
    default = parameter.default
    if default is Parameter.empty:
        return f"{name}=?"
    if typing.get_origin(parameter.annotation) is typing.Literal:
        alternatives = [option for option in typing.get_args(parameter.annotation) if option != default]
        return f"{name}={'|'.join([default, *alternatives])}"
    return f"{name}={format_value(default)}"
