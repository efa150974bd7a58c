"""positions=keep: the LLM sees the kept patches as if the others were there and hidden from all."""

import pytest
import torch
from factories import LLMS, make_batch, make_model, make_processor, picture
from test_generation import NEW, generate, one_by_one, rows, without_labels

from compressors.errors import UsageError
from connectors.versions import CACHE
from llm_adapters.conversation import IMAGE, Template, Turn
from llm_adapters.kept_positions import shift_positions
from llm_adapters.shared_prefix import SharedBatch, can_share_prefix, generate_behind_prefix

FAMILIES = (*LLMS, "qwen3", "gemma2", "gemma3", "gpt_neox")
# their tokens are in the order of their patches
IN_ORDER = ["random", "uniform", "scope", "vispruner"]
TALK = [
    (
        [Turn(f"{IMAGE}\nWhat is this?", "A dog."), Turn(f"And {IMAGE} that?", "cat")],
        [picture(1), picture(2)],
    ),
    ([Turn(f"What {IMAGE} is that?", "red")], [picture(3)]),
    ([Turn("Hi", "no")], []),
]


def make(llm="llama", compressor="divprune", query_module=None, **knobs):
    """A model that keeps 4 of 36 patches at their positions."""
    return make_model(
        llm,
        compressor,
        query_module,
        prompt=Template(system=""),
        compressor_knobs={"positions": "keep", **knobs},
        scale=1.0,
    )


def spread(model, batch):
    """The batch in full: every patch has its place, and those that are left out are masked."""
    features = model.get_image_features(batch["pixel_values"])
    kept = [model.compressor.kept(row) for row in features]
    full = {"input_ids": [], "attention_mask": [], "turns": []}
    is_ours = []
    for row, ids in enumerate(batch["input_ids"]):
        order = (ids == model.config.image_token_id).cumsum(0) - 1
        columns = {name: [] for name in full} | {"ours": []}
        for place, token in enumerate(ids.tolist()):
            is_first = token == model.config.image_token_id and order[place] % 4 == 0
            if token == model.config.image_token_id and not is_first:
                continue
            seen = [bool(batch["attention_mask"][row, place])]
            if is_first:
                stays = kept[row][order[place] // 4].tolist()
                seen = [patch in stays for patch in range(36)]
            columns["input_ids"] += [token] * len(seen)
            columns["turns"] += [int(batch["turns"][row, place])] * len(seen)
            columns["attention_mask"] += [int(is_seen) for is_seen in seen]
            columns["ours"] += seen if is_first else [True]
        for name in full:
            full[name].append(columns[name])
        is_ours.append(columns["ours"])
    width = max(map(len, is_ours))
    for name, values in full.items():
        full[name] = torch.tensor([[0] * (width - len(row)) + row for row in values])
    ours = torch.tensor([[False] * (width - len(row)) + row for row in is_ours])
    return full, ours


@torch.no_grad()
@pytest.mark.parametrize(
    ("llm", "compressor"), [*((llm, "divprune") for llm in FAMILIES), *(("llama", c) for c in IN_ORDER)]
)
def test_it_is_the_whole_sequence_without_what_was_left_out(llm, compressor):
    """Of compressors whose tokens are patches: an uncompressed model that does not see the others."""
    model = make(llm, compressor)
    batch = make_batch(make_processor(model), TALK)
    logits = model(**without_labels(batch)).logits[batch["attention_mask"].bool()]
    full, ours = spread(model, batch)
    pixels = {name: batch[name] for name in ("pixel_values", "image_turn")}
    counted = torch.ones_like(ours)
    for row in range(len(ours)):  # the padding of rows is not counted
        first = int(full["attention_mask"][row].argmax())
        padding = min(first, int((full["input_ids"][row] == 0).cumprod(0).sum()))
        counted[row, :padding] = 0
    positions = (counted.cumsum(1) - 1).clamp(min=0)
    model.set_compressor("identity")
    whole = model(**full, **pixels, position_ids=positions).logits
    is_there = full["attention_mask"].bool() & ours
    torch.testing.assert_close(logits, whole[is_there], atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("compressor", ["divprune", "random"])
def test_patches_are_chosen_once_a_forward(monkeypatch, compressor):
    """A diverse choice is a step a token; one that is drawn would be another the second time."""
    model = make("llama", compressor).train()
    choose = model.compressor.kept
    choices = []

    def note(*arguments):
        choices.append(choose(*arguments))
        return choices[-1]

    monkeypatch.setattr(model.compressor, "kept", note)
    model(**make_batch(make_processor(model), TALK))
    assert len(choices) == 1


def test_where_tokens_stand():
    """Two images of 3 of 10 patches; the first row has one of them."""
    is_image = torch.tensor([[0, 1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 1, 0, 1, 1, 1, 0, 0]]).bool()
    places = torch.tensor([[0, 0, 4, 9, 0, 0, 0, 0, 0], [7, 8, 2, 0, 1, 2, 3, 0, 0]])
    positions = torch.arange(9) + shift_positions(is_image, places, 3, 10)
    assert positions.tolist() == [
        [0, 1, 5, 10, 11, 12, 13, 14, 15],
        [7, 8, 2, 10, 12, 13, 14, 21, 22],
    ]


@torch.no_grad()
@pytest.mark.parametrize("compressor", ["divprune", "visionzip", "vscan", "tome", "mmtok"])
@pytest.mark.parametrize("llm", ["llama", "phi"])
def test_generation_continues_behind_the_patches(llm, compressor):
    knobs = {"block": 1} if compressor == "vscan" else {}
    model = make(llm, compressor, "embq", **knobs)
    processor = make_processor(model)
    expected = [one_by_one(model, processor, row) for row in rows()]
    batch = make_batch(processor, rows())
    assert generate(model, batch) == expected
    assert generate(model, batch, use_cache=False) == expected
    if compressor == "divprune":
        assert generate(model, batch, cache_implementation="static") == expected
        one = make_batch(processor, [rows()[0]])
        assert generate(model, one, prompt_lookup_num_tokens=2) == expected[:1]
        beams = [generate(model, make_batch(processor, [row]), num_beams=2)[0] for row in rows()]
        assert generate(model, batch, num_beams=2) == beams
    plain = make_model(
        llm,
        compressor,
        "embq",
        prompt=Template(system=""),
        compressor_knobs=knobs,
        scale=1.0,
    )
    plain.load_state_dict(model.state_dict())
    renumbered = generate(plain, batch)
    assert renumbered[1] == expected[1] and renumbered != expected  # a row without images is as it was


@torch.no_grad()
def test_a_shared_prefix_keeps_positions():
    model = make("llama", query_module="embq")
    processor = make_processor(model)
    questions = [[Turn(f"{IMAGE}\nWhat is this?")], [Turn(f"{IMAGE}\nAnd that longer one?")]]
    images = [picture(5)]
    alone = [generate(model, make_batch(processor, [(turns, images)]))[0] for turns in questions]
    assert can_share_prefix(model)
    whole = without_labels(make_batch(processor, [(turns, images) for turns in questions], "right"))
    length = int((whole["input_ids"][0] == model.config.image_token_id).nonzero().max()) + 1
    # padding stands between prefix and question
    for row, mask in enumerate(whole["attention_mask"]):
        padding = int((mask == 0).sum())
        for name in ("input_ids", "attention_mask", "turns"):
            values = whole[name][row]
            whole[name][row] = torch.cat([values[:length], values[length:].roll(padding)])
        is_query = whole["input_ids"][row] == model.config.query_token_id
        whole["query_index"][row] = is_query.nonzero().squeeze(1)
    prefix = {name: whole[name][:1, :length] for name in ("input_ids", "attention_mask", "turns")}
    prefix |= {name: whole.pop(name)[:1] for name in ("pixel_values", "image_turn")}
    shared = SharedBatch(prefix, whole, torch.tensor([0, 0]))
    options = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": 9999}
    ids = generate_behind_prefix(model, shared, **options)
    assert ids[:, whole["input_ids"].shape[1] :].tolist() == alone


def record_positions(model):
    """A list that gets the positions of each call of the LLM."""
    seen = []
    model.language_model.register_forward_pre_hook(
        lambda _module, _arguments, keywords: seen.append(keywords["position_ids"]), with_kwargs=True
    )
    return seen


def test_training_without_a_mask_gives_every_image_its_own_draw():
    model = make("llama", "random").train()
    batch = make_batch(make_processor(model), TALK, "right")
    reference = model(**batch).logits.isfinite().all()
    assert reference
    del batch["attention_mask"]
    seen = record_positions(model)
    features = model.get_image_features(batch["pixel_values"])
    drawn = []
    compressor_forward = model.compressor.forward

    def keep_tokens(flat, *text, **choice):
        drawn.append((flat, compressor_forward(flat, *text, **choice)))
        return drawn[-1][1]

    model.compressor.forward = keep_tokens
    model(**batch).loss.backward()
    ((flat, tokens),) = drawn
    is_patch = (tokens.unsqueeze(2) == flat.flatten(1, 2).unsqueeze(1)).all(-1)
    patches = is_patch.float().argmax(-1).unflatten(0, features.shape[:2])  # (B, I, 4)
    is_image = batch["input_ids"] == model.config.image_token_id
    places = torch.zeros_like(batch["input_ids"])
    places[is_image] = patches[batch["image_turn"] > 0].flatten()
    count = torch.arange(is_image.shape[1])
    assert torch.equal(seen[0], count + shift_positions(is_image, places, 4, 36))
    model(**batch)
    assert not torch.equal(*seen)


@torch.no_grad()
def test_a_pruner_inside_the_llm_finds_the_positions(tmp_path):
    model = make("llama")
    processor = make_processor(model)
    model.set_pruner("fastv", ratio=0.5)
    batch = make_batch(processor, rows())
    expected = [generate(model, make_batch(processor, [row]))[0] for row in rows()]
    assert generate(model, batch) == expected
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    assert again.compressor.keeps_positions
    assert generate(again, batch) == expected


def test_a_pruner_that_renumbers_is_refused():
    """Tokens would move up to positions that stand apart: text before an image in among its patches."""
    line = r"\A(?!.*\n)pyramid_drop.positions=renumber: the compressor has positions=keep"
    model = make()
    with pytest.raises(UsageError, match=line):
        model.set_pruner("pyramid_drop")
    assert model.pruner is None
    model.set_pruner("pyramid_drop", positions="keep")
    plain = make_model("llama", "divprune", None)
    plain.set_pruner("pyramid_drop")
    with pytest.raises(UsageError, match=line):
        plain.set_compressor("divprune", positions="keep")
    assert plain.compressor.keeps_positions is False


@pytest.mark.parametrize("llm", ["bloom", "gpt2", "opt"])
def test_positions_that_cannot_have_gaps_are_refused(llm):
    line = r"\A(?!.*\n)positions=keep: \w+ has no rotary positions"
    with pytest.raises(UsageError, match=line):
        make(llm)
    model = make_model(llm, "divprune", None)
    with pytest.raises(UsageError, match=line):
        model.set_compressor("divprune", positions="keep")
    assert model.compressor.keeps_positions is False


def test_flash_attention_is_refused():
    model = make()
    model.language_model.config._attn_implementation = "flash_attention_2"
    batch = make_batch(make_processor(model), TALK)
    with pytest.raises(UsageError, match="flash_attention_2 takes gaps between positions for ends of texts"):
        model(**batch)


@torch.no_grad()
def test_a_cache_without_its_images_is_refused():
    model = make()
    batch = without_labels(make_batch(make_processor(model), [rows()[0]]))
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": 9999}
    first = model.generate(**batch, **options, return_dict_in_generate=True)
    cache = first[CACHE]
    with pytest.raises(UsageError, match="a cache of images that were not given to this `generate`"):
        model.generate(first.sequences, **{CACHE: cache}, **options)
    with pytest.raises(UsageError, match="tokens behind a KV cache need `position_ids`"):
        model(first.sequences[:, -1:], **{CACHE: cache})


def test_wrappers_refuse_it():
    with pytest.raises(UsageError, match="host=uniform, positions=keep"):
        make_model(
            "llama", "matryoshka", None, compressor_knobs={"host": "uniform", "knobs": {"positions": "keep"}}
        )
