"""`evaluate.metric=judge`: a chat model reads question, reference and answer, and gives a score."""

import json
from collections import Counter

import pytest
import torch
from factories import byte_tokenizer, make_llm
from fakes import config, stages
from small_runs import align, make_config, run, write_backbones, write_data
from transformers import LlamaConfig, LlamaForCausalLM

from compressors.errors import UsageError
from experiments.config.metric_names import JUDGE_PROMPT, collect_metric_options
from experiments.config.schema_sections import JudgeSettings
from experiments.data.llava import Sample
from experiments.metrics.judge import Judge, check_judge, read_score
from experiments.metrics.scoring import QuestionScorer
from experiments.runtime.progress import Reporter
from experiments.stages import evaluate
from experiments.store.results import ScoreGroup, ScoreRow
from experiments.sweep.score_table import make_verdict_notes
from llm_adapters.conversation import Turn

CHAT = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
PROMPT = "{question}|{reference}|{answer}"
# what a judge says behind the last letter of an answer: 1, .5, nothing at all, 7 without an end
NEXT_TOKENS = {"x": "1", "1": "</s>", "q": ".", ".": "5", "5": "</s>", "w": "</s>", "z": "7", "7": "7"}
SAID = ["fox", "q", "w", "z"]


def save_judge(folder, model, chat=CHAT):
    tokenizer = byte_tokenizer()
    model.save_pretrained(folder)
    tokenizer.chat_template = chat
    tokenizer.save_pretrained(folder)
    tokenizer.chat_template = None  # it is shared
    return folder


@pytest.fixture(scope="session")
def judge(tmp_path_factory):
    """A Llama whose weights make it follow NEXT_TOKENS."""
    tokenizer = byte_tokenizer()
    size = len(tokenizer) + len(tokenizer) % 2
    sizes = {"vocab_size": size, "hidden_size": size, "intermediate_size": 8, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=1, max_position_embeddings=128))
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(size))
        model.lm_head.weight.zero_()
        for token, following in NEXT_TOKENS.items():
            ids = tokenizer.convert_tokens_to_ids([following, token])
            model.lm_head.weight[ids[0], ids[1]] = 1.0
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    # a judge is greedy whatever it was saved with
    model.generation_config.do_sample, model.generation_config.temperature = True, 9.0
    return save_judge(tmp_path_factory.mktemp("judge"), model)


def ask(answer="a fox", family="recognition", number=0):
    return Sample(f"s#{number}", (), (Turn("<image>\nwhat is it ?", answer),), (family,))


@pytest.mark.parametrize(
    ("verdict", "score"),
    [
        ("1", 1.0),
        ("0", 0.0),
        (" 0.75\n", 0.75),
        (".5", 0.5),
        ("1.00", 1.0),
        ("Score: 0.3", 0.3),
        ("It says the same.\nscore:1", 1.0),
        ("<think>\nperhaps 0\n</think>0.5", 0.5),
        ("<think>\nperhaps\n0\n</think>", None),
        ("", None),
        ("1.5", None),
        ("-1", None),
        ("7", None),
        ("nan", None),
        ("0.5 or 0.6", None),
        ("The score is 1", None),
        ("1\nor so", None),
        ("１", None),
    ],
)
def test_a_verdict_s_last_line_is_the_score_or_there_is_none(verdict, score):
    assert read_score(verdict) == score


def test_scores_and_verdicts(judge):
    options = {"judge": {"model": str(judge), "prompt": PROMPT, "max_new_tokens": 4, "batch_size": 3}}
    scorer = QuestionScorer({"recognition": "judge"}, options)
    questions = [*(ask(number=number) for number in range(4)), ask(family="other")]
    scored = scorer.score_answers([*SAID, "The fox."], questions)
    assert [answer.score for answer in scored] == [1.0, 0.5, 0.0, 0.0, 1.0]
    assert [answer.verdict for answer in scored] == ["1", ".5", "", "7777", None]
    assert [answer.is_readable for answer in scored] == [True, True, False, False, True]
    assert scorer.score_answer("q", questions[0]) == 0.5
    # whatever stands in the same batch
    metric = Judge(**{**options["judge"], "batch_size": 1})
    metric.update(SAID, [metric.read_truth("a fox", "<image>\nwhat is it ?")] * 4)
    assert metric.compute() == pytest.approx(1.5 / 4)
    assert list(metric.verdicts) == [f"what is it ?|a fox|{text}" for text in SAID]
    assert metric.read_truth(["a", "b"], "why ?") == ("why ?", ["a", "b"])


def test_a_verdict_ends_where_the_chat_template_ends_it(judge, tmp_path):
    """Whatever else the model itself ends with."""
    model = LlamaForCausalLM.from_pretrained(judge)
    model.generation_config.eos_token_id = byte_tokenizer().convert_tokens_to_ids("z")
    folder = save_judge(tmp_path / "ends", model)
    metric = Judge(str(folder), prompt=PROMPT, max_new_tokens=4)
    assert [verdict.score for verdict in metric.judge_answers(["fox", "q"], [("", ["fox"])] * 2)] == [
        1.0,
        0.5,
    ]


def test_the_usual_prompt_has_all_that_is_judged(judge):
    metric = Judge(str(judge), max_new_tokens=1)
    with pytest.raises(UsageError, match="judge.model=.*a prompt of .* do not fit into its 128 positions"):
        metric.judge_answers(["an owl"], [("what ?", ["a fox", "fox"])])
    assert all(f"{{{name}}}" in JUDGE_PROMPT for name in ("question", "reference", "answer"))


def test_an_evaluation_with_a_random_judge_of_one_family(tmp_path):
    write_backbones(tmp_path)
    write_data(tmp_path, 6)
    records = json.loads((tmp_path / "data.json").read_text())
    for record in records[:4]:
        record["families"] = ["reading"] * (len(record["conversations"]) // 2)
    (tmp_path / "data.json").write_text(json.dumps(records))
    cell = make_config(tmp_path)
    cell.finetune.max_steps = 1
    cell.data.test = [str(tmp_path / "data.json")]
    cell.evaluate.metric = {"reading": "judge"}
    cell.judge.model = str(save_judge(tmp_path / "random", make_llm("llama", seed=3)))
    cell.judge.prompt, cell.judge.max_new_tokens = PROMPT, 3
    cell.evaluate.max_new_tokens = 4
    inputs = align(cell, tmp_path)
    run("finetune", cell, inputs, tmp_path / "tuned")
    outs = []
    for number in range(2):
        outs.append(tmp_path / f"out{number}")
        outs[-1].mkdir()
        evaluate.run(cell, {"finetune": tmp_path / "tuned"}, outs[-1], Reporter())
    first, second = [(out / "predictions.jsonl").read_text() for out in outs]
    assert first == second
    rows = [json.loads(line) for line in first.splitlines()]
    metrics = json.loads((outs[0] / "metrics.json").read_text())
    judged = [row for row in rows if row["family"] == "reading"]
    assert 0 < len(judged) < len(rows)
    assert all(("verdict" in row) == (row in judged) for row in rows)
    unreadable = [row for row in judged if read_score(row["verdict"]) is None]
    assert unreadable and all(row["score"] == 0 for row in unreadable)
    assert metrics["unreadable_verdicts"] == len(unreadable) and metrics["verdicts"] == len(judged)
    assert metrics["metric"] == {"default": "exact", "reading": "judge"}
    assert metrics["chance"]["n"] == len(rows)
    [note] = make_verdict_notes(ScoreGroup("", [ScoreRow("sap", [metrics])]))
    assert note.endswith(f"counted as 0: sap {len(unreadable)} of {len(judged)}.")


def test_the_judge_and_its_prompt_are_in_the_evaluation_s_key(judge, tmp_path):
    settings = ["evaluate.metric=judge", f"judge.model={judge}"]
    first = stages(*settings)
    others = [stages(*settings, f"judge.prompt={PROMPT}"), stages(*settings, "judge.max_new_tokens=9")]
    assert len({planned["evaluate"].key for planned in (first, *others)}) == 3
    assert stages(*settings, f"judge.prompt='{JUDGE_PROMPT}'")["evaluate"].key == first["evaluate"].key
    assert len({planned["finetune"].key for planned in (first, *others)}) == 1
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in judge.iterdir():
        (moved / path.name).write_bytes(path.read_bytes())
    settings[1] = f"judge.model={moved}"
    assert stages(*settings)["evaluate"].key == first["evaluate"].key
    [weights] = moved.glob("*.safetensors")
    keys = {first["evaluate"].key}
    for number in range(2):
        state = {
            name: value + number
            for name, value in LlamaForCausalLM.from_pretrained(judge).state_dict().items()
        }
        torch.save(state, moved / "pytorch_model.bin")
        weights.unlink(missing_ok=True)
        keys.add(stages(*settings)["evaluate"].key)
    assert len(keys) == 3  # of weights in the older form, too
    assert collect_metric_options(config(*settings))["judge"]["model"] == str(moved)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["evaluate.metric=judge"], "which judge\\? give judge.model=FOLDER"),
        (["evaluate.metric={reading: judge}"], "which judge"),
        (["evaluate.metric=judge", "judge.model=./none"], "judge.model=./none: no such folder"),
        (
            ["evaluate.metric=judge", "judge.model=x", "judge.prompt='{answr}'"],
            "{answr}; did you mean 'answer'",
        ),
        (["evaluate.metric=judge", "judge.model=x", "judge.prompt='{answer}'"], "does not have {reference}"),
        (["judge.max_new_tokens=0"], "must be at least 1"),
    ],
)
def test_what_is_no_judge_is_refused_before_work_starts(settings, message):
    with pytest.raises(UsageError, match=message):
        stages(*settings)


def test_a_model_that_cannot_judge_is_refused_without_its_weights(judge, tmp_path):
    check_judge(JudgeSettings(str(judge), PROMPT))
    with pytest.raises(UsageError, match="do not fit into its 128 positions; .* lower judge.max_new_tokens"):
        check_judge(JudgeSettings(str(judge), PROMPT, max_new_tokens=128))
    plain = save_judge(tmp_path / "plain", make_llm("llama"), chat=None)
    with pytest.raises(UsageError, match=r"plain: its tokenizer has no chat template; give .*-Instruct"):
        check_judge(JudgeSettings(str(plain), PROMPT))
    broken = save_judge(tmp_path / "broken", make_llm("llama"), chat="{{ raise_exception('no') }}")
    with pytest.raises(UsageError, match="its chat template fails"):
        check_judge(JudgeSettings(str(broken), PROMPT))
    for path in broken.glob("*.safetensors"):
        path.unlink()
    with pytest.raises(UsageError, match="no weights in the folder"):
        check_judge(JudgeSettings(str(broken), PROMPT))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="judge.model=.*empty: cannot be loaded"):
        check_judge(JudgeSettings(str(tmp_path / "empty"), PROMPT))
    counted = Counter(path.suffix for path in judge.iterdir())
    assert counted[".safetensors"] == 1
