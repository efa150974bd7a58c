"""The hook: a query module at a layer's input equals a hand-written decoder loop, however a model is run."""

import copy
import importlib.util
import pickle

import pytest
import torch
from factories import LLMS, make_batch, make_config, make_model, make_processor, picture
from torch import Tensor, nn
from turns import take_turns

from connectors.query_module import registry as query_modules
from llm_adapters.adapter import (
    CONTEXT,
    QueryContext,
    decoder_layers,
    llm_sizes,
    make_query_masks,
    query_positions,
)
from llm_adapters.conversation import IMAGE, Turn
from llm_adapters.modeling import FlashSlothForConditionalGeneration as Model

FAMILIES = (*LLMS, "qwen3", "gemma2", "gemma3", "gpt_neox")
ROWS = [
    (
        [Turn(f"{IMAGE}\nWhat is this?", "A dog."), Turn(f"And {IMAGE} that?", "The cat is red.")],
        [picture(1), picture(2)],
    ),
    ([Turn("Hi", "no"), Turn(f"{IMAGE}And that?", "red")], [picture(3)]),
    ([Turn("What is that?", "The cat")], []),
]


def batch_for(model: Model, side: str = "left") -> dict[str, Tensor]:
    batch = make_batch(make_processor(model), ROWS, side)
    if model.dtype == torch.float64:
        batch["pixel_values"] = batch["pixel_values"].double()
    return batch


def parts_of(model: Model, batch: dict[str, Tensor]) -> tuple[Tensor, QueryContext]:
    """Embeddings with visual and query tokens in place, and the query module's context."""
    features = model.get_image_features(batch["pixel_values"])
    embeds, context, *_ = model.embed_tokens(
        batch["input_ids"], features, batch["image_turn"], batch["turns"], None
    )
    return embeds, context


def gradients_of(model: Model) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def unrolled(model: Model, batch: dict[str, Tensor]) -> Tensor:
    """The LLM's forward as a loop over its decoder layers, the query module called by hand between them."""
    hidden, context = parts_of(model, batch)
    llm, attention = model.language_model, batch["attention_mask"].bool()
    decoder, length = llm.get_decoder(), hidden.shape[1]
    if llm.config.model_type == "gemma2" and not hasattr(decoder.embed_tokens, "embed_scale"):
        hidden = hidden * llm.config.hidden_size**0.5  # transformers 5.0 to 5.3 scale in the model
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    seen = (causal & attention[:, None, None, :]) | torch.eye(length, dtype=torch.bool)
    mask = torch.zeros(seen.shape, dtype=hidden.dtype).masked_fill(~seen, torch.finfo(hidden.dtype).min)
    positions = (attention.cumsum(1) - 1).clamp(min=0)
    module = model.query_module
    for i, layer in enumerate(decoder_layers(llm)):
        if i + 1 in module.at:
            options = {"visual_mask": context.visual_mask} if module.prefuses else {}
            hidden = module(
                hidden,
                context.query_index,
                context.question_mask,
                context.features,
                context.feature_mask,
                module.at.index(i + 1),
                **options,
            )
        kind = [llm.config.layer_types[i]] if llm.config.model_type == "gemma3_text" else []
        rotary = decoder.rotary_emb(hidden, positions, *kind)
        out = layer(hidden, attention_mask=mask, position_ids=positions, position_embeddings=rotary)
        hidden = out[0] if isinstance(out, tuple) else out
    norms = (getattr(decoder, name, None) for name in ("norm", "final_layernorm", "final_layer_norm"))
    logits = model.get_output_embeddings()(next(norm for norm in norms if norm is not None)(hidden))
    cap = getattr(llm.config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


@pytest.mark.parametrize("at", [1, 2, (2, 3), (1, 4), None])
@pytest.mark.parametrize("family", FAMILIES)
def test_hook_is_the_unrolled_loop(family, at):
    chosen = {"query_module": "llava_mini"} if at is None else {"at": at}
    model, tolerance = make_model(family, **chosen), 1e-4
    if family.startswith("gemma"):  # soft-capped scores need eager attention, whose softmax is float32
        model.language_model.set_attn_implementation("eager")
    else:
        model, tolerance = model.double(), 1e-8
    for side in ("left", "right"):
        batch = batch_for(model, side)
        logits, real = model(**batch).logits, batch["attention_mask"].bool()
        torch.testing.assert_close(logits[real], unrolled(model, batch)[real], atol=tolerance, rtol=tolerance)


def test_layers_and_sizes():
    for family in FAMILIES:
        model = make_model(family)
        assert len(decoder_layers(model.language_model)) == 4
        assert llm_sizes(model.config) == {"llm_dim": 32, "llm_heads": 4, "llm_layers": 4}
    with pytest.raises(TypeError, match="no ModuleList of its 5 decoder layers"):
        model.language_model.config.num_hidden_layers = 5
        decoder_layers(model.language_model)


def test_hook_changes_queries_from_its_layer_on(model):
    batch = batch_for(model)
    with_hook = model(**batch, output_hidden_states=True).hidden_states
    embeds, _ = parts_of(model, batch)
    without = model(inputs_embeds=embeds, attention_mask=batch["attention_mask"], output_hidden_states=True)
    real = batch["attention_mask"].bool()
    changed = [(a != b).any(-1) & real for a, b in zip(with_hook, without.hidden_states)]
    assert not changed[0].any() and not changed[1].any()  # the input of layer 2, before the hook
    first = batch["input_ids"].eq(model.config.query_token_id).int().argmax(1)
    for row, position in enumerate(first[:1]):
        assert changed[2][row, position] and not changed[2][row, :position].any()
    assert not any(c[2].any() for c in changed)  # text only


@pytest.mark.parametrize("family", LLMS)
def test_text_only_rows_are_bitwise_unchanged(family):
    model, quiet = make_model(family), make_model(family)
    quiet.language_model.load_state_dict(model.language_model.state_dict())
    quiet.query_module.forward = lambda hidden, *_: hidden
    batch = batch_for(model)
    before, after = (m(**batch, output_hidden_states=True).hidden_states for m in (quiet, model))
    assert all(torch.equal(a[2], b[2]) for a, b in zip(after, before))
    assert not torch.equal(after[-1][0], before[-1][0])


@pytest.mark.parametrize("compressor", ["sap", "ldpv2", "qformer"])
@pytest.mark.parametrize("query_module", query_modules.names())
def test_garbage_where_there_is_no_image(compressor, query_module):
    """Features that fill rows with fewer images reach neither outputs nor gradients, not even as NaN * 0."""
    model = make_model("phi", compressor, query_module)
    batch = batch_for(model)
    features = model.get_image_features(batch.pop("pixel_values")).detach()
    clean = model(**batch, vision_features=features)
    clean.loss.backward()
    gradients = gradients_of(model)
    model.zero_grad()
    dirty = features.masked_fill((batch["image_turn"] == 0)[:, :, None, None, None], torch.nan)
    assert dirty.isnan().any()
    out = model(**batch, vision_features=dirty)
    assert torch.equal(out.logits, clean.logits)
    out.loss.backward()
    for name, gradient in gradients.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient, msg=name)


MODULE_KNOBS = {"embq": {"at": (2, 3)}}


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")  # renamed after 5.0
@pytest.mark.parametrize("query_module", query_modules.names())
def test_gradient_checkpointing(query_module):
    model = make_model("phi", "sap", query_module, **MODULE_KNOBS.get(query_module, {})).train()
    model.compressor.scorer[2].p = 0.0
    batch, results = batch_for(model), []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        out = model(**batch, use_cache=False)
        out.loss.backward()
        results.append((out.loss, gradients_of(model)))
    assert any(module.gradient_checkpointing for module in decoder_layers(model.language_model))
    (loss, gradients), (loss_again, gradients_again) = results
    assert torch.equal(loss, loss_again)
    assert set(gradients) == set(gradients_again)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradients_again[name], gradient, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "query_module"), take_turns(LLMS[:2], query_modules.names(), one_in=2))
def test_compiles_without_a_graph_break(family, query_module):
    model = make_model(family, "sap", query_module, **MODULE_KNOBS.get(query_module, {}))
    batch = batch_for(model)
    graph = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(graph(**batch, use_cache=False).logits, model(**batch, use_cache=False).logits)


def test_deep_copies_are_independent(model):
    twin, batch = copy.deepcopy(model), batch_for(model)
    before = model(**batch).logits
    assert torch.equal(twin(**batch).logits, before)
    with torch.no_grad():
        for parameter in twin.query_module.parameters():
            parameter.add_(0.5)
    assert torch.equal(model(**batch).logits, before)
    assert not torch.allclose(twin(**batch).logits[0], before[0])


def test_pickles():
    """As spawned workers and `torch.save(model)` need."""
    model = make_model()
    batch = batch_for(model)
    before = model(**batch).logits
    assert torch.equal(pickle.loads(pickle.dumps(model))(**batch).logits, before)


def test_other_forwards_of_the_llm_are_not_touched(model):
    ids = torch.randint(6, 100, (2, 7))
    alone = copy.deepcopy(model.language_model)
    for layer in decoder_layers(alone):
        layer._forward_pre_hooks.clear()
    assert torch.equal(model.language_model(ids).logits, alone(ids).logits)


@pytest.mark.parametrize("cached", [True, False])
def test_query_module_runs_at_prefill_only(model, cached, monkeypatch):
    calls = []

    def count(hidden, *_):
        calls.append(hidden.shape[1])
        return hidden

    monkeypatch.setattr(model.query_module, "forward", count)
    batch = batch_for(model)
    del batch["labels"]
    out = model.generate(**batch, max_new_tokens=4, min_new_tokens=4, do_sample=False, use_cache=cached)
    length = batch["input_ids"].shape[1]
    assert out.shape[1] == length + 4
    assert calls == ([length] if cached else [length, length + 1, length + 2, length + 3])


@pytest.mark.parametrize("at", [1, [1, 2]])
def test_models_around_one_llm_have_their_own_queries(at):
    """The second one's hooks stand at the first one's layers, too."""
    first = make_model("phi", "sap", "embq")
    batch = batch_for(first)
    alone = first(**batch).logits
    second = Model(make_config("phi", at=at), first.vision_tower, first.language_model).eval()
    for parameter in second.query_module.parameters():
        nn.init.normal_(parameter.data, std=0.3)
    assert not torch.allclose(second(**batch).logits, alone)
    assert torch.equal(first(**batch).logits, alone)
    assert torch.equal(copy.deepcopy(first)(**batch).logits, alone)


def test_positional_hidden_states(model):
    """Some decoder loops hand the hidden states on by position, some by name."""
    batch = batch_for(model)
    hidden, context = parts_of(model, batch)
    layer = nn.Identity()
    args, kwargs = model._update_queries(0, layer, (hidden, "rest"), {CONTEXT: context})
    assert args[1] == "rest" and not torch.equal(args[0], hidden)
    _, named = model._update_queries(0, layer, (), {CONTEXT: context, "hidden_states": hidden})
    assert torch.equal(named["hidden_states"], args[0])
    assert model._update_queries(0, layer, (hidden,), {}) == ((hidden,), {})


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed")
@pytest.mark.parametrize("family", LLMS)
@pytest.mark.parametrize("query_module", query_modules.names())
def test_lora(family, query_module):
    from peft import LoraConfig, get_peft_model

    model = make_model(family, "sap", query_module)
    batch = batch_for(model)
    before = model(**batch).logits
    targets = r".*language_model.*\.[qv]_proj"
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules=targets, modules_to_save=["query_module"]))
    torch.testing.assert_close(tuned(**batch).logits, before)
    tuned(**batch).loss.backward()
    reached = {name for name, p in tuned.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert any("lora_B" in name for name in reached)
    assert any("query_module" in name and "modules_to_save" in name for name in reached)


def test_query_positions():
    is_query = torch.tensor([[0, 1, 1, 0, 1], [0, 0, 0, 0, 0], [1, 0, 0, 0, 1]]).bool()
    assert query_positions(is_query).tolist() == [[1, 2, 4], [-1, -1, -1], [0, 4, -1]]
    assert query_positions(is_query, 4).tolist() == [[1, 2, 4, -1], [-1] * 4, [0, 4, -1, -1]]
    assert query_positions(is_query[1:2]).shape == (1, 0)


def test_masks():
    index, query_turn = torch.tensor([[3, 7, -1]]), torch.tensor([[1, 2, 1]])
    question_turn = torch.tensor([[0, 1, 1, 0, 2, 0, 2, 0]])
    question, patches = make_query_masks(index, question_turn, query_turn, torch.tensor([[1, 1, 2, 2, 0]]))
    assert question.int().tolist() == [[[0, 1, 1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 0, 1, 0], [0] * 8]]
    assert patches.int().tolist() == [[[1, 1, 0, 0, 0], [1, 1, 1, 1, 0], [0] * 5]]
