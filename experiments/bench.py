"""What compressors cost: the forward pass of each on random features, how near it comes to what the machine
can do, and how many kernels it launches; beside the original's, where an installed library has it. Then
spatial attention pooling (SAP) in a training step, beside the form it has in the released code (one scorer
call for each window) and beside the scorer's first matrix product alone, which no implementation can avoid.
What a compressor costs within a model `python -m experiments.efficiency` tells.

An outside package's that does not work is left out, and a line says why, unless it is asked for by name.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.console import Console

from compressors.command_line import Command, CommandLine
from compressors.errors import UsageError, join_lines
from compressors.setting_fields import setting
from experiments.runtime.text_tables import make_framed_table, make_word_tables

if TYPE_CHECKING:
    from torch import Tensor

    from compressors.base import Compressor
    from compressors.sap import SpatialAttentionPooling

BASE = "matrix product"  # what the ratios are of
LLM_DIM = 2560  # width that compressors with a projector of their own project to, Phi-2's
KEY_DIM = 64  # of the keys that some read, a head's
JOINT_DIM = 768  # of the space that patches share with a text encoder, CLIP-L's
TEXT_TOKENS = 40  # of a question
CAPTION = (
    "ms, lowest: median and lowest of the rounds; limit: what this machine takes to move inputs, weights and "
    "tokens once (by copy) or for as many multiplications (by math), the longer of the two; share: limit of "
    "ms; kernels: operations launched, without views"
)
COMPRESSOR_HEADER = ["compressor", "tokens", "ms", "lowest", "limit", "share", "by", "kernels"]


@dataclass(frozen=True)
class BenchOptions:
    batch: int = setting(8, "images", low=1)
    grid: int = setting(27, "patches along each side", low=1)
    dim: int = setting(1152, "tower width", low=1)
    rate: int = setting(3, "window size", low=1)
    rounds: int = setting(9, "measured rounds", low=1)
    threads: int | None = setting(None, "CPU threads (torch's choice)", low=1)
    device: str = setting("cpu", "where the timing runs")
    dtype: str = setting("float32", "of features and weights", choices=("float32", "bfloat16"))
    quick: bool = setting(False, "small sizes, three rounds: to try the command")


COMMAND = Command(
    usage="python -m experiments.bench [COMPRESSOR ...] [KEY=VALUE ...]",
    description=__doc__,
    options=BenchOptions,
    words=(0, None),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    return COMMAND.run(run_bench, arguments)


def run_bench(line: CommandLine) -> int:
    """The command, with its exceptions: a line on the machine, then the tables. Compressors that are named
    have the first one alone."""
    import platform

    import torch  # --help does not wait for it

    from experiments.efficiency.conditions import parse_device

    options: BenchOptions = line.options
    names = check_names(line.words)
    if options.quick:
        options = replace(options, batch=2, grid=9, dim=64, rounds=3)
    if options.threads:
        torch.set_num_threads(options.threads)
    device = parse_device(options.device)
    device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    console = Console()
    console.print(
        f"device {options.device} ({device_name}), {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, python {platform.python_version()}",
        highlight=False,
    )
    shape = f"{options.batch} x {options.grid}x{options.grid}x{options.dim}"
    rows: list[list[str]] = []
    for name in names:
        try:
            rows += measure_compressor(name, options)
        except UsageError as error:
            if line.words or not is_outside_part(name):
                raise
            console.print(f"left out: {join_lines(error)}", highlight=False)
    title = f"forward, {shape}, rate {options.rate}, {options.dtype}"
    tables = make_word_tables([COMPRESSOR_HEADER, *rows], console.width, title=title, caption=CAPTION)
    console.print(*tables, sep="", highlight=False)
    if line.words:
        return 0
    header = ["forward + backward", "ms", f"of {options.rounds}", "ratio", "MiB kept"]
    for train_tower, tower in ((False, "frozen"), (True, "trained")):
        title = f"SAP, {shape}, rate {options.rate}, {options.dtype}, tower {tower}"
        rows = measure_sap_rows(options, train_tower)
        console.print(make_framed_table([header, *rows], title=title), highlight=False)
    return 0


def check_names(words: Sequence[str]) -> list[str]:
    """The compressors that are named, else all; UsageError for an unknown one."""
    import compressors

    for word in words:
        compressors.knobs(word)
    return list(words) or list(compressors.names())


def is_outside_part(name: str) -> bool:
    """Whether a compressor is another package's."""
    from experiments.config import signatures

    return name not in signatures.compressors().list_built_in()


def measure_compressor(name: str, options: BenchOptions) -> list[list[str]]:
    """The row of a compressor, and one below it for its original. UsageError for one that does not work."""
    import torch

    from compressors.registry import naming_part
    from experiments.config import signatures

    registry = signatures.compressors()
    place: dict[str, Any] = {"device": options.device, "dtype": getattr(torch, options.dtype)}
    torch.manual_seed(0)
    with naming_part(registry.kind, name, registry.get(name)):
        part = make_compressor(name, options).to(**place).eval().requires_grad_(False)
        features, *text = make_inputs(part, options, place)
        call = partial(part, features, *text)
        rows = [measure_call(name, call, [features, *part.parameters()], options)]
    original = make_original(name, options, place)
    if original is not None:
        label, original_call, weights = original
        patches = features[..., : options.dim]
        read = [patches, *weights]
        rows.append(measure_call(label, partial(original_call, patches), read, options))
    return rows


def make_compressor(name: str, options: BenchOptions) -> Compressor:
    """A compressor with its defaults, but for the rate."""
    import compressors

    knobs: dict[str, Any] = {}
    if "rate" in compressors.knobs(name):
        knobs["rate"] = options.rate
    part: Compressor = compressors.create(name, dim=options.dim, llm_dim=LLM_DIM, **knobs)
    return part


def make_inputs(part: Compressor, options: BenchOptions, place: dict[str, Any]) -> list[Tensor]:
    """Features (B, H, W, channels) with what else the compressor reads, then a question where it does."""
    import torch

    from compressors.cues import count_channels

    channels = count_channels(options.dim, part.needs_levels, part.needs_cues, KEY_DIM, JOINT_DIM)
    if part.needs_projected:
        channels += LLM_DIM
    tensors = [torch.rand(options.batch, options.grid, options.grid, channels, **place)]
    if part.needs_text:
        tensors.append(torch.randn(options.batch, TEXT_TOKENS, LLM_DIM, **place))
    elif part.needs_tower_text:
        tensors.append(torch.randn(options.batch, 1, JOINT_DIM, **place))
    return tensors


def make_original(
    name: str, options: BenchOptions, place: dict[str, Any]
) -> tuple[str, Callable[[Tensor], Tensor], list[Tensor]] | None:
    """A library's own form of a compressor, of the same sizes, with its weights; None where none has it."""
    if name != "qformer":
        return None
    import torch
    from transformers import Blip2QFormerConfig, Blip2QFormerModel

    config = Blip2QFormerConfig(encoder_hidden_size=options.dim)
    model = Blip2QFormerModel(config).to(**place).eval().requires_grad_(False)
    queries = torch.randn(1, 32, config.hidden_size, **place)

    def read_patches(patches: Tensor) -> Tensor:
        memory = patches.flatten(1, 2)
        output = model(query_embeds=queries.expand(len(memory), -1, -1), encoder_hidden_states=memory)
        tokens: Tensor = output.last_hidden_state
        return tokens

    return "qformer, transformers", read_patches, list(model.parameters())


def measure_call(
    label: str, call: Callable[[], Tensor], tensors: Sequence[Tensor], options: BenchOptions
) -> list[str]:
    """The row of a call that reads `tensors`: its time, the machine's own for as much work, its kernels."""
    import torch

    from experiments.efficiency import limits, timing

    place: dict[str, Any] = {"device": options.device, "dtype": getattr(torch, options.dtype)}
    with torch.no_grad():
        references, reference_work = limits.make_references(place)
        # in turn with the machine's own limits: a slow minute hits all alike
        seconds = timing.time_interleaved({label: call, **references}, options.rounds)
        work = limits.find_limit(call, tensors)
        kernels = limits.count_kernels(call)
        tokens = call().shape[1]
    spread = timing.find_spread(seconds[label])
    copying = work.bytes / reference_work.bytes * timing.find_spread(seconds["copy"]).median
    multiplying = work.flops / reference_work.flops * timing.find_spread(seconds["product"]).median
    limit = max(copying, multiplying)
    row = [label, str(tokens)]
    row += [format_milliseconds(time) for time in (spread.median, spread.low, limit)]
    row.append(f"{limit / spread.median:.0%}")
    row += ["copy" if copying > multiplying else "math", str(kernels)]
    return row


def format_milliseconds(seconds: float) -> str:
    """0.17, 23.4 or 8236: no more digits than mean something, and few enough not to fold in a table."""
    milliseconds = seconds * 1e3
    if milliseconds >= 100:
        return f"{milliseconds:.0f}"
    return f"{milliseconds:.1f}" if milliseconds >= 10 else f"{milliseconds:.2f}"


def measure_sap_rows(options: BenchOptions, train_tower: bool) -> list[list[str]]:
    """Milliseconds of a training step, how many times the matrix product's, what autograd keeps."""
    import torch

    import compressors
    from experiments.efficiency import timing

    place: dict[str, Any] = {"device": options.device, "dtype": getattr(torch, options.dtype)}
    sap = compressors.create("sap", dim=options.dim, rate=options.rate).to(**place)
    shape = (options.batch, options.grid, options.grid, options.dim)  # (B, H, W, C)
    features = torch.randn(shape, **place, requires_grad=train_tower)
    check_same_tokens(sap, features)
    # the first layer alone: every patch has to go through it, however windows are taken
    calls = {BASE: sap.scorer[0], "SAP": sap, "SAP, looped": partial(pool_by_loop, sap)}
    weights = list(sap.parameters())
    steps = {name: timing.make_training_step(call, features, weights) for name, call in calls.items()}
    seconds = timing.time_interleaved(steps, options.rounds)
    rows = []
    for name, call in calls.items():
        spread = timing.find_spread(seconds[name])
        ratio = timing.compare_rounds(seconds[name], seconds[BASE])
        kept_bytes = timing.count_kept_bytes(call, features, weights)
        row = [name, f"{spread.median * 1e3:.1f}", f"{spread.low * 1e3:.1f} - {spread.high * 1e3:.1f}"]
        row += [f"{ratio.median:.2f}", f"{kept_bytes / 2**20:.1f}"]
        rows.append(row)
    return rows


def pool_by_loop(sap: SpatialAttentionPooling, features: Tensor) -> Tensor:
    """SAP as the released code computes it: window after window, the scorer called for each.

    (B, H, W, C) -> (B, N, C)"""
    import torch
    from einops import rearrange

    tokens = []
    for top in range(0, features.shape[1], sap.rate):
        for left in range(0, features.shape[2], sap.rate):
            window = features[:, top : top + sap.rate, left : left + sap.rate]
            window = rearrange(window, "b i j c -> b (i j) c")
            weights = sap.scorer(window).softmax(1)
            tokens.append((weights * window).sum(1))
    return torch.stack(tokens, 1)


def check_same_tokens(sap: SpatialAttentionPooling, features: Tensor) -> None:
    """Both forms must give the same tokens, or their times mean nothing."""
    import torch

    tolerance = 1e-4 if features.dtype == torch.float32 else 0.1
    sap.eval()  # without dropout
    torch.testing.assert_close(sap(features), pool_by_loop(sap, features), rtol=tolerance, atol=tolerance)
    sap.train()


if __name__ == "__main__":
    sys.exit(main())
