"""Questions about one picture share its prefix: the same answers, from fewer visual tokens in the LLM."""

from pathlib import Path

import pytest
import torch
from helpers.factories import LLMS, make_model, make_processor, picture
from transformers import DynamicCache

from compressors.errors import UsageError
from connectors.versions import CACHE
from experiments.config.schema import Config
from experiments.data.llava import Sample
from experiments.data.loader import SampleImages
from experiments.stages import evaluate
from experiments.stages.evaluate import generate_answers
from experiments.stages.questions import batch_by_length, encode_batch
from llm_adapters.conversation import IMAGE, Turn
from llm_adapters.kv_cache import pick_caches
from llm_adapters.shared_prefix import PictureKeeper, SharedBatch, can_share_prefix, find_prefix_length

QUESTIONS = ("What is this?", "And that, is it a dog?", "What?", "The cat is red.", "Is the cat red?")


@pytest.fixture
def questions(tmp_path) -> list[Sample]:
    """Five about two pictures."""
    samples = []
    for number, text in enumerate(QUESTIONS):
        path = tmp_path / f"{number % 2}.png"
        picture(number % 2).save(path)
        samples.append(Sample(str(number), (path,), (Turn(f"{IMAGE}\n{text}"),)))
    return samples


def answer_alone(model, images, questions, tokens):
    said = []
    for question in questions:
        ids = generate_answers(model, encode_batch(images, False, [question]), tokens)[0]
        said.append(ids.tolist())
    return said


@pytest.mark.parametrize("query_module", [None, "embq"])
@pytest.mark.parametrize("name", [*LLMS, "gpt_neox"])
def test_answers_are_those_of_each_question_alone(name, query_module, questions):
    model = make_model(name, "sap", query_module)
    images = SampleImages(make_processor(model))
    batch = encode_batch(images, can_share_prefix(model), questions)
    assert isinstance(batch, SharedBatch)
    assert len(batch.prefix["pixel_values"]) == 2
    together = generate_answers(model, batch, 6)
    for tokens, alone in zip(together.tolist(), answer_alone(model, images, questions, 6)):
        assert tokens[: len(alone)] == alone
    caches = pick_caches("static", model)
    with torch.inference_mode():
        for encoded in (batch, encode_batch(images, False, questions)):
            assert torch.equal(generate_answers(model, encoded, 6, caches=caches), together)


@pytest.mark.parametrize(("llm", "can_share"), [("mpt", False), ("bloom", False), ("gpt2", True)])
def test_an_llm_that_takes_no_positions_shares_no_prefix(llm, can_share, questions):
    """MPT's ALiBi counts columns, and padding stands between prefix and question."""
    model = make_model(llm, "sap", None)
    assert can_share_prefix(model) == can_share
    images = SampleImages(make_processor(model))
    together = generate_answers(model, encode_batch(images, can_share_prefix(model), questions), 6)
    for tokens, alone in zip(together.tolist(), answer_alone(model, images, questions, 6)):
        assert tokens[: len(alone)] == alone


def test_a_picture_goes_through_tower_compressor_and_llm_once(questions):
    model = make_model("llama", "sap", "embq")
    images = SampleImages(make_processor(model))
    pictures, tokens = [], []
    model.compressor.register_forward_hook(lambda *call: pictures.append(len(call[1][0])))
    layer = model.language_model.model.layers[0]
    layer.register_forward_hook(lambda *call: tokens.append(call[2].shape[:2]))
    batch = encode_batch(images, True, questions)
    generate_answers(model, batch, 1)
    assert pictures == [2]
    length = batch.prefix["input_ids"].shape[1]
    assert tokens[0] == (2, length)
    assert tokens[1] == (5, batch.rows["input_ids"].shape[1] - length)


def test_words_before_a_picture_are_not_shared(questions):
    model = make_model("llama", "sap", "embq")
    processor = make_processor(model)
    inside = (Turn(f"Look {IMAGE} here"),)
    rows = [processor.encode(inside, [1])]
    assert find_prefix_length(rows, processor.image_token_id) == 0
    others = [sample._replace(turns=inside) for sample in questions]
    assert isinstance(encode_batch(SampleImages(processor), True, others), dict)


def test_rows_without_images_or_with_other_lengths_are_not_shared():
    processor = make_processor(make_model("llama", "sap", "embq"), tiles=4)
    row = processor.encode([Turn(f"{IMAGE}\nWhat?")], [1])
    tiled = processor.encode([Turn(f"{IMAGE}\nWhat?")], [5])
    text = processor.encode([Turn("What?")], [])
    assert find_prefix_length([row, row], processor.image_token_id)
    assert find_prefix_length([row, tiled], processor.image_token_id) == 0
    assert find_prefix_length([row, text], processor.image_token_id) == 0


def test_what_reads_the_question_or_drops_tokens_is_not_shared():
    assert can_share_prefix(make_model("llama", "sap", "embq"))
    assert not can_share_prefix(make_model("llama", "sap", "llava_mini"))  # it reads both sides together
    reader = {"num_queries": 4, "num_layers": 2, "heads": 2, "width": 8, "text": True}
    assert not can_share_prefix(make_model("llama", "qformer", None, compressor_knobs=reader))
    assert not can_share_prefix(make_model("llama", "matryoshka", None))
    assert not can_share_prefix(make_model("gemma3", "sap", None))  # layers with a window
    windows = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}
    assert not can_share_prefix(make_model("qwen2", "sap", None, llm_changes=windows))
    assert not can_share_prefix(make_model("rwkv", "sap", None))  # a state
    pruned = make_model("llama", "sap", None)
    pruned.set_pruner("fastv")
    assert not can_share_prefix(pruned)


def test_batches_keep_pictures_together(questions):
    images = SampleImages(make_processor(make_model("llama", "sap", None)))
    batches = batch_by_length(questions, images, 3, share=True)
    assert [[number % 2 for number in batch] for batch in batches] == [[0, 0, 0], [1, 1]]
    assert sorted(sum(batches, [])) == list(range(5))


def test_a_prefix_without_what_queries_read_is_refused():
    model = make_model("llama", "sap", "embq")
    ids = torch.full((1, 3), 7)
    cache = DynamicCache(config=model.config.text_config)
    with pytest.raises(UsageError, match="prefix_length"):
        model(input_ids=ids, prefix_length=4, **{CACHE: cache})


def test_a_model_that_is_told_to_keep_no_cache_shares_all_the_same(questions):
    model = make_model("llama", "sap", "embq", llm_changes={"use_cache": False})
    model.generation_config.use_cache = False
    images = SampleImages(make_processor(model))
    together = generate_answers(model, encode_batch(images, True, questions), 4).tolist()
    for tokens, alone in zip(together, answer_alone(model, images, questions, 4)):
        assert tokens[: len(alone)] == alone


def test_whole_rows_behind_a_prefix_are_refused():
    model = make_model("llama", "sap", None)
    ids = torch.full((1, 3), 7)
    with pytest.raises(UsageError, match="give the tokens behind the prefix"):
        model(input_ids=ids, turns=torch.zeros(1, 3, dtype=torch.long), prefix_length=2)


def ask_keeper(keeper, processor, batch, **options):
    """Answers to (picture number, question)s at once, and to the same unshared."""
    chats = []
    for number, text in batch:
        content = [{"type": "image", "image": picture(number)}, {"type": "text", "text": text}]
        chats.append([{"role": "user", "content": content}])
    inputs = processor.apply_chat_template(
        chats,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
        processor_kwargs={"padding": True},
    )
    options = {"do_sample": False, "max_new_tokens": 6, **options}
    alone = keeper.model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
    shared = keeper.generate(inputs, [number for number, _ in batch], **options)
    return shared, alone


@pytest.mark.parametrize("query_module", [None, "embq"])
def test_a_kept_picture_answers_as_an_unshared_one(query_module):
    """Batches about one picture, one after another, and of several; by beams nothing is shared."""
    model = make_model("llama", "sap", query_module)
    processor = make_processor(model)
    processor.tokenizer.padding_side = "left"
    keeper = PictureKeeper(model, processor)
    seen = []
    model.compressor.register_forward_hook(lambda *call: seen.append(len(call[1][0])))
    batches = [
        [(0, QUESTIONS[0])],
        [(0, QUESTIONS[1])],
        [(0, QUESTIONS[2]), (0, QUESTIONS[3])],
        [(1, QUESTIONS[0]), (0, QUESTIONS[1]), (1, QUESTIONS[4])],
        [(1, QUESTIONS[0]), (0, QUESTIONS[1])],
    ]
    counts = []
    for batch in batches:
        seen.clear()
        shared, alone = ask_keeper(keeper, processor, batch)
        assert torch.equal(shared, alone)
        counts.append(sum(seen) - len(batch))  # without those of the unshared answer
    assert counts == [1, 0, 0, 2, 2]
    shared, alone = ask_keeper(keeper, processor, batches[2], num_beams=2)
    assert torch.equal(shared, alone)
    model.generation_config.num_beams = 2  # as the model was saved
    shared, alone = ask_keeper(keeper, processor, batches[2])
    assert torch.equal(shared, alone)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("32", torch.float32), ("auto", None), ("bf16-mixed", None)]
)
def test_answers_come_in_the_precision_of_training(tmp_path, monkeypatch, precision, dtype):
    """None: the device's usual one, bfloat16 on a GPU."""

    class Asked(Exception):
        pass

    def load(_folder: Path, _device: torch.device, asked: torch.dtype | None) -> None:
        assert asked == dtype
        raise Asked

    monkeypatch.setattr(evaluate.saved, "load_saved_model", load)
    config = Config()
    config.trainer.precision = precision
    with pytest.raises(Asked):
        evaluate.load_evaluated_model(config, {"finetune": tmp_path})
