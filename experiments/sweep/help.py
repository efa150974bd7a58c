"""The text of --help, made from the settings and the registries themselves."""

import inspect

from compressors.errors import UsageError, join_lines
from compressors.setting_fields import Setting, collect_settings, format_value
from experiments.config import signatures
from experiments.config.presets import list_presets
from experiments.config.schema import BLIND_COMPRESSOR, Config
from experiments.sweep.options import LaunchOptions, name_launch_option

HELP_HEAD = """\
Trains and evaluates cells, one for each combination of the values given, and prints a table of them. What was
computed before is taken from the output directory; a run that was interrupted goes on where it stopped.

  python -m experiments.sweep compressor=sap+embq                           one cell of the embedded default
  python -m experiments.sweep compressor=avg_pool,sap,sap+embq seed=0,1,2   commas: the product
  python -m experiments.sweep compressor=sap+embq embq.at=[2,4],3           but not inside brackets
  python -m experiments.sweep preset=flashsloth data.train=llava.json \\
      data.pretrain=captions.json data.test=test.json data.images=images

Data of one's own, tables and launching: experiments/README.md.

  --plan        show what would be computed, shared, and is there already; refuses what a sweep would refuse
  table=NAME    the rows of the paper's table 3, 4, 5 or 6, of several (3,4), of all of these, of field (every
                compressor, without and with EmbQ), baselines (training-free ones), pruners, longer
                (training), rates (36 to 4 tokens), core (eight rows that tell the most, for large backbones),
                or of your own FILE.yaml
  rows=LABEL    of a table's rows these alone
  blind=false   without the row that sees no image
  earlier=DIR   without the cells that the report in DIR has, which `python -m ablations.report earlier=DIR`
                shows; earlier=tiny: of the study that comes with the package

Where cells run, which is in no result's key:

"""
SETTING_WIDTH = 39
SLURM_HELP = (
    "submitit's: partition, time (minutes), gpus_per_node, ...; cluster=local: without Slurm"  # slurm.py
)


def format_knob(knob: inspect.Parameter) -> str:
    """A part's knob with its default, if it has one."""
    if knob.default is knob.empty:
        return knob.name
    return f"{knob.name}={format_value(knob.default)}"


def format_knobs(registry: signatures.SignatureRegistry, name: str) -> str:
    """The knobs of a part with their defaults."""
    return "  ".join(map(format_knob, registry.knobs(name).values()))


def format_part(registry: signatures.SignatureRegistry, name: str, name_width: int) -> str:
    """The line of a part; of an outside package's that is broken, the reason stands for its knobs."""
    try:
        knobs = format_knobs(registry, name)
    except UsageError as error:
        knobs = f"unusable: {join_lines(error)}"
    return f"  {name:{name_width}}  {knobs}".rstrip()


def format_launch_options() -> list[str]:
    """Lines of the launch options."""
    lines = []
    for name, option in collect_settings(LaunchOptions).items():
        assignment = f"{name_launch_option(name)}={format_value(option.default)}"
        lines.append(f"  {assignment:22}  {option.help}")
    lines.append(f"  {'launch.slurm.KEY=VALUE':22}  {SLURM_HELP}")
    return lines


def format_setting(path: str, setting: Setting) -> str:
    """The line of a cell's setting."""
    choices = [format_value(choice) for choice in setting.choices if choice is not None]
    meaning = setting.help
    if len(choices) > 1:
        meaning += f" ({', '.join(choices)})"
    assignment = f"{path}={format_value(setting.default)}"
    return f"  {assignment:{SETTING_WIDTH}}  {meaning}"


def make_help_text() -> str:
    """What stands behind HELP_HEAD."""
    lines = [*format_launch_options(), ""]
    name_width = max(len(name) for registry in signatures.registries() for name in registry.names())
    presets = ", ".join(list_presets())
    lines += [f"Presets: {presets}, or a YAML file. Settings, with their values before any preset:", ""]
    for path, setting in collect_settings(Config).items():
        lines.append(format_setting(path, setting))
    for registry in signatures.registries():
        lines += ["", f"{registry.kind.capitalize()}s and their knobs, set as NAME.KNOB=VALUE:", ""]
        for name in registry.names():
            lines.append(format_part(registry, name, name_width))
        if registry is signatures.compressors():
            lines.append(f"  {BLIND_COMPRESSOR:{name_width}}  no image at all")
    return "\n".join([*lines, ""])
