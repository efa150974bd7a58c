"""Constructors with odd arguments: compressors, query modules, projectors, pruners, tiling."""

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from factories import KNOBS, picture
from harm import draw_value
from torch import nn
from trials import Kind, Trial

import compressors
from compressors.registry import Registry
from connectors import embq  # noqa: F401  it registers itself
from connectors.projector import registry as projectors
from connectors.query_module import registry as query_modules
from connectors.tiling import Tiling
from llm_adapters.pruning import registry as pruners

DIM, LLM_DIM, SIDE, TEXT = 24, 32, 6, 5
CONTEXT: dict[str, dict[str, Any]] = {
    "query module": {"llm_dim": LLM_DIM, "vision_dim": DIM, "llm_heads": 4, "llm_layers": 4},
    "projector": {"in_dim": LLM_DIM, "llm_dim": LLM_DIM},
    "pruner": {"llm_layers": 4},
}
FITTING = {  # knobs under which a part fits that model
    "embq": {"dim": 16, "at": 2, "num_queries": 3},
    "llava_mini": {"num_layers": 1, "num_queries": 3},
}
LARGEST = 4096  # of a number that a part is built with: memory is another matter


def make_kinds() -> dict[str, Kind]:
    """Parts as the model makes them, by name."""
    kinds: dict[str, Kind] = {"compressor": draw_compressor, "tiling": draw_tiling}
    for registry in (query_modules, projectors, pruners):
        kinds[registry.kind] = partial(draw_part, registry)
    return kinds


def draw_arguments(draw: random.Random, names: list[str]) -> dict[str, Any]:
    """One or two of these arguments with odd values, seldom one that is not there."""
    arguments = {}
    for _ in range(draw.choice([1, 1, 2])):
        name = draw.choice(names) if names and draw.random() < 0.97 else "nonsense"
        value = draw_value(draw)
        if not isinstance(value, (int, float)) or not abs(value) > LARGEST:
            arguments[name] = value
    return arguments


def draw_compressor(draw: random.Random, _: Path) -> Trial:
    """A compressor under odd knobs, and what it makes of features."""
    name = draw.choice(compressors.names())
    knobs = draw_arguments(draw, list(compressors.knobs(name)))
    arguments = {**KNOBS.get(name, {}), **knobs}
    create = partial(compressors.create, name, dim=DIM, llm_dim=LLM_DIM, **arguments)
    return Trial(f"{name} {knobs}", partial(check_part, create, knobs, use_compressor))


def draw_part(registry: Registry, draw: random.Random, _: Path) -> Trial:
    """Another part under odd knobs."""
    name = draw.choice(registry.names())
    knobs = draw_arguments(draw, list(registry.knobs(name)))
    arguments = {**CONTEXT[registry.kind], **FITTING.get(name, {}), **knobs}
    create = partial(registry.create, name, **arguments)
    return Trial(f"{name} {knobs}", partial(check_part, create, knobs, check_finite))


def draw_tiling(draw: random.Random, _: Path) -> Trial:
    """How pictures are cut."""
    arguments = draw_arguments(draw, ["tiles", "side", "layout"])
    arguments.pop("nonsense", None)  # Python's own TypeError is right
    create = partial(Tiling, **arguments)
    return Trial(f"Tiling {arguments}", partial(check_part, create, arguments, use_tiling))


def check_part(create: Callable[[], Any], arguments: dict[str, Any], use: Callable[[Any], None]) -> None:
    """A ValueError that names an argument, or a part that can be used."""
    torch.manual_seed(0)
    try:
        part = create()
    except ValueError as error:
        words = str(error)
        assert "\n" not in words, f"not one line: {words[:200]}"
        assert any(name in words for name in arguments), f"names no argument: {words[:200]}"
        return
    use(part)


def use_compressor(part: Any) -> None:
    """As many finite tokens as it says, or a ValueError for the grid."""
    part.eval()
    check_finite(part)
    channels = DIM * (1 + len(part.needs_levels)) + LLM_DIM * part.needs_projected
    inputs = [torch.randn(2, SIDE, SIDE, channels)]
    if part.needs_text:
        inputs += [torch.randn(2, TEXT, LLM_DIM), torch.ones(2, TEXT, dtype=torch.bool)]
    try:
        count = part.num_tokens(SIDE, SIDE)
        with torch.no_grad():
            tokens = part(*inputs)
    except ValueError:
        return
    assert tokens.shape == (2, count, part.out_dim), f"{tuple(tokens.shape)}, said {count}"
    assert count > 0, "no token"
    assert tokens.isfinite().all(), "tokens that are not finite"


def check_finite(part: Any) -> None:
    """No parameter is nan or infinite."""
    parameters = part.named_parameters() if isinstance(part, nn.Module) else ()
    for name, parameter in parameters:
        assert parameter.isfinite().all(), f"{name} is not finite"


def use_tiling(tiling: Tiling) -> None:
    """Rows and columns of a picture's tiles."""
    rows, columns = tiling.grid(*picture(0, (40, 30)).size)
    assert rows >= 1 and columns >= 1, f"{rows} x {columns} tiles"
