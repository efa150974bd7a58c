"""Floating point operations of a prefill: tower, compressor, projector, query module and language model.

Counted on the meta device, so that no weights are read. Counts are kept, since importing torch alone takes
longer than all the rest of a report: of the project's tables at `tiny` in a file of the package, which
`python -m ablations.costs.prefill` writes anew, of everything else beside the report.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from compressors.errors import UsageError
from experiments.config import signatures, table_files, tables
from experiments.config.cells import make_blind_cells
from experiments.config.scaling import read_model_config
from experiments.config.schema import Config
from experiments.runtime.files import write_atomic
from experiments.store import keys

PREFILL_TEXT_TOKENS = 40  # tokens of prompt and question
COUNT_VERSION = 1  # counted up when a count changes
IGNORED_MODEL_KEYS = ("transformers_version", "dtype", "architectures", "initializer_range")
SHIPPED_COUNTS = Path(__file__).parent / "prefill.json"


def digest_prefill(config: Config) -> str:
    """What the count follows from: parts with all their knobs, the sizes of tower, LLM and image. UsageError
    if the configuration of tower or LLM is out of reach."""
    name, query_module = config.compressor_name, config.query_module
    parts = {}
    if not config.blind:
        parts[name] = signatures.compressors().settled(name, config.knobs(name))
        projector = config.projector_name
        parts[config.projector] = signatures.projectors().settled(projector, config.knobs(projector))
    if query_module:
        parts[query_module] = signatures.query_modules().settled(query_module, config.knobs(query_module))
    if config.prune is not None:
        parts[config.prune] = signatures.pruners().settled(config.prune, config.knobs(config.prune))
    sources = {"tower.source": config.tower.source, "llm.source": config.llm.source}
    models = [
        {key: value for key, value in read_model_config(*each).items() if key not in IGNORED_MODEL_KEYS}
        for each in sources.items()
    ]
    sizes = config.tower.select_layer, asdict(config.image), PREFILL_TEXT_TOKENS, COUNT_VERSION
    scale = [config.evaluate.scale] if config.evaluate.scale and not config.blind else []
    return keys.digest_value([config.compressor, parts, models, sizes, *scale])[:16]


def look_up_counts(configs: Sequence[Config], kept: Path) -> list[int | None]:
    """Of each configuration; None where its models are out of reach. `kept` is the file of earlier counts."""
    earlier = read_flop_counts(kept)
    known = read_flop_counts(SHIPPED_COUNTS) | earlier
    new: dict[str, int] = {}
    found = []
    for config in configs:
        try:
            key = digest_prefill(config)
            if key not in known:
                known[key] = new[key] = count_prefill(config)
            found.append(known[key])
        except UsageError:  # such as a hub id that this machine cannot reach
            found.append(None)
    if new:
        write_flop_counts(kept, earlier | new)
    return found


def write_flop_counts(path: Path, found: dict[str, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(found, indent=1, sort_keys=True) + "\n")


def read_flop_counts(kept: Path) -> dict[str, int]:
    """Earlier counts; none from a file that is missing or damaged."""
    try:
        content = json.loads(kept.read_text(encoding="utf-8"))
        return {str(key): int(value) for key, value in content.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def count_prefill(config: Config) -> int:
    """FLOPs of one image, `TEXT` text tokens and one turn's queries; a multiply-add is two. UsageError where
    only a run tells how many visual tokens go on."""
    from experiments.efficiency.counting import count_cell_prefill_flops
    from experiments.efficiency.table1 import build_cell_subject
    from experiments.models.build import silence_libraries

    silence_libraries()
    return sum(count_cell_prefill_flops(build_cell_subject("", config), PREFILL_TEXT_TOKENS).values())


def main() -> None:
    """Count all rows of the project's tables at `tiny` anew."""
    rows = [
        row
        for table in tables.load_table_files([tables.ALL_TABLES, *table_files.list_project_tables()], {})
        for row in table.rows
    ]
    configs = [cell.config for row in rows for cell in (*row.cells, *make_blind_cells(list(row.cells)))]
    write_flop_counts(
        SHIPPED_COUNTS,
        {
            digest_prefill(config): count_prefill(config)
            for config in {digest_prefill(c): c for c in configs}.values()
        },
    )


if __name__ == "__main__":
    main()
