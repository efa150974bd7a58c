"""Tiny models and processors of the real classes that a compressor can be put into; nothing from the hub."""

import warnings
from collections.abc import Iterable
from importlib.util import find_spec

import pytest
import torch
from PIL import Image
from reuse_models import SIZE, TEXT, make_settings
from reuse_processors import PLACEHOLDER, make_processor
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel, ProcessorMixin
from turns import take_turns

from compressors.errors import UsageError
from connectors.versions import is_at_least
from llm_adapters import reuse

no_num2words = pytest.mark.skipif(not find_spec("num2words"), reason="SmolVLM's processor needs num2words")


def family_params(*names: str) -> list:
    """Families as pytest's parameters; those that cannot be here are skipped."""

    def marks(name: str) -> list:
        since = reuse.FAMILIES[name].since
        too_old = pytest.mark.skipif(not is_at_least(since), reason=f"{name} needs transformers {since}")
        return [too_old, no_num2words] if name == "smolvlm" else [too_old]

    return [pytest.param(name, marks=marks(name)) for name in names]


# of every way that images are cut, whose tests try every case; the other families take turns
LEADING_FAMILIES = ("llava", "llava_next", "qwen2_5_vl", "internvl", "gemma3")


def family_turns(families: Iterable[str], cases: Iterable, one_in: int) -> list:
    """Families with a case each, as pytest's parameters: every case of the leading families, of others one in
    `one_in`. A case that is a tuple is several parameters."""
    params = []
    for family, case in take_turns(list(families), list(cases), one_in, LEADING_FAMILIES):
        values = case if isinstance(case, tuple) else (case,)
        params.append(pytest.param(family, *values, marks=family_params(family)[0].marks))
    return params


over_families = pytest.mark.parametrize("family", family_params(*reuse.FAMILIES))
SAP = {"compressor": "sap", "rate": 3, "grid_policy": "ceil"}
EMBQ = {"query_module": "embq", "query_knobs": {"at": 2, "dim": 8, "num_queries": 3}}
PREFUSION = {"query_module": "llava_mini", "query_knobs": {"num_layers": 1, "num_queries": 3}}
# compressors without weights, by their knobs beside the budget
TRAINING_FREE = {
    "visionzip": {"context": 0.3},
    "visionzip_cls": {"context": 0.3, "cls": True},
    "vispruner": {},
    "divprune": {},
    "random": {},
    "hiprune": {"block": 1},
    "scope": {},
}
over_training_free = pytest.mark.parametrize("part_name", TRAINING_FREE)
CUE_FAMILIES = [name for name, family in reuse.FAMILIES.items() if family.feature_layer is not None]
over_cue_families = pytest.mark.parametrize("family", family_params(*CUE_FAMILIES))
# whose own reduction makes their projector wider than a patch
SHUFFLED = ("aya_vision", "cohere2_vision")
BUDGET = 7


def make_model(family: str, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    kind = "llava" if family == "pixtral" else family
    model = AutoModelForImageTextToText.from_config(
        AutoConfig.for_model(kind, **make_settings(family))
    ).eval()
    if family == "gemma3":  # its projection starts at zero
        torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight)
    if family == "gemma3n":  # the gradient of padding that is zero is not finite in it
        torch.nn.init.normal_(model.get_input_embeddings().weight)
    return model


def attached(family: str, seed: int = 0, **options) -> tuple[PreTrainedModel, ProcessorMixin]:
    """With SAP and EmbQ, and weights of theirs that show in the tokens."""
    model, processor = make_model(family, seed), make_processor(family)
    reuse.attach(model, processor, **{**SAP, **EMBQ, **options})
    for parameter in model.slothkit.parameters():
        torch.nn.init.normal_(parameter.data, std=0.3)
    return model, processor


def attached_training_free(
    family: str, part_name: str, tokens: int | float = BUDGET
) -> tuple[PreTrainedModel, ProcessorMixin]:
    model, processor = make_model(family), make_processor(family)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", reuse.NeedsTraining)
        attach_training_free(model, processor, part_name, tokens)
    return model, processor


def attach_training_free(
    model: PreTrainedModel, processor: ProcessorMixin, part_name: str, tokens: int | float = BUDGET
) -> None:
    name = part_name.removesuffix("_cls")
    reuse.attach(model, processor, name, tokens=tokens, **TRAINING_FREE[part_name])


def count_hooks(model: PreTrainedModel) -> list[int]:
    return [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]


def prompt(family: str, question: str = "What is this?", images: int = 1, marked: bool = False) -> str:
    question = f"<question>{question}<query>" if marked else question
    return f"USER: {PLACEHOLDER.get(family, '<image>') * images}\n{question} ASSISTANT:"


def picture(seed: int = 0, width: int = SIZE, height: int = SIZE) -> Image.Image:
    pixels = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.byte().numpy())


def inputs(processor: ProcessorMixin, rows: list[tuple[str, list[Image.Image]]]) -> dict:
    """Texts with their images, through the processor, padded."""
    batch = processor(
        text=[text for text, _ in rows],
        images=[images for _, images in rows],
        padding=True,
        return_tensors="pt",
    )
    batch.pop("labels", None)
    return dict(batch)


def two_rows(family: str, marked: bool = False) -> list[tuple[str, list[Image.Image]]]:
    """Different lengths, and pictures of different shapes."""
    return [
        (prompt(family, marked=marked), [picture(1)]),
        (prompt(family, "And that, is it a cat or a dog?", marked=marked), [picture(2, 40, 24)]),
    ]


def assert_same(family: str, found: torch.Tensor, expected: torch.Tensor) -> None:
    """To the bit, but for experts, whose products depend on where in memory their weights begin."""
    if family.endswith("_moe"):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    else:
        assert torch.equal(found, expected)


def train_loss(model: torch.nn.Module, batch: dict) -> torch.Tensor:
    return model(**batch, labels=batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)).loss


def cache_agrees(family: str, rows: list, **options) -> bool:
    """Whether the plain model answers alike with and without a KV cache. Before transformers 5.17 not always:
    images of beams are mixed up, for one."""
    if is_at_least("5.17"):
        return True
    model, batch = make_model(family), inputs(make_processor(family), rows)
    return answers(model, batch, **options) == answers(model, batch, use_cache=False, **options)


def pieces_refused(says: str):
    """That a prefill in pieces is refused, in words of ours; before 5.4 transformers does it itself."""
    if is_at_least("5.4"):
        return pytest.raises(UsageError, match=says)
    return pytest.raises(ValueError, match="prefill chunk")


def answers(model: PreTrainedModel, batch: dict, **options) -> list[list[int]]:
    """Greedy tokens of each row up to its end. Random weights would say a placeholder now and then, which the
    next pass without a cache takes for an image."""
    config = model.config
    placeholders = [config.image_token_id, getattr(config, "video_token_id", None)]
    placeholders += getattr(config, "visual_indicator_token_ids", [])  # Ovis 2's, around an image
    options.setdefault("suppress_tokens", [token for token in placeholders if token is not None])
    said = model.generate(**batch, max_new_tokens=4, do_sample=False, **options)
    rows = said[:, batch["input_ids"].shape[1] :].tolist()
    end = options.get("eos_token_id", TEXT["eos_token_id"])
    return [row[: row.index(end) + 1] if end in row else row for row in rows]
