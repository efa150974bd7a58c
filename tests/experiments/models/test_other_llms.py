"""FlashSloth's recipe on other LLMs: full sizes without weights, steps of small ones, chat templates."""

from copy import deepcopy

import pytest
import torch
from factories import byte_tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig

from compressors.errors import UsageError
from connectors.versions import allow_meta_forward
from experiments.backbones.chat_preset import main
from experiments.config.presets import load_preset
from experiments.models import build
from experiments.models.chat_prompt import read_chat_prompt
from experiments.models.random_model import (
    build_random_model,
    make_random_batch,
    make_weightless_cells,
    read_backbone_configs,
    set_placeholder_ids,
)
from llm_adapters.conversation import Template

TOWER = "google/siglip-so400m-patch14-384"
# published totals, with embeddings counted once
LLMS = {
    "Qwen/Qwen2.5-1.5B": 1_543_714_304,
    "Qwen/Qwen2.5-3B": 3_085_938_688,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "HuggingFaceTB/SmolLM2-1.7B": 1_711_376_384,
    "google/gemma-2-2b": 2_614_341_888,
}
over_llms = pytest.mark.parametrize("source", LLMS)
CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] }}<turn>\n{% endfor %}{% if add_generation_prompt %}<start>model\n{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}<h>{{ m['role'] }}</h>\n\n{{ m['content'] }}<eot>{% endfor %}"
    "{% if add_generation_prompt %}<h>assistant</h>\n\n{% endif %}"
)
PROMPTS = {
    CHATML: Template(
        "<|im_start|>system\nYou help.<|im_end|>",
        "\n<|im_start|>user\n",
        "<|im_end|>\n<|im_start|>assistant\n",
        "<|im_end|>",
    ),
    GEMMA: Template("", "<start>user\n", "<turn>\n<start>model\n", "<turn>"),
    LLAMA: Template("", "<h>user</h>\n\n", "<eot><h>assistant</h>\n\n", "<eot>"),
}
ENDS = ("<|im_end|>", "<turn>", "<eot>")


def make_tokenizer(template: str | None):
    """A small tokenizer that begins texts with BOS where its template does, as Llama's and Gemma's do."""
    tokenizer = deepcopy(byte_tokenizer())
    tokenizer.add_special_tokens(
        {"additional_special_tokens": list(ENDS)}, replace_extra_special_tokens=False
    )
    tokenizer.chat_template = template
    if template and "bos_token" in template:
        bos = (tokenizer.bos_token, tokenizer.bos_token_id)
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{bos[0]} $A", special_tokens=[bos]
        )
    return tokenizer


@over_llms
def test_the_full_size_model_runs_without_weights(source):
    """Its sizes are the published ones, and shapes fit from the pixels to the logits."""
    overrides = ["preset=flashsloth", f"llm.source={source}", "compressor=sap+embq"]
    with make_weightless_cells(overrides) as (cell,), torch.device("meta"):
        model, size = build.build_skeleton(cell.config)
    assert sum(parameter.numel() for parameter in model.language_model.parameters()) == LLMS[source]
    set_placeholder_ids(model)
    batch = make_random_batch(model, 1, size)
    del batch["attention_mask"]  # whose values sdpa would look at
    with torch.no_grad(), allow_meta_forward():
        output = model.eval()(**batch)
    assert output.logits.is_meta
    assert output.logits.shape == (*batch["input_ids"].shape, model.config.text_config.vocab_size)
    assert (model.num_image_tokens(), model.num_queries) == (81, 9)


def make_small_sizes(source: str) -> dict:
    """Backbones of the same classes that a test can train."""
    llm = {
        "vocab_size": 320,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 9,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "tie_word_embeddings": True,
    }
    tower = {
        "image_size": 126,
        "patch_size": 14,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
    }
    kind = read_backbone_configs()[source].model_type
    return {
        source: AutoConfig.for_model(kind, **llm),
        TOWER: AutoConfig.for_model("siglip_vision_model", **tower),
    }


@over_llms
def test_two_steps_of_a_small_one(source):
    overrides = ["preset=flashsloth", f"llm.source={source}", "compressor=sap+embq", "embq.dim=16"]
    with make_weightless_cells(overrides, make_small_sizes(source)) as (cell,):
        model, size = build_random_model(cell.config, torch.device("cpu"), torch.float32)
    assert model.language_model.config.model_type == read_backbone_configs()[source].model_type
    batch = make_random_batch(model, 1, size, rows=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.001)
    losses = []
    for _ in range(2):
        loss = model(**batch).loss
        loss.backward()
        for part in (model.compressor, model.projector, model.query_module, model.language_model):
            assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    assert losses[1] < losses[0]


@pytest.mark.parametrize("template", PROMPTS, ids=("chatml", "gemma", "llama"))
def test_the_prompt_is_the_chat_templates(template):
    assert read_chat_prompt(make_tokenizer(template), "x") == PROMPTS[template]


@pytest.mark.parametrize(
    ("template", "wrong"),
    [
        (None, "has no chat template; give the model that was tuned to chat"),
        ("{{ messages[5]['content'].x.y }}", "its chat template fails"),
        ("{{ messages[0]['content'] }}", "does not say each message once"),
        (CHATML.replace("<|im_end|>", "[end]"), "ends an answer with no token"),
        (
            CHATML.replace("{{ m['content'] }}", "{% if loop.last %}Think! {% endif %}{{ m['content'] }}"),
            "begins the first question unlike others",
        ),
        (CHATML + "{% if add_generation_prompt %}<think>{% endif %}", "more than a system prompt and words"),
    ],
)
def test_a_template_that_is_none_is_refused(template, wrong):
    with pytest.raises(UsageError, match=f"llm.source=x: .*{wrong}") as caught:
        read_chat_prompt(make_tokenizer(template), "llm.source=x")
    assert "\n" not in str(caught.value)


def test_the_command_writes_a_preset(tmp_path, capsys):
    make_tokenizer(CHATML).save_pretrained(tmp_path / "llm")
    AutoConfig.for_model("qwen2").save_pretrained(tmp_path / "llm")
    target = tmp_path / "qwen.yaml"
    assert main([str(tmp_path / "llm"), f"to={target}"]) == 0
    assert capsys.readouterr().out == f"{target}: {tmp_path / 'llm'}, answers end with <|im_end|>\n"
    config = load_preset(str(target)).config
    assert vars(config.prompt) == vars(PROMPTS[CHATML])
    assert config.llm.source == str(tmp_path / "llm") and config.tower.source == TOWER
    for arguments, wrong in (
        ([str(tmp_path / "llm"), f"to={target}"], "is there already"),
        ([str(tmp_path / "llm"), f"to={tmp_path / 'a.txt'}"], "must end in .yaml"),
        (
            [str(tmp_path / "llm"), f"to={tmp_path / 'b.yaml'}", "preset=flashslot"],
            "unknown preset 'flashslot'",
        ),
    ):
        assert main(arguments) == 2
        err = capsys.readouterr().err
        assert wrong in err and err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["llm", "qwen.yaml"]
