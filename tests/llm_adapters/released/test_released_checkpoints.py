"""Released checkpoints <-> ours: every layout of files and keys, bit for bit, all or nothing.

Checkpoints here are golden ones (`tests/golden/flashsloth`) rewritten; parity is `tests/golden`'s business.
"""

import json
from pathlib import Path

import pytest
import torch
from factories import byte_tokenizer, make_model, make_processor, picture
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedTokenizerFast

from compressors.errors import UsageError
from llm_adapters.conversation import IMAGE, QUERY, Template
from llm_adapters.released import layout, sizes, tokens
from llm_adapters.released.__main__ import main
from llm_adapters.released.conversion import build_skeleton, convert_checkpoint, export_model

GOLDEN = Path(__file__).parents[2] / "golden" / "flashsloth"
PHI_2 = {
    "model_type": "flashsloth",
    "vocab_size": 51200,
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "partial_rotary_factor": 0.4,
    "mm_vision_tower": "google/siglip-so400m-patch14-384",
    "mm_hidden_size": 1152,
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_layer": -2,
    "eos_token_id": 50256,
}
QUERIES, DOT = "model.learnable_tokens.token", 76
STAGE_1 = ("model.mm_projector.", "model.pooling.")


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return load_file(GOLDEN / "weights.safetensors")


def write(folder: Path, weights: dict[str, Tensor], values: dict | None = None) -> Path:
    """A released folder with one file of weights; golden sizes unless told otherwise."""
    folder.mkdir()
    values = json.loads((GOLDEN / "config.json").read_text()) if values is None else values
    (folder / "config.json").write_text(json.dumps(values))
    save_file(weights, folder / "model.safetensors")
    return folder


def stored(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for key in one:
        assert one[key].dtype == other[key].dtype and torch.equal(one[key], other[key]), key


def refused(capsys, *arguments: object) -> str:
    """What the command line says in its one line when it refuses."""
    assert main([str(argument) for argument in arguments]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("error: ") and said.err.count("\n") == 1
    return said.err


@pytest.mark.parametrize("level", [True, False], ids=["with vision_model", "without"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_there_and_back_is_bit_equal(weights, dtype, level, tmp_path):
    given = {
        key if level else key.replace(".vision_model.", "."): value.to(dtype)
        for key, value in weights.items()
    }
    folder = write(tmp_path / "given", given)
    convert_checkpoint(folder, tmp_path / "ours")
    export_model(tmp_path / "ours", tmp_path / "back")
    assert_same(stored(tmp_path / "back"), given)
    assert json.loads((tmp_path / "back/config.json").read_text()) == json.loads(
        (folder / "config.json").read_text()
    )
    ours = stored(tmp_path / "ours")
    assert {value.dtype for value in ours.values()} == {dtype}
    table = given["model.embed_tokens.weight"]
    assert torch.equal(ours["query_module.tokens"], given[QUERIES] + table[DOT])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_from_pretrained_round_trip_is_bit_equal(weights, dtype, tmp_path):
    folder = write(tmp_path / "given", {key: value.to(dtype) for key, value in weights.items()})
    convert_checkpoint(folder, tmp_path / "ours")
    model, info = AutoModelForImageTextToText.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert_same(model.state_dict(), stored(tmp_path / "ours"))
    model.save_pretrained(tmp_path / "again")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "again")
    assert_same(again.state_dict(), model.state_dict())
    slot = [model.config.query_token_id] * model.num_queries
    ids = torch.tensor([[5, *[model.config.image_token_id] * model.num_image_tokens(), 6, 7, *slot, 8]])
    turns = (ids != 5) & (ids != 8)
    inputs = {
        "input_ids": ids,
        "turns": turns.long(),
        "image_turn": torch.ones(1, 1).long(),
        "pixel_values": torch.randn(1, 1, 3, 126, 126),
    }
    assert torch.equal(again(**inputs).logits, model(**inputs).logits)


def sharded(folder: Path, weights: dict[str, Tensor]) -> Path:
    save_torch_state_dict(weights, folder, max_shard_size="1MB")
    assert (folder / "model.safetensors.index.json").is_file() and not (folder / "model.safetensors").exists()
    return folder


def pickled(folder: Path, weights: dict[str, Tensor]) -> Path:
    torch.save(weights, folder / "pytorch_model.bin")
    return folder


def views(folder: Path, weights: dict[str, Tensor]) -> Path:
    """As training in flat buffers leaves them: every tensor a piece of one."""
    flat = torch.cat([value.flatten() for value in weights.values()]).split(
        [value.numel() for value in weights.values()]
    )
    return pickled(folder, {key: part.view_as(weights[key]) for key, part in zip(weights, flat)})


def sharded_pickles(folder: Path, weights: dict[str, Tensor]) -> Path:
    where = {key: f"pytorch_model-{i % 2}.bin" for i, key in enumerate(weights)}
    for name in set(where.values()):
        kept = {key: value for key, value in weights.items() if where[key] == name}
        torch.save(kept, folder / name, _use_new_zipfile_serialization=name.endswith("0.bin"))
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    return folder


def one_file(folder: Path, weights: dict[str, Tensor]) -> Path:
    save_file(weights, folder / "anything.safetensors")
    return folder / "anything.safetensors"


def one_index(folder: Path, weights: dict[str, Tensor]) -> Path:
    return sharded(folder, weights) / "model.safetensors.index.json"


@pytest.mark.parametrize("kind", [sharded, pickled, views, sharded_pickles, one_file, one_index])
def test_every_kind_of_file(weights, kind, tmp_path):
    folder = write(tmp_path / "given", weights)
    convert_checkpoint(folder, tmp_path / "expected")
    (folder / "model.safetensors").unlink()
    convert_checkpoint(kind(folder, weights), tmp_path / "ours")
    assert_same(stored(tmp_path / "ours"), stored(tmp_path / "expected"))


def test_flat_config(weights, tmp_path):
    """Phi's words, as in the released config.json; what it leaves out is in the shapes or constant."""
    nested = json.loads((GOLDEN / "config.json").read_text())
    llm, vision = nested["llm"], nested["vision"]
    flat = {
        **llm,
        "model_type": "flashsloth",
        "mm_vision_tower": "somewhere/siglip",
        "vocab_size": 7,
        "vision_config": {name: vision[name] for name in ("num_attention_heads", "hidden_act")},
        "embq": {"dot_token_id": DOT},
    }
    convert_checkpoint(write(tmp_path / "flat", weights, flat), tmp_path / "ours")
    convert_checkpoint(write(tmp_path / "nested", weights, nested), tmp_path / "expected")
    assert_same(stored(tmp_path / "ours"), stored(tmp_path / "expected"))
    one, other = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("ours", "expected"))
    assert one.pop("query_token_id") == 50295 and other.pop("query_token_id") == 500
    assert one == other
    export_model(tmp_path / "ours", tmp_path / "back")
    assert json.loads((tmp_path / "back/config.json").read_text()) == {**flat, "vocab_size": 512}


def test_config_of_the_released_size():
    config = sizes.make_composed_config(PHI_2, {}, Path("checkpoint"))
    model = build_skeleton(config)
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert (count["compressor"], count["query_module"]) == (1_329_409, 8_084_416 + 23_040)
    assert (model.num_image_tokens(), model.num_queries, model.query_module.at) == (81, 9, (8,))
    assert (model.vision_tower.depth, model.vision_tower.image_size) == (26, 384)
    assert config.text_config.rope_parameters["partial_rotary_factor"] == 0.4
    assert config.text_config.eos_token_id == 50256 and config.query_token_id == 50295
    assert sizes.find_dot_token(PHI_2) == 764 and sizes.read_tiles(PHI_2) == 1


BROKEN = {  # what is done to the checkpoint -> what is said
    "missing": (lambda w: w.pop("model.pooling.mlp.0.bias"), "missing: model.pooling.mlp.0.bias;"),
    "missing in the tower": (
        lambda w: w.pop("model.vision_tower.vision_tower.vision_model.encoder.layers.1.mlp.fc1.bias"),
        "missing: model.vision_tower.vision_tower.vision_model.encoder.layers.1.mlp.fc1.bias;",
    ),
    "unexpected": (
        lambda w: w.update({"model.image_newline": torch.ones(2)}),
        "unexpected: model.image_newline\n",
    ),
    "a layer too many": (
        lambda w: w.update({k.replace(".9.", ".10."): v.clone() for k, v in w.items() if ".layers.9." in k}),
        "unexpected: model.layers.10.input_layernorm.bias, model.layers.10.input_layernorm.weight, "
        "model.layers.10.mlp.fc1.bias, ... (14 in all)",
    ),
    "mis-shaped": (
        lambda w: w.update({"model.mm_projector.0.weight": torch.ones(64, 95)}),
        "mis-shaped: model.mm_projector.0.weight 64x95 instead of 64x96\n",
    ),
    "no EmbQ": (lambda w: [w.pop(k) for k in [*w] if "lqformer" in k], "missing: model.lqformer."),
    "all three": (
        lambda w: w.update({"a": w.pop(QUERIES), "lm_head.bias": torch.ones(3)}),
        "missing: model.learnable_tokens.token; unexpected: a; mis-shaped: lm_head.bias 3 instead",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_does_not_fit_is_named_and_nothing_is_written(weights, what, tmp_path, capsys):
    change, message = BROKEN[what]
    broken = dict(weights)
    change(broken)
    folder = write(tmp_path / "given", broken)
    assert message in refused(capsys, "convert", folder, tmp_path / "ours")
    assert [path.name for path in tmp_path.iterdir()] == ["given"]


def test_failure_while_writing_leaves_nothing(tmp_path, capsys, monkeypatch):
    def full(_, folder):
        (Path(folder) / "half").touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("llm_adapters.modeling.FlashSlothForConditionalGeneration.save_pretrained", full)
    said = refused(capsys, "convert", GOLDEN / "weights.safetensors", tmp_path / "ours")
    assert "No space left" in said and not any(tmp_path.iterdir())


def test_buffers_that_older_transformers_saved_are_ignored(weights, tmp_path):
    extra = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        "model.vision_tower.vision_tower.vision_model.embeddings.position_ids": torch.arange(81)[None],
    }
    convert_checkpoint(write(tmp_path / "given", weights | extra), tmp_path / "ours")


def test_bad_input(weights, tmp_path, capsys):
    folder, out = write(tmp_path / "given", weights), tmp_path / "ours"
    values = json.loads((folder / "config.json").read_text())

    def says(words: str, *arguments: object) -> None:
        assert words in refused(capsys, "convert", *(arguments or (folder,)), out)

    says("no weights in it", tmp_path)
    says("no such file", folder / "none.safetensors")
    says("tiles=0: must be at least 1", "tiles=0", folder)
    (folder / "config.json").write_text("{")
    says("config.json: not JSON")
    (folder / "config.json").unlink()
    says("config.json does not say hidden_size, intermediate_size, num_hidden_layers, num_attention_heads")
    del values["vision"]["num_attention_heads"]
    (folder / "config.json").write_text(json.dumps(values))
    says("nothing says the tower's num_attention_heads")
    values["vision"]["num_attention_heads"], values["embq"]["dot_token_id"] = 4, 512
    (folder / "config.json").write_text(json.dumps(values))
    says("dot token 512 is not among the 512 embeddings")
    for field, wrong in (("sap", None), ("llm", {**values["llm"], "hidden_size": "64"})):
        (folder / "config.json").write_text(json.dumps({**values, field: wrong}))
        says("its config.json describes no model")
    key = "model.vision_tower.vision_tower.encoder.layers.0.mlp.fc1.bias"
    save_file({**weights, key: torch.ones(192)}, folder / "model.safetensors")
    says("the tower's keys have two layouts")
    (folder / "model.safetensors").write_bytes(b"not weights at all")
    says("cannot be read as weights")
    assert not out.exists()


def test_pickles_run_no_code(tmp_path, capsys):
    folder = write(tmp_path / "given", {})
    (folder / "model.safetensors").unlink()
    torch.save({"a": Path("code")}, folder / "pytorch_model.bin")
    assert "cannot be read as weights" in refused(capsys, "convert", folder, tmp_path / "ours")
    torch.save({"model": {"a": torch.ones(1)}}, folder / "pytorch_model.bin")
    assert "expected tensors by key" in refused(capsys, "convert", folder, tmp_path / "ours")


def test_what_is_there_is_not_overwritten(tmp_path, capsys):
    out = tmp_path / "ours"
    out.mkdir()
    convert_checkpoint(GOLDEN / "weights.safetensors", out)  # an empty folder will do
    for command, source in (("convert", GOLDEN / "weights.safetensors"), ("export", out)):
        assert "is there already" in refused(capsys, command, source, out)
    assert "is a model of ours already" in refused(capsys, "convert", out, tmp_path / "twice")
    assert "is no model of ours" in refused(capsys, "export", GOLDEN, tmp_path / "back")


@pytest.mark.parametrize("base", ["released", "ours"])
def test_stage_1_checkpoint_over_a_base(weights, base, tmp_path, capsys):
    """Compressor and projector alone, as they are saved in stage 1; without a config.json."""
    folder = tmp_path / "stage_1"
    folder.mkdir()
    trained = {key: value + 1 for key, value in weights.items() if key.startswith(STAGE_1)}
    torch.save(trained, folder / "mm_projector.bin")
    assert "does not say" in refused(capsys, "convert", folder, tmp_path / "ours")
    (folder / "config.json").write_text((GOLDEN / "config.json").read_text())
    said = refused(capsys, "convert", folder, tmp_path / "ours")
    assert "missing:" in said and "give what it lacks with base=DIR" in said
    (folder / "config.json").unlink()
    whole = write(tmp_path / "released", weights)
    if base == "ours":
        convert_checkpoint(whole, tmp_path / "base")
        whole = tmp_path / "base"
    notes = convert_checkpoint(folder, tmp_path / "ours", base=whole)
    assert notes[0] == f"{len(trained)} tensors from {folder}, {len(weights) - len(trained)} from {whole}"
    export_model(tmp_path / "ours", tmp_path / "back")
    assert_same(stored(tmp_path / "back"), weights | trained)


def small_tokenizer(*extra: str) -> PreTrainedTokenizerFast:
    """The byte tokenizer without its placeholders and end, and with `extra` tokens."""
    state = json.loads(byte_tokenizer().backend_tokenizer.to_str())
    drop = {IMAGE, QUERY, "</s>"}
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] not in drop]
    vocabulary = state["model"]["vocab"]
    kept = sorted((word for word in vocabulary if word not in drop), key=vocabulary.get)
    state["model"]["vocab"] = {word: i for i, word in enumerate(kept)}
    for token in state["added_tokens"]:
        token["id"] = state["model"]["vocab"][token["content"]]
    made = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), unk_token="<unk>")
    made.add_tokens(list(extra))  # as phi-2's added_tokens.json: not special
    return made


@pytest.mark.parametrize(
    "extra", [(), (tokens.LEARNABLE, "</s>"), ("a", tokens.LEARNABLE)], ids=["plain", "released", "partly"]
)
def test_tokenizer_gets_our_tokens_and_keeps_its_ids(weights, extra, tmp_path):
    folder = write(
        tmp_path / "given",
        weights,
        {**json.loads((GOLDEN / "config.json").read_text()), "model_type": "flashsloth"},
    )
    given = small_tokenizer(*extra)
    given.save_pretrained(folder)
    assert convert_checkpoint(folder, tmp_path / "ours", tiles=2) == []
    processor = AutoProcessor.from_pretrained(tmp_path / "ours")
    ours, count = processor.tokenizer.get_vocab(), len(given)
    for token, number in given.get_vocab().items():
        assert ours[QUERY if token == tokens.LEARNABLE else token] == number
    assert tokens.LEARNABLE not in ours
    parts = [{"type": "image", "image": picture()}, {"type": "text", "text": "a"}]
    chat = [{"role": "user", "content": parts}]
    inputs = processor.apply_chat_template(chat, tokenize=True, return_dict=True)
    text = processor.decode(inputs["input_ids"][0], skip_special_tokens=True)
    assert text.endswith("USER: \na  ASSISTANT:")
    if not extra:
        assert [ours[token] for token in (QUERY, "</s>", IMAGE)] == [count, count + 1, count + 2]
    assert (processor.tiles, processor.crops, processor.image_tokens, processor.num_queries) == (2, 5, 9, 9)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "ours")
    assert model.config.query_token_id == ours[QUERY] and model.config.image_token_id == ours[IMAGE]
    assert model.generation_config.eos_token_id == ours["</s>"]
    export_model(tmp_path / "ours", tmp_path / "back")
    back = tokens.load_tokenizer(tmp_path / "back").get_vocab()
    assert back[tokens.LEARNABLE] == ours[QUERY] and QUERY not in back


@torch.no_grad()
def test_converted_model_answers_in_a_batch(weights, tmp_path):
    folder = write(tmp_path / "given", weights)
    small_tokenizer(tokens.LEARNABLE, "</s>").save_pretrained(folder)
    convert_checkpoint(folder, tmp_path / "ours")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "ours")
    processor = AutoProcessor.from_pretrained(tmp_path / "ours")
    chats = [
        [
            {
                "role": "user",
                "content": [
                    {"type": "image", "image": picture(i, (90 + 40 * i, 120))},
                    {"type": "text", "text": "What" * i},
                ],
            }
        ]
        for i in (1, 2)
    ]
    batch = processor.apply_chat_template(chats, tokenize=True, return_dict=True)
    assert batch["pixel_values"].shape == (2, 1, 3, 126, 126)
    together = model.generate(**batch, max_new_tokens=4, do_sample=False)[:, batch["input_ids"].shape[1] :]
    for chat, said in zip(chats, together):
        alone = processor.apply_chat_template([chat], tokenize=True, return_dict=True)
        out = model.generate(**alone, max_new_tokens=4, do_sample=False)[0, alone["input_ids"].shape[1] :]
        assert out.tolist() == said[: len(out)].tolist()


def test_hd_is_told_by_its_config_or_by_the_command(weights, tmp_path, capsys):
    values = json.loads((GOLDEN / "config.json").read_text())
    values["prompt"]["hd_tiles"] = 5
    folder = write(tmp_path / "given", weights, values)
    small_tokenizer().save_pretrained(folder)
    for name, options, expected in (("a", (), 2), ("b", ("tiles=1",), 1), ("c", ("tiles=3",), 3)):
        assert main(["convert", str(folder), str(tmp_path / name), *options]) == 0
        assert AutoProcessor.from_pretrained(tmp_path / name).tiles == expected
    assert f"wrote {tmp_path / 'c'}" in capsys.readouterr().out


@torch.no_grad()
def test_trained_query_tokens_are_unfolded(tmp_path):
    convert_checkpoint(GOLDEN / "weights.safetensors", tmp_path / "ours")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "ours")
    model.query_module.tokens += 0.25
    model.save_pretrained(tmp_path / "ours")
    export_model(tmp_path / "ours", tmp_path / "back")
    back = stored(tmp_path / "back")
    again = back[QUERIES] + back["model.embed_tokens.weight"][DOT]
    torch.testing.assert_close(again, model.query_module.tokens.detach(), atol=1e-6, rtol=0)
    assert (
        layout.unfold_queries(torch.ones(2, 3), torch.ones(3), torch.zeros(5, 3)).tolist() == [[0.0] * 3] * 2
    )


def test_a_model_trained_here_is_exported_too(tmp_path, monkeypatch):
    monkeypatch.setattr(sizes, "DOT", 40)  # a token of the tiny vocabulary
    model = make_model(num_layers=2, at=3)
    model.save_pretrained(tmp_path / "trained")
    byte_tokenizer().save_pretrained(tmp_path / "trained")
    export_model(tmp_path / "trained", tmp_path / "released")
    convert_checkpoint(tmp_path / "released", tmp_path / "ours")
    state = AutoModelForImageTextToText.from_pretrained(tmp_path / "ours").state_dict()
    tokens_, expected = state.pop("query_module.tokens"), model.state_dict()
    torch.testing.assert_close(tokens_, expected.pop("query_module.tokens"))
    assert_same(state, expected)
    config = AutoModelForImageTextToText.from_pretrained(tmp_path / "ours").config
    assert config.query_module_knobs["at"] == 3 and config.query_token_id == model.config.query_token_id


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"llm": "llama"}, "llm=llama: the released model has phi"),
        ({"compressor": "avg_pool"}, "compressor=avg_pool: the released model has sap"),
        ({"query_module": None}, "query_module=None: the released model has embq"),
        ({"fusion": "gated"}, "embq.fusion=gated: the released model has add"),
        ({"stacked": True, "num_layers": 2}, "embq.stacked=True"),
        (
            {"compressor_knobs": {"grid_policy": "floor"}},
            "sap.grid_policy=floor: the released model has error",
        ),
        (
            {"prompt": Template(user="<|user|>")},
            r"prompt=Template\(.*user='<\|user\|>'.*: the released model has",
        ),
        ({"at": (2, 3)}, r"embq.at=\[2, 3\]: a released checkpoint has EmbQ at one decoder layer"),
    ],
)
def test_models_that_the_released_layout_cannot_hold(options, message, tmp_path):
    make_model(**options).save_pretrained(tmp_path / "trained")
    with pytest.raises(UsageError, match=message):
        export_model(tmp_path / "trained", tmp_path / "released")
    assert not (tmp_path / "released").exists()


def test_a_pruner_that_the_released_layout_cannot_hold(tmp_path):
    model = make_model()
    model.set_pruner("fastv", layer=2, ratio=0.5)
    model.save_pretrained(tmp_path / "trained")
    with pytest.raises(UsageError, match="pruner=fastv: the released model has None there"):
        export_model(tmp_path / "trained", tmp_path / "released")


@pytest.mark.parametrize("tiles", [1, 2])
def test_tiles_are_exported(tiles, tmp_path, monkeypatch):
    monkeypatch.setattr(sizes, "DOT", 40)  # a token of the tiny vocabulary
    model = make_model()
    model.save_pretrained(tmp_path / "trained")
    make_processor(model, tiles=tiles).save_pretrained(tmp_path / "trained")
    export_model(tmp_path / "trained", tmp_path / "released")
    convert_checkpoint(tmp_path / "released", tmp_path / "ours")
    assert AutoProcessor.from_pretrained(tmp_path / "ours").tiles == tiles
    # given in place of those that config.json tells of
    convert_checkpoint(tmp_path / "released", tmp_path / "other", tiles=3)
    export_model(tmp_path / "other", tmp_path / "back")
    values = json.loads((tmp_path / "back" / "config.json").read_text())
    assert sizes.read_tiles(values) == 3


def test_tiles_by_a_pictures_shape_are_not_exported(tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path / "trained")
    processor = make_processor(model, tiles=2)
    processor.layout = "anyres"
    processor.save_pretrained(tmp_path / "trained")
    with pytest.raises(UsageError, match="layout=anyres: the released model cuts all pictures alike"):
        export_model(tmp_path / "trained", tmp_path / "released")


def test_tensors_that_are_no_weights(tmp_path, capsys):
    """Whole numbers, sparse ones, a list of shards that is none."""
    for name in ("whole", "sparse", "index"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    save_file({"a": torch.zeros(2, dtype=torch.int8)}, tmp_path / "whole" / "model.safetensors")
    torch.save({"a": torch.zeros(2).to_sparse()}, tmp_path / "sparse" / "pytorch_model.bin")
    (tmp_path / "index" / "model.safetensors.index.json").write_text('{"weight_map": ["a"]}')
    for name, message in (
        ("whole", "a is torch.int8; give a checkpoint of floating-point weights"),
        ("sparse", "a is sparse or quantised"),
        ("index", "weight_map must name a file for each tensor"),
    ):
        assert message in refused(capsys, "convert", tmp_path / name, tmp_path / "ours")
