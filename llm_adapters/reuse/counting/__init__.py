"""Processors' classes whose placeholders follow a compressor, by how they count: a family's `processor`."""

from llm_adapters.reuse.counting.attached import AttachedProcessor
from llm_adapters.reuse.counting.crops import NewlineTiledProcessor, RunsProcessor, TiledProcessor
from llm_adapters.reuse.counting.grids import GridProcessor
from llm_adapters.reuse.counting.sizes import PaddedProcessor, PositionedProcessor, SizedProcessor

KINDS = (
    AttachedProcessor,
    TiledProcessor,
    NewlineTiledProcessor,
    RunsProcessor,
    SizedProcessor,
    GridProcessor,
    PaddedProcessor,
    PositionedProcessor,
)
PROCESSORS_BY_KIND: dict[str, type[AttachedProcessor]] = {processor.kind: processor for processor in KINDS}
