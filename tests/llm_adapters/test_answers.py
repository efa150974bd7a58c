"""The loss of answer positions alone is the LLM's own loss, in any LLM: its head, scaling and capping."""

from types import MethodType

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from helpers.factories import LLMS, llm_config, make_batch, make_model, make_processor, picture
from peft import LoraConfig, inject_adapter_in_model
from transformers import AutoModelForCausalLM

from compressors.errors import UsageError
from llm_adapters import answers
from llm_adapters.answers import Lesson, can_split_head, compute_answer_loss, index_answers
from llm_adapters.conversation import IGNORE, IMAGE, Turn

# What stands behind their heads: a cap, scales, a factor that the decoder keeps; tied weights; a bias.
HEADS = {
    "gemma2": {"final_logit_softcapping": 3.0},
    "granite": {"logits_scaling": 4.0},
    "cohere": {"logit_scale": 0.3},
    "falcon_h1": {"lm_head_multiplier": 0.2, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8},
    "gpt_neox": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "phi": {},
    "qwen2": {"tie_word_embeddings": True},
    "mixtral": {"num_local_experts": 4},
}


def make_labels(rows: int = 2, tokens: int = 9) -> torch.Tensor:
    labels = torch.randint(4, 300, (rows, tokens))
    labels[:, :5] = IGNORE
    labels[1, 7] = IGNORE
    return labels


def compute_split_loss(llm, inputs, labels, **options):
    output = llm.base_model(**inputs, use_cache=False)
    return compute_answer_loss(llm, output, labels, index_answers(labels), **options).loss


def collect_gradients(llm, loss) -> dict[str, torch.Tensor]:
    llm.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in llm.named_parameters() if p.grad is not None}


def assert_same_loss_and_gradients(llm, inputs, labels, **options) -> None:
    expected = llm(**inputs, labels=labels, use_cache=False).loss
    expected_gradients = collect_gradients(llm, expected)
    loss = compute_split_loss(llm, inputs, labels, **options)
    gradients = collect_gradients(llm, loss)
    torch.testing.assert_close(loss, expected)
    assert gradients.keys() == expected_gradients.keys()
    # of all: the gradient of a bias of keys is nothing but rounding
    largest = max(float(gradient.abs().max()) for gradient in expected_gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            gradient, expected_gradients[name], msg=name, rtol=1e-4, atol=1e-6 * largest
        )


@pytest.mark.parametrize("most_logits", [answers.MOST_LOGITS, 600], ids=["whole", "pieces"])
@pytest.mark.parametrize("name", HEADS)
def test_it_is_the_llms_own_loss_and_gradients(name, most_logits):
    torch.manual_seed(0)
    llm = AutoModelForCausalLM.from_config(llm_config(name, **HEADS[name])).eval()  # no dropout
    inputs = {"input_ids": torch.randint(4, 300, (2, 9))}
    assert_same_loss_and_gradients(llm, inputs, make_labels(), most_logits=most_logits)


def test_adapters_on_the_head_are_trained():
    torch.manual_seed(0)
    llm = AutoModelForCausalLM.from_config(llm_config("llama"))
    lora = LoraConfig(r=2, target_modules=["lm_head", "q_proj"], init_lora_weights=False)
    inject_adapter_in_model(lora, llm)
    inputs = {"input_ids": torch.randint(4, 300, (2, 9))}
    assert_same_loss_and_gradients(llm, inputs, make_labels())


def record_logits(llm) -> list[torch.Size]:
    """The shapes of all that the LLM's head gives from now on."""
    shapes = []
    llm.lm_head.register_forward_hook(lambda *call: shapes.append(call[2].shape))
    return shapes


def test_no_more_logits_than_answer_tokens_are_computed():
    torch.manual_seed(0)
    llm = AutoModelForCausalLM.from_config(llm_config("llama"))
    labels = make_labels()
    shapes = record_logits(llm)
    compute_split_loss(llm, {"input_ids": torch.randint(4, 300, (2, 9))}, labels)
    assert [shape[:-1].numel() for shape in shapes] == [int((labels != IGNORE).sum())]


def test_pieces_hold_no_more_logits_than_they_may():
    torch.manual_seed(0)
    llm = AutoModelForCausalLM.from_config(llm_config("llama"))
    shapes = record_logits(llm)
    compute_split_loss(llm, {"input_ids": torch.randint(4, 300, (2, 9))}, make_labels(), most_logits=700)
    assert max(shape.numel() for shape in shapes) <= 700
    assert len(shapes) > 1


def test_a_loss_of_its_router_leaves_a_mixture_of_experts_whole():
    config = llm_config("mixtral", num_local_experts=4, output_router_logits=True)
    assert not can_split_head(AutoModelForCausalLM.from_config(config))
    assert can_split_head(AutoModelForCausalLM.from_config(llm_config("mixtral", num_local_experts=4)))


def test_a_lesson_that_nobody_would_learn_is_refused():
    teacher = make_model("llama", seed=1)
    experts = {"num_local_experts": 4, "output_router_logits": True}
    rows = [([Turn(f"{IMAGE}What is this?", "A dog.")], [picture(1)])]
    batch = make_batch(make_processor(teacher), rows, "right")
    answer_index = index_answers(batch["labels"])
    with torch.no_grad():
        states = teacher(**batch, answer_index=answer_index, answer_states=True).states
    lesson = Lesson(states, 1.0, 1.0)
    with pytest.raises(UsageError, match="`lesson` .* a MixtralForCausalLM without a loss of its router"):
        make_model("mixtral", llm_changes=experts)(**batch, answer_index=answer_index, lesson=lesson)
    student = make_model("llama")
    with pytest.raises(UsageError, match="`lesson` is of the logits of `answer_index` alone; give that"):
        student(**batch, lesson=lesson)
    assert student(**batch, answer_index=answer_index, lesson=lesson).divergence > 0


def test_index_names_the_token_before_each_labelled_one():
    labels = torch.tensor([[IGNORE, 5, IGNORE, 6], [7, IGNORE, IGNORE, 8]])
    # a first token is predicted by none
    assert index_answers(labels).tolist() == [0, 2, 6]


def wrap_by_accelerate(llm) -> None:
    add_hook_to_module(llm, ModelHook())


def wrap_by_method(llm) -> None:
    llm.forward = MethodType(type(llm).forward, llm)


@pytest.mark.parametrize("wrap", [wrap_by_accelerate, wrap_by_method])
def test_an_llm_whose_forward_others_have_wrapped_has_the_same_loss(wrap):
    """As a model that is spread over devices has, or one with another's kernels."""
    model = make_model("llama")
    rows = [([Turn(f"{IMAGE}\nWhat is this?", "A dog.")], [picture(0)])]
    batch = make_batch(make_processor(model), rows, "right")
    expected = model(**batch).loss
    wrap(model.language_model)
    loss = model(**batch, answer_index=index_answers(batch["labels"])).loss
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("name", LLMS)
def test_the_composed_model_has_the_same_loss(name):
    model = make_model(name, "sap", "embq")
    processor = make_processor(model)
    rows = [
        ([Turn(f"{IMAGE}\nWhat is this?", "A dog."), Turn("And that?", "The cat is red.")], [picture(0)]),
        ([Turn(f"{IMAGE}\nWhat is this?", "The cat.")], [picture(1)]),
    ]
    batch = make_batch(processor, rows, "right")
    expected = model(**batch, num_items_in_batch=11)
    output = model(**batch, num_items_in_batch=11, answer_index=index_answers(batch["labels"]))
    torch.testing.assert_close(output.loss, expected.loss)
    assert output.logits is None
    mean = model(**batch, answer_index=index_answers(batch["labels"]))
    torch.testing.assert_close(mean.loss, model(**batch).loss)


@pytest.mark.parametrize("most_logits", [answers.MOST_LOGITS, 1800], ids=["whole", "pieces"])
@pytest.mark.parametrize("vocabularies", [(300, 300), (300, 320), (320, 300)], ids=str)
def test_a_lesson_adds_the_divergence_from_the_teacher(vocabularies, most_logits):
    torch.manual_seed(0)
    llm, teacher = [
        AutoModelForCausalLM.from_config(llm_config(name, vocab_size=size)).eval()
        for name, size in zip(("gemma2", "llama"), vocabularies)
    ]
    ids = torch.randint(4, 300, (2, 9))
    labels = make_labels().where(torch.arange(9) > 4, IGNORE)
    answer_index = index_answers(labels)
    # the teacher's rows have two tokens more in front, as of an image
    taught_ids = torch.cat([torch.randint(4, 300, (2, 2)), ids], 1)
    taught_labels = torch.nn.functional.pad(labels, (2, 0), value=IGNORE)
    with torch.no_grad():
        taught = teacher.base_model(taught_ids, use_cache=False)
        states = answers.take_answer_states(teacher, taught, index_answers(taught_labels))
        taught_logits = teacher(taught_ids).logits.flatten(0, 1)[index_answers(taught_labels)]
    lesson = answers.Lesson(states, 0.7, 2.0)
    loss, divergence = compute_answer_loss(
        llm, llm.base_model(ids, use_cache=False), labels, answer_index, 11, most_logits, lesson
    )
    gradients = collect_gradients(llm, loss)
    logits = llm(ids).logits.flatten(0, 1)[answer_index]
    log_probabilities = (logits[:, :300] / 2.0).log_softmax(-1)
    taught_probabilities = (taught_logits[:, :300] / 2.0).softmax(-1)
    expected = 4.0 * (taught_probabilities * (taught_probabilities.log() - log_probabilities)).sum() / 11
    entropy = torch.nn.functional.cross_entropy(logits, labels[labels != IGNORE], reduction="sum") / 11
    torch.testing.assert_close(divergence, expected.detach())
    torch.testing.assert_close(loss, entropy + 0.7 * expected)
    expected_gradients = collect_gradients(llm, entropy + 0.7 * expected)
    largest = max(float(gradient.abs().max()) for gradient in expected_gradients.values())
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, msg=name, rtol=1e-4, atol=1e-6 * largest)
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_lesson_of_no_weight_changes_no_bit():
    torch.manual_seed(0)
    llm = AutoModelForCausalLM.from_config(llm_config("llama")).eval()
    labels = make_labels()
    output = llm.base_model(torch.randint(4, 300, (2, 9)), use_cache=False)
    states = answers.take_answer_states(llm, output, index_answers(labels))
    lesson = answers.Lesson(states, 0.0, 1.0)
    plain = compute_answer_loss(llm, output, labels, index_answers(labels))
    taught = compute_answer_loss(llm, output, labels, index_answers(labels), lesson=lesson)
    assert torch.equal(plain.loss, taught.loss) and plain.divergence is None
    torch.testing.assert_close(taught.divergence, torch.tensor(0.0), atol=1e-6, rtol=0)  # from itself


def test_an_index_without_labels_is_refused():
    model = make_model("llama", "sap", None)
    batch = make_batch(make_processor(model), [([Turn(f"{IMAGE}\nWhat?", "A dog.")], [picture()])])
    labels = batch.pop("labels")
    with pytest.raises(UsageError, match="without `labels`"):
        model(**batch, answer_index=index_answers(labels))
