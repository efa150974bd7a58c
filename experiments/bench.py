"""What spatial attention pooling costs: a training step of SAP, beside the form it has in the released code
(one scorer call for each window) and beside the scorer's first matrix product alone, which no implementation
can avoid. What it costs within a model `python -m experiments.efficiency` tells.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rich.console import Console

from compressors.command_line import Command, CommandLine, setting
from experiments.runtime.text_tables import make_framed_table

if TYPE_CHECKING:
    from torch import Tensor

    from compressors.sap import SpatialAttentionPooling

BASE = "matrix product"  # what the ratios are of


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
    usage="python -m experiments.bench [KEY=VALUE ...]", description=__doc__, options=BenchOptions
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    return COMMAND.run(run_bench, arguments)


def run_bench(line: CommandLine) -> int:
    """The command, with its exceptions: a line on the machine, then a table for either kind of tower."""
    import platform

    import torch  # --help does not wait for it

    options: BenchOptions = line.options
    if options.quick:
        options = replace(options, batch=2, grid=9, dim=64, rounds=3)
    if options.threads:
        torch.set_num_threads(options.threads)
    on_gpu = options.device.startswith("cuda")
    device_name = torch.cuda.get_device_name(options.device) if on_gpu else platform.machine()
    console = Console()
    console.print(
        f"device {options.device} ({device_name}), {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, python {platform.python_version()}",
        highlight=False,
    )
    shape = f"{options.batch} x {options.grid}x{options.grid}x{options.dim}"
    header = ["forward + backward", "ms", f"of {options.rounds}", "ratio", "MiB kept"]
    for train_tower, tower in ((False, "frozen"), (True, "trained")):
        title = f"SAP, {shape}, rate {options.rate}, {options.dtype}, tower {tower}"
        rows = measure_sap_rows(options, train_tower)
        console.print(make_framed_table([header, *rows], title=title), highlight=False)
    return 0


def measure_sap_rows(options: BenchOptions, train_tower: bool) -> list[list[str]]:
    """Milliseconds of a training step, how many times the matrix product's, what autograd keeps."""
    from functools import partial

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
