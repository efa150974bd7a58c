"""Floating point operations of a prefill: tower, compressor, projector, query module and language model.

Counted on the meta device, so that no weights are read. Counts are kept, since importing torch alone takes
longer than all the rest of a report: of the project's tables at `tiny` in a file of the package, which
`python -m ablations.costs.prefill` writes anew, of everything else beside the report.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compressors.command_line import Command, CommandLine
from compressors.errors import UsageError
from compressors.reading import read_json_file
from compressors.registry import conform
from compressors.setting_fields import setting
from experiments.config import signatures, table_files, tables
from experiments.config.cells import make_blind_cells
from experiments.config.scaling import read_model_config
from experiments.config.schema import Config
from experiments.config.signatures import SignatureRegistry
from experiments.runtime.files import write_atomic
from experiments.store import keys
from experiments.store.part_code import describe_code

PREFILL_TEXT_TOKENS = 40  # tokens of prompt and question
COUNT_VERSION = 1  # counted up when a count changes
# what a model's config.json says beside its sizes
IGNORED_MODEL_KEYS = ("transformers_version", "dtype", "architectures", "initializer_range")
SHIPPED_COUNTS = Path(__file__).parent / "prefill.json"


def digest_prefill(config: Config) -> str:
    """What the count follows from: parts with all their knobs, the sizes of tower, LLM and image. UsageError
    if the configuration of tower or LLM is out of reach."""
    parts = {}
    code = {}

    def add_part(registry: SignatureRegistry, name: str, key: str) -> None:
        parts[key] = registry.settled(name, config.knobs(name))
        code[key] = describe_code(registry, name, parts[key])

    if not config.blind:
        add_part(signatures.compressors(), config.compressor_name, config.compressor_name)
        # `auto` is not the same as the projector that it stands for: it may become identity
        add_part(signatures.projectors(), config.projector_name, config.projector)
    if config.query_module:
        add_part(signatures.query_modules(), config.query_module, config.query_module)
    if config.evaluate.compressor is not None:
        evaluated_compressor = config.evaluate.compressor
        add_part(signatures.compressors(), evaluated_compressor, f"evaluated {evaluated_compressor}")
    if config.prune is not None:
        add_part(signatures.pruners(), config.prune, config.prune)
    tower = read_model_sizes("tower.source", config.tower.source)
    llm = read_model_sizes("llm.source", config.llm.source)
    sizes = (
        config.tower.select_layer,
        asdict(config.image),
        PREFILL_TEXT_TOKENS,
        COUNT_VERSION,
    )
    digested: list[Any] = [config.compressor, parts, [tower, llm], sizes]
    # at the end and only where it is set, so that keys from before there was a scale are still right
    if config.evaluate.scale and not config.blind:
        digested.append(config.evaluate.scale)
    if any(code.values()):
        digested.append(code)
    # likewise: before, a mixture of experts was counted without its experts
    if any("experts" in name for name in llm):
        digested.append("with experts")
    return keys.digest_value(digested)[:16]


def read_model_sizes(setting_name: str, source: str) -> dict[str, Any]:
    """What a model's configuration says of its sizes."""
    content = read_model_config(setting_name, source)
    return {key: value for key, value in content.items() if key not in IGNORED_MODEL_KEYS}


def look_up_counts(configs: Sequence[Config], counts_file: Path) -> list[int | None]:
    """FLOPs of each configuration; None where its models are out of reach. `counts_file` has earlier counts,
    and takes the new ones."""
    earlier_counts = read_flop_counts(counts_file)
    known_counts = read_flop_counts(SHIPPED_COUNTS) | earlier_counts
    new_counts: dict[str, int] = {}
    flops: list[int | None] = []
    for config in configs:
        try:
            key = digest_prefill(config)
            if key not in known_counts:
                new_counts[key] = count_prefill(config)
                known_counts[key] = new_counts[key]
            flops.append(known_counts[key])
        except UsageError:  # such as a hub id that this machine cannot reach
            flops.append(None)
    if new_counts:
        write_flop_counts(counts_file, earlier_counts | new_counts)
    return flops


def write_flop_counts(path: Path, counts: Mapping[str, int]) -> None:
    """Digest of a configuration -> FLOPs, as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(counts, indent=1, sort_keys=True) + "\n")


def read_flop_counts(path: Path) -> dict[str, int]:
    """Earlier counts; none from a file that is missing or damaged."""
    try:
        return conform(read_json_file(path), dict[str, int], "counts")
    except UsageError:
        return {}


def count_prefill(config: Config) -> int:
    """FLOPs of one image, `PREFILL_TEXT_TOKENS` text tokens and one turn's queries; a multiply-add is two.
    UsageError where only a run tells how many visual tokens go on. Imports torch."""
    from experiments.efficiency.counting import count_cell_prefill_flops
    from experiments.efficiency.table1 import build_cell_subject
    from experiments.models.build import silence_libraries

    silence_libraries()
    flops_by_part = count_cell_prefill_flops(build_cell_subject("", config), PREFILL_TEXT_TOKENS)
    return sum(flops_by_part.values())


# ---- the command ----


@dataclass(frozen=True)
class CountingOptions:
    """Settings of the command."""

    to: Path | None = setting(None, "JSON file to write (that of the package)")


COMMAND = Command(
    usage="python -m ablations.costs.prefill [to=prefill.json]",
    description="Counts the floating point operations of all rows of the project's tables at `tiny` anew.",
    options=CountingOptions,
    elsewhere="write to another place with to=FILE",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    return COMMAND.run(count_project_tables, arguments)


def count_project_tables(line: CommandLine) -> int:
    """Count every cell of the project's tables, and their blind cells, once."""
    configs: dict[str, Config] = {}
    names = [tables.ALL_TABLES, *table_files.list_project_tables()]
    for table in tables.load_table_files(names, {}):
        for row in table.rows:
            blind_cells = make_blind_cells(list(row.cells))
            for cell in (*row.cells, *blind_cells):
                configs[digest_prefill(cell.config)] = cell.config
    counts = {}
    for key, config in configs.items():
        counts[key] = count_prefill(config)
    write_flop_counts(line.options.to or SHIPPED_COUNTS, counts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
