"""Models, chats and a slow reference for the tests of pruners."""

from factories import make_batch, make_model, make_processor, picture
from torch import Tensor

from llm_adapters.conversation import IMAGE, Template, Turn
from llm_adapters.modeling import FlashSlothForConditionalGeneration as Model
from llm_adapters.processing import FlashSlothProcessor
from llm_adapters.pruning import registry

DEPTH, TOKENS = 4, 36  # decoder layers of the factories' models; visual tokens of a picture, uncompressed
RECIPE = (0.8, 0.5, 0.2)
KNOBS = {"fitprune": {"recipe": RECIPE}}
# Every pruner as it comes, and what changes its mechanism.
CASES = {name: (name, KNOBS.get(name, {})) for name in registry.names()} | {
    "fastv renumbered": ("fastv", {"layer": 2, "positions": "renumber"}),
    "fastv without positions": ("fastv", {"rotary": False, "ratio": 0.25}),
    "fastv half uniform": ("fastv", {"uniform": 0.5, "ratio": 0.25}),
    "pyramid_drop kept": ("pyramid_drop", {"positions": "keep"}),
    "pact adaptive": ("pact", {"distance": 0.6}),
    "pact of equal tokens": ("pact", {"ratio": 0.2, "proportional": False, "rotary": True}),
    "sparsevlm adaptive": ("sparsevlm", {"adaptive": 0.6}),
    "sparsevlm without recycling": ("sparsevlm", {"recycle": 0.0}),
}
ROWS = [  # one image, none, one in each of two turns, one in the second: rows keep different counts
    ([Turn(f"{IMAGE}\nWhat is this?")], [picture(1)]),
    ([Turn("Hi")], []),
    ([Turn(f"{IMAGE}What?", "A dog"), Turn(f"And {IMAGE} that?")], [picture(2), picture(3)]),
    ([Turn("Hi", "The cat is red."), Turn(f"{IMAGE}What is it?")], [picture(4)]),
]


def build(
    llm: str = "llama", query_module: str | None = "embq", **options
) -> tuple[Model, FlashSlothProcessor]:
    """36 visual tokens an image; weights so large that each of them matters."""
    model = make_model(llm, "identity", query_module, prompt=Template(system=""), scale=1.0, **options)
    return model, make_processor(model)


def inputs(processor: FlashSlothProcessor, rows: list, side: str = "left") -> dict[str, Tensor]:
    """A batch without labels."""
    return {name: value for name, value in make_batch(processor, rows, side).items() if name != "labels"}


def generate(model: Model, batch: dict[str, Tensor], **options) -> list[list[int]]:
    """New tokens of each row; nothing ends an answer."""
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": 9999, **options}
    return model.generate(**batch, **options)[:, batch["input_ids"].shape[1] :].tolist()
