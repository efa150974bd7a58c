"""In-LLM pruners in multimodal models of transformers, as they are and with a compressor and EmbQ."""

import copy
import gc
import io
import threading
import weakref
from statistics import mean

import numpy
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from other_models import OTHER_KINDS, make_other_model
from peft import LoraConfig, get_peft_model
from pruning_cases import CASES
from reuse_families import (
    EMBQ,
    SAP,
    answers,
    attached,
    cache_agrees,
    family_params,
    family_turns,
    inputs,
    make_model,
    make_processor,
    picture,
    pieces_refused,
    prompt,
    two_rows,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from compressors.errors import UsageError
from connectors.versions import CACHE, is_at_least
from llm_adapters import reuse
from llm_adapters.adapter import decoder_layers
from llm_adapters.pruning.run import PrunedPass
from llm_adapters.pruning.schedule import round_share as share
from llm_adapters.reuse.language_models import find_language_model
from llm_adapters.reuse.wrapping import IMAGE_TOKEN_NAMES, read_token_id

LAYER, SHARE = 1, 0.5  # of the models' three decoder layers
FASTV = {"layer": LAYER, "ratio": SHARE}
FEW = {"layer": LAYER, "ratio": 0.25}  # so few that it shows in the answers who ranks them
ENDLESS = {"eos_token_id": 9999}
# the LLMs of Qwen 3.5 are hybrids, and Gemma's have per-layer embeddings, which pruners refuse
UNPRUNED = ("qwen3_5", "qwen3_5_moe", "gemma3n", "gemma4")
PRUNED = [family for family in reuse.FAMILIES if family not in UNPRUNED]
over_pruned_families = pytest.mark.parametrize("family", family_params(*PRUNED))
over_video_families = pytest.mark.parametrize("family", family_params("qwen2_vl", "qwen2_5_vl"))


def pruned(family, **knobs):
    model = make_model(family)
    reuse.prune(model, "fastv", **(knobs or FASTV))
    return model, make_processor(family)


def are_visual(model, batch):
    """(B, T): placeholders of images, and of videos where they have their own."""
    placeholders = (
        read_token_id(model.config, IMAGE_TOKEN_NAMES),
        getattr(model.config, "video_token_id", -1),
    )
    return torch.isin(batch["input_ids"], torch.tensor(placeholders))


def visual_tokens(model, batch):
    """Of each row."""
    return are_visual(model, batch).sum(1).tolist()


def with_video(processor, images=1):
    """A row of an image and a video of four frames, or of a video alone."""
    frames = numpy.random.default_rng(0).integers(0, 256, (4, 24, 24, 3), dtype=numpy.uint8)
    text = "<vision_start><image><vision_end>" * images + "<vision_start><video><vision_end> What is it?"
    return dict(
        processor(
            text=[text],
            images=[[picture(1)]] * images or None,
            videos=[frames],
            return_tensors="pt",
            do_sample_frames=False,
            fps=2,
            videos_kwargs={"size": {"shortest_edge": 576, "longest_edge": 2304}},
        )
    )


@pytest.mark.parametrize(("family", "case"), family_turns(PRUNED, CASES, one_in=4))
def test_answers_of_a_pruned_batch_are_those_of_single_rows(family, case):
    model, processor = make_model(family), make_processor(family)
    name, knobs = CASES[case]
    if case == "fastv renumbered" and "mrope_section" in (
        model.config.get_text_config().rope_parameters or {}
    ):
        pytest.skip("positions on a grid do not close up: refused, see below")
    reuse.prune(model, name, **({"recipe": (0.6, 0.3)} if name == "fitprune" else knobs))
    rows = two_rows(family)
    batch, endless = inputs(processor, rows), {"eos_token_id": 9999}
    single = [answers(model, inputs(processor, [row]), **endless)[0] for row in rows]
    assert answers(model, batch, **endless) == single


@over_pruned_families
def test_fastv_is_a_slow_one_by_its_definition(family):
    """The definition, slowly: from layer LAYER on nothing sees a token that is not among the best of the last
    token's attention there."""
    model, processor = pruned(family)
    batch = inputs(processor, two_rows(family)[1:])
    with torch.no_grad():
        found = model(**batch).logits[:, -1]
        reuse.prune(model, None)
        torch.testing.assert_close(found, slow_fastv(model, batch), atol=1e-4, rtol=1e-4)
        assert (found - model(**batch).logits[:, -1]).abs().max() > 1e-3


def slow_fastv(model, batch):
    model.set_attn_implementation("eager")
    llm, seen = find_language_model(model), []
    handles = [
        decoder_layers(llm)[LAYER - 1].self_attn.register_forward_hook(
            lambda _module, _args, output: seen.append(output[1])
        )
    ]

    def hide(layer, args, kwargs):  # noqa: ARG001
        [weights] = seen
        is_image = are_visual(model, batch)[0]
        scores = weights[0, :, -1].mean(0).masked_fill(~is_image, -1)
        keep = scores.topk(share(int(is_image.sum()), SHARE)).indices
        gone = is_image.index_fill(0, keep, False)
        mask = kwargs["attention_mask"]
        lowest = torch.finfo(mask.dtype).min
        own = torch.eye(mask.shape[-1], dtype=torch.bool)
        return args, {**kwargs, "attention_mask": mask.masked_fill(gone & ~own, lowest)}

    handles += [
        layer.register_forward_pre_hook(hide, with_kwargs=True) for layer in decoder_layers(llm)[LAYER:]
    ]
    logits = model(**batch).logits[:, -1]
    for handle in handles:
        handle.remove()
    return logits


@over_pruned_families
def test_the_cache_shrinks_and_all_is_as_before_afterwards(family):
    model, processor = pruned(family)
    batch = inputs(processor, two_rows(family)[:1])
    [images] = visual_tokens(model, batch)
    length, fresh = batch["input_ids"].shape[1], make_model(family)
    with torch.no_grad():
        cache = model(**batch, use_cache=True)[CACHE]
        left = length - images + share(images, SHARE)
        assert [cache.get_seq_length(i) for i in range(3)] == [length, left, left]
        reuse.prune(model, None)
        assert torch.equal(model(**batch).logits, fresh(**batch).logits)
    for ours, plain in zip(model.modules(), fresh.modules(), strict=True):
        assert vars(ours).keys() == vars(plain).keys()
        assert len(ours._forward_pre_hooks) == len(plain._forward_pre_hooks)
        assert len(ours._forward_hooks) == len(plain._forward_hooks)


@over_pruned_families
def test_a_pruner_that_keeps_all_tokens_changes_no_logit(family):
    model, processor = pruned(family, ratio=1.0)
    batch = inputs(processor, two_rows(family))
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, make_model(family)(**batch).logits)


@over_pruned_families
def test_a_pruned_model_answers_alike_without_a_cache(family):
    """What is generated is no part of the prompt, so that it ranks nothing; with beams, too."""
    model, processor = pruned(family, **FEW)
    rows = two_rows(family)
    batch = inputs(processor, rows)
    for options in ({}, {"num_beams": 3}):
        # before 5.18 (seen in 5.17) beams, and PaliGemma's prefix, are not the same without a cache
        exact = is_at_least("5.18") or (not options and family != "paligemma")
        if exact and cache_agrees(family, rows, **options):
            expected = answers(model, batch, **options, **ENDLESS)
            assert answers(model, batch, use_cache=False, **options, **ENDLESS) == expected


@pytest.mark.parametrize("case", CASES)
def test_every_pruner_answers_alike_without_a_cache(case):
    """With EmbQ and marked questions, too."""
    name, knobs = CASES[case]
    knobs = {"recipe": (0.6, 0.3)} if name == "fitprune" else knobs
    for marked in (False, True):
        model, processor = attached("llava") if marked else (make_model("llava"), make_processor("llava"))
        reuse.prune(model, name, **knobs)
        batch = inputs(processor, two_rows("llava", marked=marked))
        assert answers(model, batch, use_cache=False, **ENDLESS) == answers(model, batch, **ENDLESS)


@over_pruned_families
def test_an_assistant_changes_no_answer_of_a_pruned_model(family):
    """Tokens that are guessed run along with the prompt and are none of it."""

    def guessed(model):
        return [answers(model, batch, assistant_model=make_model(family, seed), **ENDLESS) for seed in (0, 1)]

    (model, processor), plain = pruned(family, **FEW), make_model(family)
    batch = inputs(processor, two_rows(family)[:1])
    if family == "paligemma" or guessed(plain) != [answers(plain, batch, **ENDLESS)] * 2:
        pytest.skip("in transformers itself the prompt of this model sees guesses")
    assert guessed(model) == [answers(model, batch, **ENDLESS)] * 2


def test_the_prompt_is_that_of_the_generate_that_runs():
    """Not of one before that failed, of one inside a processor of logits, or of one in another thread."""
    model, processor = pruned("llava", **FEW)
    short, long = (inputs(processor, [row]) for row in two_rows("llava"))
    assert short["input_ids"].shape[1] < long["input_ids"].shape[1]
    with torch.no_grad():
        whole = model(**long).logits
    expected, found = answers(model, short, **ENDLESS), []

    def fail(*_):
        raise KeyError

    with pytest.raises(KeyError):
        answers(model, short, logits_processor=[fail])
    with torch.no_grad():
        assert torch.equal(model(**long).logits, whole)

    @torch.no_grad()
    def elsewhere():
        found.append(model(**long).logits)

    def among(_, scores):
        answers(model, long)
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        return scores

    assert answers(model, short, use_cache=False, logits_processor=[among], **ENDLESS) == expected
    assert len(found) == 4 and all(torch.equal(each, whole) for each in found)


def test_a_pruned_model_is_copied_pickled_and_saved(tmp_path):
    """A copy's `generate` is its own; what is saved is the plain model."""
    model, processor = pruned("llava", **FEW)
    batch, file = inputs(processor, two_rows("llava")), io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    copies = copy.deepcopy(model), torch.load(file, weights_only=False)
    expected, plain = answers(model, batch), answers(make_model("llava"), batch)
    for each in copies:
        assert answers(each, batch, use_cache=False) == expected != plain
        reuse.prune(each, None)
        assert "generate" not in vars(each)
        assert answers(each, batch) == plain
    assert answers(model, batch) == expected
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert answers(loaded, batch) == plain


@over_video_families
def test_videos_are_pruned_as_images_are(family):
    """An image and a video, a video alone; the definition, slowly, of both."""
    model, processor = make_model(family), make_processor(family)
    for images in (1, 0):
        batch = with_video(processor, images)
        [count] = visual_tokens(model, batch)
        assert count == 9 * images + 18
        reuse.prune(model, "fastv", **FASTV)
        with torch.no_grad():
            found = model(**batch).logits[:, -1]
        held = model.slothkit_pruning.pruner
        assert held.measured_visual_tokens() == pytest.approx(held.average_visual_tokens(count))
        options = {**ENDLESS, "suppress_tokens": [model.config.image_token_id, model.config.video_token_id]}
        expected = answers(model, batch, **options)
        if is_at_least("5.17"):  # before, an assistant may still say the placeholder of a video
            assert answers(model, batch, use_cache=False, **options) == expected
            assert answers(model, batch, assistant_model=make_model(family, seed=1), **options) == expected
        reuse.prune(model, None)
        with torch.no_grad():
            torch.testing.assert_close(found, slow_fastv(model, batch), atol=1e-4, rtol=1e-4)


@over_video_families
def test_videos_are_no_question(family):
    model, processor = make_model(family), make_processor(family)
    reuse.prune(model, "sparsevlm")
    pruner, prompts = model.slothkit_pruning.pruner, []
    select_raters = pruner.select_raters
    pruner.select_raters = lambda prompt: (prompts.append(prompt), select_raters(prompt))[1]
    for images in (1, 0):
        batch = with_video(processor, images)
        with torch.no_grad():
            model(**batch)
        is_visual = are_visual(model, batch)
        assert torch.equal(prompts[-1].visual, is_visual) and torch.equal(prompts[-1].text, ~is_visual)


@over_video_families
def test_fitprune_is_calibrated_on_videos(family):
    model, processor = make_model(family), make_processor(family)
    batch = with_video(processor)
    reuse.prune(model, "fitprune", average=0.6, calibrate_on=[batch])
    with torch.no_grad():
        model(**batch)
    measured = model.slothkit_pruning.pruner.measured_visual_tokens()
    assert measured / visual_tokens(model, batch)[0] == pytest.approx(0.6, abs=0.05)


@pytest.mark.parametrize(("family", "first"), family_turns(PRUNED, ["attach", "prune"], one_in=2))
def test_a_pruner_with_a_compressor_and_embq(family, first):
    if first == "attach":
        model, processor = attached(family)
        reuse.prune(model, "fastv", **FASTV)
    else:
        model, processor = pruned(family)
        reuse.attach(model, processor, **SAP, **EMBQ)
    rows = two_rows(family, marked=True)
    batch = inputs(processor, rows)
    said = answers(model, batch, **ENDLESS)
    assert said == [answers(model, inputs(processor, [row]), **ENDLESS)[0] for row in rows]
    assert said == answers(copy.deepcopy(model), batch, **ENDLESS)
    images = visual_tokens(model, batch)
    with torch.no_grad():
        cache = model(**batch, use_cache=True)[CACHE]
    # the row that drops fewest; padding is not dropped
    assert cache.get_seq_length(0) - cache.get_seq_length(2) == min(n - share(n, SHARE) for n in images) > 0


@over_pruned_families
def test_fitprune_is_calibrated(family):
    model, processor = make_model(family), make_processor(family)
    batch = inputs(processor, two_rows(family))
    with pytest.raises(UsageError, match="pruner=fitprune: has to be calibrated: give calibrate_on"):
        reuse.prune(model, "fitprune", average=0.6)
    assert not hasattr(model, "slothkit_pruning")
    reuse.prune(model, "fitprune", average=0.6, calibrate_on=[batch])
    held = model.slothkit_pruning.pruner
    blank = {"calibrate_on": [{"input_ids": batch["input_ids"][:, -3:]}]}
    with pytest.raises(UsageError, match="none of the samples"):
        reuse.prune(model, "fitprune", **blank)
    assert model.slothkit_pruning.pruner is held
    model(**batch)
    assert held.measured_visual_tokens() / mean(visual_tokens(model, batch)) == pytest.approx(0.6, abs=0.05)


@pytest.mark.parametrize("family", family_params("llava", "qwen3_vl"))  # DeepStack acts between the layers
@pytest.mark.parametrize("first", [0, 1])
def test_models_around_one_language_model_have_their_own_pruners(family, first):
    """In prefills and decoding steps, whichever is pruned first; each counts its own tokens."""
    models, processor = [make_model(family, seed) for seed in (0, 1)], make_processor(family)
    shared = find_language_model(models[0])
    models[1].model.language_model, models[1].lm_head = shared, models[0].lm_head
    batch = inputs(processor, two_rows(family))
    knobs = [{"layer": 1, "ratio": 0.2}, {"layer": 2, "ratio": 0.7}]

    def measure(model):
        with torch.no_grad():
            logits = model(**batch).logits
        said = answers(model, batch, **ENDLESS)
        return logits, said, model.slothkit_pruning.pruner.measured_visual_tokens()

    alone = []
    for model, own_knobs in zip(models, knobs):
        reuse.prune(model, "fastv", **own_knobs)
        alone.append(measure(model))
        reuse.prune(model, None)
    for number in (first, 1 - first):
        reuse.prune(models[number], "fastv", **knobs[number])
    for model, (logits, said, tokens) in zip(models, alone):
        found, found_said, found_tokens = measure(model)
        assert torch.equal(found, logits)
        assert (found_said, found_tokens) == (said, tokens)
    reuse.prune(models[0], None)
    assert torch.equal(measure(models[1])[0], alone[1][0])


def test_answers_of_pruned_beams_with_several_images():
    model, processor = pruned("llava")
    rows = two_rows("llava")
    rows[0] = (prompt("llava", images=2), [picture(1), picture(2)])
    batch = inputs(processor, rows)
    if not cache_agrees("llava", rows, num_beams=3):
        pytest.skip("this version of transformers mixes up the images of beams")
    assert answers(model, batch, num_beams=3) == [
        answers(model, inputs(processor, [row]), num_beams=3)[0] for row in rows
    ]


def test_calibration_leaves_each_part_in_its_mode():
    model, processor = make_model("llava"), make_processor("llava")
    model.train()
    model.model.vision_tower.eval()
    modes = {name: part.training for name, part in model.named_modules()}
    reuse.prune(model, "fitprune", calibrate_on=inputs(processor, two_rows("llava")))
    assert {name: part.training for name, part in model.named_modules() if name in modes} == modes


def test_bad_input_of_prune_is_refused():
    model, processor = make_model("llava"), make_processor("llava")
    with pytest.raises(UsageError, match="fast_v"):
        reuse.prune(model, "fast_v")
    with pytest.raises(UsageError, match="pruner=fastv: is not calibrated"):
        reuse.prune(model, "fastv", calibrate_on=[{}])
    assert not hasattr(model, "slothkit_pruning")
    with pytest.raises(UsageError, match="Linear: it is no model of transformers"):
        reuse.prune(torch.nn.Linear(1, 1), "fastv")
    reuse.prune(model, "fastv", **FASTV)
    batch = inputs(processor, two_rows("llava"))
    with pieces_refused("without prefill_chunk_size"):
        answers(model, batch, prefill_chunk_size=8)
    last_image = int((batch["input_ids"] == model.config.image_token_id).nonzero()[:, 1].max())
    with pytest.raises(UsageError, match="a part of the prompt; .* without prefill_chunk_size"):
        answers(model, batch, prefill_chunk_size=last_image + 1)  # all images in the first piece
    with pytest.raises(UsageError, match="generate without cache_implementation"):
        answers(model, batch, cache_implementation="static", disable_compile=True)


@over_pruned_families
def test_embeddings_with_images_are_refused(family):
    """Which of them are visual tokens nobody can tell; text by itself and decoding go on."""
    model, processor = pruned(family)
    batch = inputs(processor, two_rows(family)[:1])
    with torch.no_grad():
        embeds = model.get_input_embeddings()(batch["input_ids"])
        given = {name: value for name, value in batch.items() if name != "input_ids"}
        with pytest.raises(UsageError, match="give input_ids; with inputs_embeds"):
            model(inputs_embeds=embeds, **given)
        if family == "llava":  # some have no `generate` from embeddings
            with pytest.raises(UsageError, match="give input_ids; with inputs_embeds"):
                model.generate(inputs_embeds=embeds, max_new_tokens=2, **given)
        text = {"inputs_embeds": embeds[:, -4:], "attention_mask": batch["attention_mask"][:, -4:]}
        assert torch.equal(model(**text).logits, make_model(family)(**text).logits)
        found = []
        for kind in ("input_ids", "inputs_embeds"):
            cache = model(**batch, use_cache=True)[CACHE]
            ids = torch.tensor([[20]])
            last = ids if kind == "input_ids" else model.get_input_embeddings()(ids)
            found.append(model(**{kind: last}, **{CACHE: cache}).logits)
        assert torch.equal(*found)


@over_video_families
def test_embeddings_with_videos_are_refused(family):
    model, processor = pruned(family)
    batch = with_video(processor, images=0)
    embeds = model.get_input_embeddings()(batch.pop("input_ids"))
    with pytest.raises(UsageError, match="give input_ids; with inputs_embeds"):
        model(inputs_embeds=embeds, **batch)


@pytest.mark.parametrize("task", [None, "CAUSAL_LM"])
def test_a_peft_model_stands_for_the_model_in_it(task):
    model, processor = make_model("llava"), make_processor("llava")
    batch, fresh = inputs(processor, two_rows("llava")), make_model("llava")
    plain = answers(fresh, batch)
    reuse.prune(fresh, "fastv", **FEW)
    expected = answers(fresh, batch)
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type=task))
    reuse.prune(tuned, "fastv", **FEW)
    assert answers(tuned, batch) == answers(tuned, batch, use_cache=False) == expected != plain
    reuse.prune(tuned, "fitprune", average=0.6, calibrate_on=batch)  # one, not in a list
    assert len(model.slothkit_pruning.pruner.known_shares()) == 2
    reuse.prune(tuned, None)
    assert not {"slothkit_pruning", "generate"} & vars(model).keys()
    assert answers(tuned, batch) == plain


@torch.no_grad()
def test_a_pruned_model_without_its_head():
    model, processor = make_model("llava"), make_processor("llava")
    batch = inputs(processor, two_rows("llava"))
    reuse.prune(model.model, "fastv", **FASTV)
    found = model.model(**batch).last_hidden_state
    reuse.prune(model.model, None)
    reuse.prune(model, "fastv", **FASTV)
    torch.testing.assert_close(model.lm_head(found), model(**batch).logits)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl", "glm4v"])
def test_tokens_on_a_grid_keep_their_places(family):
    """Time, row and column do not close up: text would come to stand inside the image."""
    model = make_model(family)
    reuse.prune(model, "pyramid_drop")
    assert model.slothkit_pruning.pruner.positions == "keep"
    with pytest.raises(UsageError, match=r"pyramid_drop.positions=renumber: .* times, rows and columns"):
        reuse.prune(model, "pyramid_drop", positions="renumber")
    line = make_model("llava")
    reuse.prune(line, "pyramid_drop")
    assert line.slothkit_pruning.pruner.positions == "renumber"


def add_answer(batch, answer):
    """A row of inputs with an answer behind it, and labels for that."""
    answer = torch.tensor([answer])
    filled = {**batch, "input_ids": torch.cat([batch["input_ids"], answer], 1)}
    filled["attention_mask"] = torch.cat([batch["attention_mask"], torch.ones_like(answer)], 1)
    for name in ("token_type_ids", "mm_token_type_ids"):
        if name in batch:
            filled[name] = torch.cat([batch[name], torch.zeros_like(answer)], 1)
    return filled, torch.cat([torch.full_like(batch["input_ids"], -100), answer], 1)


# Gemma's classes hand their labels on themselves; the positions of Qwen-VL are made by the model
@pytest.mark.parametrize("family", family_params("llava", "qwen2_5_vl", "qwen3_vl", "gemma3"))
@pytest.mark.parametrize("is_adapted", [False, True])
def test_a_given_answer_has_no_say_in_what_is_dropped(family, is_adapted):
    """With labels an answer's first word is as likely as behind the prompt alone, in a model of PEFT, too."""
    model, processor = make_model(family), make_processor(family)
    batch = inputs(processor, two_rows(family)[1:])
    length = batch["input_ids"].shape[1]
    called = get_peft_model(model, LoraConfig(target_modules=["q_proj"])).eval() if is_adapted else model
    trailing = [0, 7]  # what a template puts behind an answer
    for case, (name, knobs) in CASES.items():
        if case == "fastv renumbered" and family.startswith("qwen"):
            continue  # positions on a grid do not close up
        reuse.prune(model, name, **({"recipe": (0.3, 0.2)} if name == "fitprune" else knobs))
        with torch.no_grad():
            expected = called(**batch).logits[:, -1]
            for answer in ([20, 30, 40], [50, 60]):
                filled, labels = add_answer(batch, answer + trailing)
                labels[:, -len(trailing) :] = -100
                found = called(**filled, labels=labels).logits[:, length - 1]
                torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4, msg=f"{case}: {answer}")


@pytest.mark.skipif(not is_at_least("5.24"), reason="which classes there are was looked up in 5.24")
@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_what_a_model_hands_its_layers_follows_the_tokens(kind):
    """Types of tokens, by which a layer's experts are chosen, and features that are added between layers."""
    model, batch = make_other_model(kind)
    reuse.prune(model, "fastv", **FASTV)
    with torch.no_grad():
        output = model(**batch, use_cache=True)
        [images] = visual_tokens(model, batch)
        left = batch["input_ids"].shape[1] - images + share(images, SHARE)
        assert output[CACHE].get_seq_length(2) == left
        reuse.prune(model, None)
        slow = slow_fastv(model, batch)
        torch.testing.assert_close(output.logits[:, -1], slow, atol=1e-4, rtol=1e-4)


def test_deepstack_is_added_behind_the_last_layer_too():
    """Where there are features for each layer."""
    model, processor = make_model("qwen3_vl"), make_processor("qwen3_vl")
    batch = inputs(processor, two_rows("qwen3_vl"))

    def add_levels(llm, args, kwargs):  # noqa: ARG001
        levels = kwargs["deepstack_visual_embeds"]
        kwargs["deepstack_visual_embeds"] = [levels[0]] * 3
        return args, kwargs

    find_language_model(model).register_forward_pre_hook(add_levels, with_kwargs=True)
    with torch.no_grad():
        plain = model(**batch).logits
        reuse.prune(model, "fastv", layer=1, ratio=1.0)
        torch.testing.assert_close(model(**batch).logits, plain)


def test_nothing_of_a_pruned_pass_is_kept():
    """Neither its prompt nor its masks."""
    model, processor = pruned("qwen3_vl")
    batch = inputs(processor, two_rows("qwen3_vl"))
    passes = []
    start_prefill = PrunedPass.start_prefill

    def note_pass(run, prompt):
        passes.append(weakref.ref(run))
        return start_prefill(run, prompt)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PrunedPass, "start_prefill", note_pass)
        model(**batch, use_cache=False)
        with torch.no_grad():
            model(**batch, use_cache=False)
    gc.collect()
    assert len(passes) == 2 and [passed() for passed in passes] == [None, None]


class OneDevice(TorchDispatchMode):
    """Refuses operations on tensors of several devices, as CUDA does; the meta device alone takes them. What
    is copied from there is zeros."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and args[0].is_meta:
            device = kwargs.get("device") or "meta"
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype, device=device)
        values, _ = tree_flatten((args, kwargs))
        devices = {value.device for value in values if isinstance(value, torch.Tensor) and value.ndim}
        assert len(devices) < 2 or "copy" in str(func), func
        return func(*args, **kwargs)


def spread_layers(model, first):
    """The layers from `first` on, and the head, on a second device, as `device_map="auto"` has them."""
    llm = find_language_model(model)
    for module in [*decoder_layers(llm)[first:], llm.norm, model.lm_head]:
        module.to("meta")
        add_hook_to_module(module, AlignDevicesHook(execution_device="meta"))


@pytest.mark.parametrize("family", family_params("llava", "qwen3_vl"))
@pytest.mark.parametrize("first", [1, 2])
@pytest.mark.parametrize(
    ("name", "knobs"),
    [
        ("fastv", FASTV),
        ("fastv", {"layer": 2, "rotary": False}),
        ("vtw", {"layer": 2}),
        ("pyramid_drop", {"layers": (1, 2)}),
        ("sparsevlm", {"layers": (1, 2)}),
        ("dart", {"layer": 1}),
        ("pact", {"layer": 1}),
    ],
)
def test_a_pruner_in_layers_on_several_devices(family, first, name, knobs):
    model, processor = make_model(family), make_processor(family)
    batch = inputs(processor, two_rows(family))
    spread_layers(model, first)
    reuse.prune(model, name, **knobs)
    with torch.no_grad(), OneDevice():
        output = model(**batch, use_cache=True)
        model(input_ids=batch["input_ids"][:, -1:], **{CACHE: output[CACHE]})  # a step behind it
    assert output.logits.shape[:2] == batch["input_ids"].shape


def test_a_query_module_behind_layers_on_another_device():
    """EmbQ acts before the second layer on the device of the embeddings, and the first is on another one."""
    model, processor = attached("llava")
    spread_layers(model, 0)
    batch = inputs(processor, two_rows("llava", marked=True))
    for name in (None, "fastv"):
        reuse.prune(model, name)
        with torch.no_grad(), OneDevice():
            assert model(**batch).logits.shape[:2] == batch["input_ids"].shape


@pytest.mark.parametrize("family", family_params("llava", "internvl"))
@pytest.mark.parametrize("name", ["dart", "pact"])  # which choose by keys
def test_what_keys_choose_does_not_depend_on_padding(family, name):
    """In a forward pass without positions, and in a step behind it."""
    model, processor = make_model(family), make_processor(family)
    row = (prompt(family), [picture(1)])
    longer = (prompt(family, "a " * 60 + "What?"), [picture(2)])
    alone, padded = inputs(processor, [row]), inputs(processor, [row, longer])
    next_id = torch.tensor([[40], [40]])
    longer_mask = torch.cat([padded["attention_mask"], torch.ones_like(next_id)], 1)
    for ratio in (0.15, 0.3, 0.45, 0.6):
        reuse.prune(model, name, layer=1, ratio=ratio)
        with torch.no_grad():
            expected = model(**alone, use_cache=True)
            step = model(input_ids=next_id[:1], **{CACHE: expected[CACHE]})
            found = model(**padded, use_cache=True)
            torch.testing.assert_close(found.logits[0, -1], expected.logits[0, -1], atol=1e-4, rtol=1e-4)
            padded_step = model(input_ids=next_id, attention_mask=longer_mask, **{CACHE: found[CACHE]})
            torch.testing.assert_close(padded_step.logits[0], step.logits[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("first", ["attach", "prune"])
def test_a_pruner_is_saved_beside_a_compressor(first, tmp_path):
    model, processor = make_model("llava"), make_processor("llava")
    if first == "prune":
        reuse.prune(model, "fastv", **FEW)
    reuse.attach(model, processor, **SAP, **EMBQ)
    if first == "attach":
        reuse.prune(model, "vtw", layer=1)
        reuse.prune(model, "fastv", **FEW)  # the last one counts
    model.save_pretrained(tmp_path), processor.save_pretrained(tmp_path)
    assert "| pruner | `fastv`, `layer=1`, `ratio=0.25` |" in (tmp_path / "README.md").read_text()
    loaded, its_processor = reuse.load(tmp_path)
    rows = two_rows("llava", marked=True)
    said = answers(loaded, inputs(its_processor, rows), **ENDLESS)
    assert said == answers(model, inputs(processor, rows), **ENDLESS)
    cache = loaded(**inputs(its_processor, rows), use_cache=True)[CACHE]
    assert cache.get_seq_length(2) < cache.get_seq_length(0)
    reuse.prune(loaded, None)
    loaded.save_pretrained(tmp_path / "whole"), its_processor.save_pretrained(tmp_path / "whole")
    assert "| pruner | none |" in (tmp_path / "whole" / "README.md").read_text()
    whole, its_processor = reuse.load(tmp_path / "whole")
    cache = whole(**inputs(its_processor, rows), use_cache=True)[CACHE]
    assert cache.get_seq_length(2) == cache.get_seq_length(0)


def test_an_offloaded_query_module_gives_its_tokens():
    model, processor = attached("llava")
    batch = inputs(processor, two_rows("llava", marked=True))
    module = next(part for name, part in model.named_modules() if name.endswith("query_module"))
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    with torch.no_grad():
        expected = model(**batch).logits
        hook = AlignDevicesHook(torch.device("cpu"), offload=True, weights_map=weights, place_submodules=True)
        add_hook_to_module(module, hook)
        assert all(parameter.is_meta for parameter in module.parameters())
        assert torch.equal(model(**batch).logits, expected)
