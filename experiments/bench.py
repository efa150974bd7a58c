"""What spatial attention pooling costs: a training step of SAP, beside the form it has in the released code
(one scorer call for each window) and beside the scorer's first matrix product alone, which no implementation
can avoid. What it costs within a model `python -m experiments.efficiency` tells.
"""

import argparse
from collections.abc import Callable
from functools import partial

from compressors.errors import UsageError


def build_bench_parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser("python -m experiments.bench", description=__doc__)
    made.formatter_class = argparse.RawDescriptionHelpFormatter
    made.add_argument("--batch", type=int, default=8, help="images (8)")
    made.add_argument("--grid", type=int, default=27, help="patches along each side (27)")
    made.add_argument("--dim", type=int, default=1152, help="tower width (1152)")
    made.add_argument("--rate", type=int, default=3, help="window size (3)")
    made.add_argument("--rounds", type=int, default=9, help="measured rounds (9)")
    made.add_argument("--threads", type=int, help="CPU threads (torch's choice)")
    made.add_argument("--device", default="cpu", help="where the timing runs (cpu)")
    made.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="(float32)")
    made.add_argument("--quick", action="store_true", help="small sizes, three rounds: to try the command")
    return made


def pool_by_loop(sap, features):
    """SAP as the released code computes it: window after window, the scorer called for each."""
    import torch
    from einops import rearrange

    tokens = []
    for top in range(0, features.shape[1], sap.rate):
        for left in range(0, features.shape[2], sap.rate):
            window = features[:, top : top + sap.rate, left : left + sap.rate]
            window = rearrange(window, "b i j c -> b (i j) c")
            tokens.append((sap.scorer(window).softmax(1) * window).sum(1))
    return torch.stack(tokens, 1)


def check_same_tokens(sap, features) -> None:
    """Both forms must give the same tokens, or their times mean nothing."""
    import torch

    tolerance = 1e-4 if features.dtype == torch.float32 else 0.1
    sap.eval()
    torch.testing.assert_close(sap(features), pool_by_loop(sap, features), rtol=tolerance, atol=tolerance)
    sap.train()


def measure_sap_rows(given: argparse.Namespace, train_tower: bool) -> list[tuple[str, ...]]:
    """Milliseconds of a training step, how many times the matrix product's, what autograd keeps."""
    import torch

    import compressors
    from experiments.efficiency import timing

    options = {"device": given.device, "dtype": getattr(torch, given.dtype)}
    sap = compressors.create("sap", dim=given.dim, rate=given.rate).to(**options)
    shape = given.batch, given.grid, given.grid, given.dim
    features = torch.randn(shape, **options, requires_grad=train_tower)
    check_same_tokens(sap, features)
    calls = {"matrix product": sap.scorer[0], "SAP": sap, "SAP, looped": partial(pool_by_loop, sap)}
    inputs = features, list(sap.parameters())
    steps = {name: timing.make_training_step(call, *inputs) for name, call in calls.items()}
    seconds, rows = timing.time_interleaved(steps, given.rounds), []
    for name, call in calls.items():
        took, ratio = (
            timing.find_spread(seconds[name]),
            timing.compare_rounds(seconds[name], seconds["matrix product"]),
        )
        span = f"{took.low * 1e3:.1f} - {took.high * 1e3:.1f}"
        kept = f"{timing.count_kept_bytes(call, *inputs) / 2**20:.1f}"
        rows.append((name, f"{took.median * 1e3:.1f}", span, f"{ratio.median:.2f}", kept))
    return rows


def make_numbers_table(title: str, header: tuple[str, ...], rows: list[tuple[str, ...]]):
    """A rich table, numbers to the right."""
    from rich.table import Table

    made = Table(title=title, title_justify="left")
    for name in header:
        made.add_column(name, justify="right" if made.columns else "left", no_wrap=True)
    for row in rows:
        made.add_row(*row)
    return made


def print_bench_tables(given: argparse.Namespace, show: Callable[[object], None]) -> None:
    """All tables."""
    import platform

    import torch

    if given.threads:
        torch.set_num_threads(given.threads)
    cuda = given.device.startswith("cuda")
    named = torch.cuda.get_device_name(given.device) if cuda else platform.machine()
    show(
        f"device {given.device} ({named}), {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"python {platform.python_version()}"
    )
    sizes = f"{given.batch} x {given.grid}x{given.grid}x{given.dim}, rate {given.rate}, {given.dtype}"
    header = ("forward + backward", "ms", f"of {given.rounds}", "ratio", "MiB kept")
    for train_tower, words in ((False, "frozen"), (True, "trained")):
        show(make_numbers_table(f"SAP, {sizes}, tower {words}", header, measure_sap_rows(given, train_tower)))


def main(argv: list[str] | None = None) -> None:
    given = build_bench_parser().parse_args(argv)
    if given.quick:
        given.batch, given.grid, given.dim, given.rounds = 2, 9, 64, 3
    if given.rounds < 1:
        build_bench_parser().error(f"--rounds={given.rounds}: must be at least 1")
    from rich.console import Console

    try:
        print_bench_tables(given, partial(Console().print, highlight=False))
    except UsageError as error:
        build_bench_parser().error(str(error))


if __name__ == "__main__":
    main()
