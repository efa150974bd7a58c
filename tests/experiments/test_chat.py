"""Chat over tiny random models: what it says is what generation gives, turn after turn."""

import io

import pytest
import torch
from factories import make_model, make_processor, picture

from compressors.errors import UsageError
from experiments import chat as command
from experiments.inspection.conversation import Chat, TokenPace
from llm_adapters.conversation import IMAGE, Turn


@pytest.fixture(scope="module")
def parts():
    model = make_model()
    return model, make_processor(model)


@pytest.fixture(scope="module")
def folder(parts, tmp_path_factory):
    """A sweep's folders with one saved model, and a picture."""
    out = tmp_path_factory.mktemp("runs")
    for part in parts:
        part.save_pretrained(out / "finetune" / "abc" / "model")
    for name, compressor in (("one", "sap"), ("blind", "none")):  # the blind cell last, as a sweep does
        (out / "cells" / name).mkdir(parents=True)
        (out / "cells" / name / "config.yaml").write_text(f"compressor: {compressor}\n")
        (out / "cells" / name / "stages.json").write_text('["data/x", "finetune/abc", "evaluate/y"]')
    picture().save(out / "cat.png")
    return out


def test_an_answer_is_what_generate_gives(parts):
    """Also in the second turn, which has the first before it."""
    model, processor = parts
    chat, turns = Chat(model, processor, picture(), 6), []
    for question in ("What is this?", "And that?"):
        written = []
        pace = chat.ask_question(question, written.append)
        turns.append({"role": "user", "content": [{"type": "text", "text": question}]})
        if len(turns) == 1:
            turns[0]["content"].insert(0, {"type": "image", "image": picture()})
        inputs = processor.apply_chat_template(turns, tokenize=True, return_dict=True, return_tensors="pt")
        with torch.inference_mode():
            out = model.generate(**inputs, do_sample=False, max_new_tokens=6)
        new = out[0, inputs["input_ids"].shape[1] :]
        said = processor.tokenizer.decode(new, skip_special_tokens=True).strip()
        assert "".join(written).strip() == said and len(pace.token_times) == len(new)
        turns.append({"role": "assistant", "content": [{"type": "text", "text": said}]})
    assert [turn.question for turn in chat.turns] == ["What is this?", "And that?"]


def test_the_picture_is_seen_once(parts):
    model, processor = parts
    chat, seen = Chat(model, processor, picture(), 3), []
    hook = model.compressor.register_forward_hook(lambda *call: seen.append(call))
    try:
        for question in ("What is this?", "And that?", "Where?"):
            chat.ask_question(question, lambda _: None)
    finally:
        hook.remove()
    assert len(seen) == 1


def test_every_turn_has_its_query_slot_and_the_picture_comes_once(parts):
    model, processor = parts
    chat = Chat(model, processor, picture(), 6)
    chat.turns = [Turn("What is this?", "A dog."), Turn("And that?", "A cat.")]
    batch = chat.make_inputs("Where?")
    assert (batch["input_ids"] == processor.query_token_id).sum() == 3 * model.num_queries
    assert (batch["input_ids"] == processor.image_token_id).sum() == processor.image_tokens
    queries = batch["turns"][batch["input_ids"] == processor.query_token_id]
    assert queries.unique_consecutive().tolist() == [1, 2, 3]


def test_the_first_turns_are_forgotten_when_it_gets_long(parts):
    model, processor = parts
    room = model.config.text_config.max_position_embeddings
    chat = Chat(model, processor, picture(), 6)
    chat.turns = [Turn(f"What is {'a ' * (room // 8)}this {i}?", "A dog.") for i in range(9)]
    batch = chat.make_inputs("Where?")
    assert 1 <= len(chat.turns) < 9 and chat.turns[-1].question.endswith("this 8?")
    assert batch["input_ids"].shape[1] + 6 <= room and batch["image_turn"].tolist() == [[1]]


def test_a_question_that_is_too_long_alone_is_refused(parts):
    chat = Chat(*parts, picture(), 6)
    chat.turns = [Turn("What is this?", "A dog.")]
    with pytest.raises(UsageError, match="the model has positions for 1024; ask a shorter question"):
        chat.ask_question("What is this? " * 400, lambda _: None)
    assert len(chat.turns) == 1


def test_a_model_that_was_saved_with_beams_answers_greedily(parts, monkeypatch):
    written = []
    Chat(*parts, picture(), 6).ask_question("What is this?", written.append)
    monkeypatch.setattr(parts[0].generation_config, "num_beams", 2)
    again = []
    Chat(*parts, picture(), 6).ask_question("What is this?", again.append)
    assert again == written


@pytest.mark.parametrize(("words", "marker"), [("an <image> tag", IMAGE), ("it ends in </s> .", "</s>")])
def test_an_answer_that_spells_a_marker_is_forgotten(parts, monkeypatch, capsys, words, marker):
    """Else every later question would be refused for it."""
    chat = Chat(*parts, picture(), 2)
    chat.ask_question("What is this?", lambda _: None)
    kept = list(chat.turns)

    def spell_marker(*_, streamer, **__):
        streamer.on_finalized_text(words)

    with monkeypatch.context() as patch:
        patch.setattr(chat.keeper, "generate", spell_marker)
        command.stream_answer(chat, "What markup is it?")
    out, err = capsys.readouterr()
    assert out == f"{words}\n" and chat.turns == kept
    assert f"without this turn: its answer contains {marker!r}" in err
    command.stream_answer(chat, "And now?")
    assert chat.turns[-1].question == "And now?" and "without this turn" not in capsys.readouterr().err


def test_pace():
    times = iter([0.0, 0.25, 0.3, 0.35])
    pace = TokenPace(lambda: next(times))
    assert str(pace) == "no token"
    pace.note_token()
    assert str(pace) == "TTFT 250 ms, 1 tokens"
    pace.note_token(), pace.note_token()
    assert str(pace) == "TTFT 250 ms, 20.0 tokens/s, 3 tokens"


@pytest.mark.parametrize("where", ["cells/one", "finetune/abc", "finetune/abc/model"])
def test_the_command_answers_one_question(folder, where, capsys):
    arguments = [str(folder / "cat.png"), "What is this?", f"model={folder / where}", "max_new_tokens=4"]
    assert command.main(arguments) == 0
    out, err = capsys.readouterr()
    assert out.endswith("\n") and "[TTFT " in err
    assert f"{folder / where}: sap + embq, 4 visual tokens, 3 query tokens a turn" in err


def test_a_session_goes_on_after_a_bad_question(folder, capsys):
    source = io.StringIO(f"What is this?\nIs {IMAGE} it?\nAnd that?\n\nnever read\n")
    arguments = [str(folder / "cat.png"), f"model={folder / 'cells/one'}", "max_new_tokens=4"]
    assert command.main(arguments, source) == 0
    out, err = capsys.readouterr()
    assert err.count("[TTFT") == 2 and err.count("error: ") == 1 and source.readline() == "never read\n"


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        ([], '["QUESTION"] [model=CELL] [out=runs] [max_new_tokens=128], found nothing'),
        (["cat.png", "a", "b"], "found 3 words (cat.png, a, b)"),
        (["cat.png", "modle=x"], "modle=x: no setting of this command; did you mean 'model'?"),
        (["cat.png", "--model", "x"], "--model: settings are spelled KEY=VALUE; write model=x"),
        (["cat.png", "max_new_tokens=many"], "max_new_tokens='many': expected int, got str"),
        (["cat.png", "max_new_tokens=0"], "max_new_tokens=0: must be at least 1"),
        (["nowhere.png", "hi", "model={}/cells/one"], "nowhere.png: no such picture"),
        (["{}/cells/one/stages.json", "hi", "model={}/cells/one"], "stages.json: not a picture"),
        (
            ["{}/cat.png", "hi", "model={}/nowhere"],
            "nowhere: neither a finished cell below runs",
        ),
        (["{}/cat.png", "hi", "model={}/cells"], "no model here (no config.json)"),
    ],
)
def test_bad_input_is_one_line(folder, arguments, wrong, capsys):
    assert command.main([word.replace("{}", str(folder)) for word in arguments]) == 2
    out, err = capsys.readouterr()
    assert wrong in err and err.startswith("error: ") and err.count("\n") == 1 and not out


def test_other_and_damaged_models(folder, tmp_path, capsys):
    ask = [str(folder / "cat.png"), "hi", f"model={tmp_path}"]
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    assert command.main(ask) == 2 and "a model of type llava, not slothkit" in capsys.readouterr().err
    (tmp_path / "config.json").write_text("{")
    assert command.main(ask) == 2 and "not JSON" in capsys.readouterr().err
    for path in (folder / "finetune/abc/model").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    assert command.main(ask) == 2
    err = capsys.readouterr().err
    assert f"{tmp_path}: cannot be loaded" in err and err.count("\n") == 1


def test_questions_may_look_like_settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "seed=0.png").touch()
    line = command.COMMAND.read(["seed=0.png", "is 1+1=2 ?", "model=a=b"])
    assert line.words == ["seed=0.png", "is 1+1=2 ?"] and line.options.model.name == "a=b"


def test_without_a_model_the_cell_that_finished_last_is_asked(folder, capsys, monkeypatch):
    (folder / "runs").symlink_to(folder)
    monkeypatch.chdir(folder)
    assert command.main(["cat.png", "What is this?", "max_new_tokens=2"]) == 0
    assert "runs/cells/one: sap" in capsys.readouterr().err
    monkeypatch.chdir(folder / "finetune")
    assert command.main(["../cat.png", "What is this?", "max_new_tokens=2", "out=.."]) == 0
    assert "../cells/one: sap" in capsys.readouterr().err
    assert command.main(["../cat.png", "What is this?"]) == 2
    assert "no finished cell below runs" in capsys.readouterr().err


def test_help(capsys):
    assert command.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"{name}=" in out for name in ("model", "max_new_tokens"))


def test_a_blind_model_says_so(parts):
    model, processor = parts
    blind = make_processor(model)
    blind.image_tokens = 0
    chat = Chat(model, blind, picture(), 2)
    assert "does not see the picture" in command.describe_chat_model(chat)
    assert "pixel_values" not in chat.make_inputs("What is this?")
