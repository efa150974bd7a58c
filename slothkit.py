"""SlothKit from Python, and the command `slothkit`: names for what the folders beside this file do.

    from slothkit import sweep

    results = sweep("compressor=sap,avg_pool", seed=[0, 1])
    print(results)
    model, processor = results[0].load()

Nothing is imported before it is used, so that `slothkit --help` and a misspelt line answer at once.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ablations.report import make_report as report
    from compressors import Compressor as Compressor
    from compressors import create as create
    from compressors import register as register
    from compressors.errors import UsageError as UsageError
    from experiments.models.saved import load_trained_model as load
    from experiments.sweep.results import CellsFailed as CellsFailed
    from experiments.sweep.results import SweepResults as SweepResults
    from experiments.sweep.run import sweep as sweep
    from llm_adapters import reuse as reuse

__version__ = "0.1.0"  # setup.cfg reads it from here
__all__ = ["CellsFailed", "Compressor", "SweepResults", "UsageError", "create", "load", "register", "report"]
__all__ += ["reuse", "sweep"]

PLACES = {  # name -> module and what it is called there; nothing: the module itself
    "sweep": ("experiments.sweep.run", "sweep"),
    "report": ("ablations.report", "make_report"),
    "SweepResults": ("experiments.sweep.results", "SweepResults"),
    "CellsFailed": ("experiments.sweep.results", "CellsFailed"),
    "load": ("experiments.models.saved", "load_trained_model"),
    "UsageError": ("compressors.errors", "UsageError"),
    "Compressor": ("compressors", "Compressor"),
    "create": ("compressors", "create"),
    "register": ("compressors", "register"),
    "reuse": ("llm_adapters.reuse", ""),
}
FLOORS = ("compressors", "connectors", "llm_adapters", "experiments", "ablations")
COMMANDS = {  # word -> module with `main` and `COMMAND`, and what it does
    "sweep": ("experiments.sweep.__main__", "train and evaluate cells, print a table of them"),
    "report": ("ablations.report", "tables of finished cells, verdicts, plots, LaTeX, a page"),
    "decide": ("ablations.decide", "add seeds to a table until its claims are decided"),
    "runs": ("experiments.runs", "what lies in out=, which cells need it; clears the rest"),
    "chat": ("experiments.chat", "ask a trained cell about a picture"),
    "attention_maps": ("experiments.attention_maps", "where a trained cell looks"),
    "efficiency": ("experiments.efficiency.__main__", "FLOPs, time to the first token, memory"),
    "compressors": ("compressors.__main__", "every compressor: tokens, parameters, source, knobs"),
}
SHELLS = ("bash", "zsh")
HELP = """\
Usage: slothkit COMMAND [KEY=VALUE ...]

{commands}
  completion SHELL  completion of these lines in {shells}:
                    source <(slothkit completion bash)

slothkit COMMAND --help tells a command's settings. `slothkit sweep` is
`python -m experiments.sweep`, and so on; in Python: from slothkit import sweep

  --help  --version
"""


def __getattr__(name: str) -> Any:
    if name not in PLACES:
        raise AttributeError(f"module 'slothkit' has no attribute '{name}'")
    hiding = find_hidden_floor()
    if hiding:
        raise ImportError(hiding)
    module, attribute = PLACES[name]
    found = import_module(module)
    return getattr(found, attribute) if attribute else found


def __dir__() -> list[str]:
    return sorted({*globals(), *PLACES})


def find_hidden_floor() -> str:
    """One line if a package of somebody's own hides one of ours; nothing if none does."""
    home = Path(__file__).resolve().parent
    for floor in FLOORS:
        spec = find_spec(floor)
        if spec is None:
            return f"{floor}: not installed beside {__file__}; install slothkit again"
        if spec.origin is None or Path(spec.origin).resolve().parent != home / floor:
            place = spec.origin or ", ".join(spec.submodule_search_locations or ())
            return (
                f"{place} hides slothkit's own '{floor}', which Python finds later on its path; rename it, "
                "or take its folder out of PYTHONPATH or sys.path"
            )
    return ""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `slothkit`; its exit code: the command's own, 2 for a word that is no command."""
    line = sys.argv[1:] if arguments is None else list(arguments)
    if not line or line[0] in ("-h", "--help", "help"):
        sys.stdout.write(format_help())
        return 0
    if line[0] in ("-V", "--version"):
        sys.stdout.write(f"slothkit {__version__}\n")
        return 0
    hiding = find_hidden_floor()
    if hiding:
        sys.stderr.write(f"error: {hiding}\n")
        return 2
    from compressors.command_line import run_guarded
    from compressors.spelling import spell_as

    scripts = {module.removesuffix(".__main__"): f"slothkit {word}" for word, (module, _) in COMMANDS.items()}
    with spell_as(scripts):
        return run_guarded(lambda: run_command(line[0], line[1:]), "write to another place")


def run_command(word: str, arguments: list[str]) -> int:
    """A command's exit code; UsageError for one that there is not."""
    from compressors.errors import UsageError
    from compressors.registry import suggest

    if word in ("completion", "complete"):
        from experiments import completion

        if word == "complete":
            commands = {name: module for name, (module, _) in COMMANDS.items()}
            return completion.print_completions(arguments, [*commands, "completion"], commands.get)
        return completion.print_script(arguments)
    if word not in COMMANDS:
        raise UsageError(f"unknown command '{word}'{suggest(word, [*COMMANDS, 'completion'])}")
    module, _ = COMMANDS[word]
    exit_code: int = import_module(module).main(arguments)
    return exit_code


def format_help() -> str:
    """The text of --help."""
    lines = [f"  {name:16}  {meaning}" for name, (_, meaning) in COMMANDS.items()]
    return HELP.format(commands="\n".join(lines), shells=" or ".join(SHELLS))


if __name__ == "__main__":
    sys.exit(main())
