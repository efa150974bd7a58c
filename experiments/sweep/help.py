"""The text of --help, made from the settings and the registries themselves."""

from compressors.command_line import collect_settings
from experiments.config import signatures
from experiments.config.presets import list_presets
from experiments.config.schema import BLIND_COMPRESSOR, Config
from experiments.sweep.options import SLURM_PREFIX, LaunchOptions, name_launch_option

HELP_HEAD = """\
Usage: python -m experiments.sweep [KEY=VALUE ...] [--plan] [--help]

Trains and evaluates cells, one for each combination of the values given, and prints a table of them. What was
computed before is taken from the output directory; a run that was interrupted goes on where it stopped.

  python -m experiments.sweep compressor=sap+embq                           one cell of the embedded default
  python -m experiments.sweep compressor=avg_pool,sap,sap+embq seed=0,1,2   commas: the product
  python -m experiments.sweep compressor=sap+embq embq.at=[2,4],3           but not inside brackets
  python -m experiments.sweep preset=flashsloth data.pretrain=captions.json data.train=llava.json \\
      data.test=test.json data.images=images                                your data, in LLaVA format

  --plan        show what would be computed, what is shared and what is there already
  table=NAME    the rows of the paper's table 3, 4, 5 or 6, of several (3,4), of all of these, of field (every
                compressor, without and with EmbQ), pruners, longer (training), or of your own FILE.yaml
  blind=false   without the row that sees no image
  earlier=DIR   without the cells that the report in DIR has, which ablations.report earlier=DIR shows

Where cells run, which is in no result's key:

"""


def format_default(default: object) -> str:
    if isinstance(default, (list, tuple)):
        return f"[{','.join(map(str, default))}]"
    return "null" if default is None else str(default).lower() if isinstance(default, bool) else str(default)


def format_knobs(registry: signatures.SignatureRegistry, name: str) -> str:
    """The knobs of a part with their defaults."""
    found = registry.knobs(name).values()
    return "  ".join(
        p.name if p.default is p.empty else f"{p.name}={format_default(p.default)}" for p in found
    )


def format_launch_options() -> list[str]:
    """The launch options."""
    found = [
        f"  {f'{name_launch_option(name)}={format_default(each.default)}':24} {each.help}"
        for name, each in collect_settings(LaunchOptions).items()
    ]
    return [
        *found,
        f"  {f'{SLURM_PREFIX}KEY=VALUE':24} submitit's: partition, time (minutes), gpus_per_node, ...; "
        "cluster=local: without Slurm",
    ]


def make_help_text() -> str:
    """All of it."""
    presets = ", ".join(list_presets())
    lines = [
        HELP_HEAD + "\n".join(format_launch_options()),
        "",
        f"Presets: {presets}, or a YAML file. Settings, with their values before any preset:",
        "",
    ]
    for path, setting in collect_settings(Config).items():
        choices = [format_default(c) for c in setting.choices if c is not None]
        meaning = setting.help + (f" ({', '.join(choices)})" if len(choices) > 1 else "")
        lines.append(f"  {f'{path}={format_default(setting.default)}':40} {meaning}")
    for registry in signatures.registries():
        lines += ["", f"{registry.kind.capitalize()}s and their knobs, set as NAME.KNOB=VALUE:", ""]
        lines += [f"  {name:16} {format_knobs(registry, name)}".rstrip() for name in registry.names()]
        if registry is signatures.compressors():
            lines.append(f"  {BLIND_COMPRESSOR:16} no image at all")
    return "\n".join([*lines, ""])
