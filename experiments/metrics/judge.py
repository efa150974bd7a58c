"""A judge: a chat model that reads question, reference answer and given answer, and says how right the last
one is, from 0 to 1."""

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
)

from compressors.errors import UsageError, quote, shorten_reason
from connectors.pretrained import check_weight_files, load_model, load_pretrained
from experiments.config.devices import pick_device
from experiments.config.metric_names import JUDGE_PROMPT, fill_prompt
from experiments.config.schema_sections import JudgeSettings, TrainerSettings
from experiments.config.trained import find_judge_folder
from experiments.metrics.mean import MeanScore, list_accepted_answers
from llm_adapters.conversation import IMAGE

ADVICE = "give a chat model's folder or hub id"
# a number from 0 to 1 that is all of a verdict's last line, perhaps behind "Score:"
LAST_LINE = re.compile(r"(?:score\s*:\s*)?(0|1|0?\.\d+|1\.0+)", re.IGNORECASE)

JudgedTruth = tuple[str, Sequence[str]]  # a question, and its accepted answers


class Verdict(NamedTuple):
    """What a judge has said of an answer. `score`: None where it names none."""

    text: str
    score: float | None


class Judge(MeanScore):
    """Mean of the scores that a chat model gives, by greedy decoding. A verdict without a score counts as 0.

    model           its folder, or hub id[@REVISION]
    prompt          what it is asked, with {question}, {reference} and {answer}; None: JUDGE_PROMPT
    max_new_tokens  of a verdict
    batch_size      answers at once
    device          where it runs; None: on a GPU where there is one
    """

    def __init__(
        self,
        model: str | None = None,
        prompt: str | None = None,
        max_new_tokens: int = 16,
        batch_size: int = 16,
        device: torch.device | None = None,
    ):
        super().__init__()
        self.source = model
        self.prompt = prompt or JUDGE_PROMPT
        self.max_new_tokens = max_new_tokens
        self.batch_size = batch_size
        self.llm_device = device or pick_device(TrainerSettings())
        self.loaded: tuple[Any, Any] | None = None  # model and tokenizer, from the first question on
        self.verdicts: dict[str, Verdict] = {}  # by what was asked: nothing is asked twice

    def read_truth(self, answer: str | Sequence[str], question: str) -> JudgedTruth:
        return question.replace(IMAGE, "").strip(), list_accepted_answers(answer)

    def score(self, said: str, truth: JudgedTruth) -> float:
        [verdict] = self.judge_answers([said], [truth])
        return verdict.score or 0.0

    def judge_answers(self, said: Sequence[str], truths: Sequence[JudgedTruth]) -> list[Verdict]:
        """The verdicts on answers, in order. UsageError for a judge that cannot be asked."""
        prompts: list[str] = []
        for answer, (question, references) in zip(said, truths, strict=True):
            prompts.append(fill_prompt(self.prompt, question, " / ".join(references), answer))
        new_prompts = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.verdicts]
        new_prompts.sort(key=len)  # those of like length together, so that little is padded
        for start in range(0, len(new_prompts), self.batch_size):
            batch = new_prompts[start : start + self.batch_size]
            self.verdicts.update(zip(batch, self.ask(batch)))
        return [self.verdicts[prompt] for prompt in prompts]

    @torch.inference_mode()
    def ask(self, prompts: Sequence[str]) -> Iterator[Verdict]:
        """What the model says to each prompt."""
        if self.loaded is None:
            self.loaded = load_judge(self.source, self.llm_device)
        model, tokenizer = self.loaded
        texts = [render_prompt(tokenizer, prompt, self.source) for prompt in prompts]
        inputs = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt").to(
            model.device
        )
        length = inputs["input_ids"].shape[1]
        check_positions(model.config, length, self.max_new_tokens, self.source)
        ids = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=self.max_new_tokens,
        )[:, length:]
        ends = torch.tensor(model.generation_config.eos_token_id, device=ids.device)
        has_end = torch.isin(ids, ends).any(1).tolist()
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        for text, is_whole in zip(texts, has_end):
            # the number of a verdict that was cut may have had more digits
            yield Verdict(text.strip(), read_score(text) if is_whole else None)


def read_score(verdict: str) -> float | None:
    """The score of a verdict: a number from 0 to 1 alone on its last line, perhaps behind "Score:"; None for
    anything else. What a model thinks before it answers is none of it."""
    lines = verdict.rpartition("</think>")[2].strip().splitlines()
    match = LAST_LINE.fullmatch(lines[-1].strip()) if lines else None
    return float(match[1]) if match else None


def load_judge(source: str | None, device: torch.device) -> tuple[Any, Any]:
    """(model, tokenizer) of a judge, in eval mode: in bfloat16 on a GPU, else in float32 on the CPU."""
    folder, where = locate_judge(source)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = load_model(AutoModelForCausalLM, folder, where, ADVICE, dtype=dtype).eval()
    model.to(device)
    tokenizer = load_chat_tokenizer(folder, where)
    # greedy, whatever temperature or penalty it was saved with
    model.generation_config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        eos_token_id=list_end_tokens(model.generation_config, tokenizer),
        pad_token_id=tokenizer.pad_token_id,
    )
    return model, tokenizer


def list_end_tokens(generation_config: Any, tokenizer: Any) -> list[int]:
    """What ends a verdict: the model's ends, and its tokenizer's, which a chat model may have beside them."""
    ends = generation_config.eos_token_id
    if ends is None:
        ends = []
    elif isinstance(ends, int):
        ends = [ends]
    return [*ends, tokenizer.eos_token_id]


def locate_judge(source: str | None) -> tuple[str, str]:
    """A judge's folder, and how errors begin."""
    if source is None:
        raise UsageError(f"evaluate.metric=judge: which one? judge.model is null; {ADVICE} as judge.model=")
    return str(find_judge_folder(source)), f"judge.model={quote(source)}"


def load_chat_tokenizer(folder: str, where: str) -> Any:
    """A tokenizer that pads on the left. UsageError for one without a chat template, or without an end."""
    tokenizer = load_pretrained(AutoTokenizer, folder, where, ADVICE)
    if not tokenizer.chat_template:
        raise UsageError(
            f"{where}: its tokenizer has no chat template; give the model that was tuned to chat (-Instruct, "
            "-it)"
        )
    if tokenizer.eos_token_id is None:
        raise UsageError(f"{where}: its tokenizer has no end token; {ADVICE}")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"  # a verdict goes on from the last column
    return tokenizer


def render_prompt(tokenizer: Any, prompt: str, source: str | None) -> str:
    """A user's message as the chat template has it, up to where the judge answers."""
    messages = [{"role": "user", "content": prompt}]
    try:
        # models that can think before they answer are asked not to; templates of others do not read it
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
    except Exception as error:  # of whatever the template does
        raise UsageError(
            f"judge.model={quote(source)}: its chat template fails: {shorten_reason(error)}; {ADVICE}"
        ) from error
    return str(text)


def check_positions(config: Any, prompt_tokens: int, verdict_tokens: int, source: str | None) -> None:
    """UsageError for a prompt and a verdict that are longer than a judge reads."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and prompt_tokens + verdict_tokens > positions:
        raise UsageError(
            f"judge.model={quote(source)}: a prompt of {prompt_tokens} tokens and a verdict of "
            f"{verdict_tokens} do not fit into its {positions} positions; shorten judge.prompt, or lower "
            "judge.max_new_tokens"
        )


def check_judge(settings: JudgeSettings) -> None:
    """UsageError for a judge that could not be loaded or asked. No weights are read."""
    folder, where = locate_judge(settings.model)
    config = load_pretrained(AutoConfig, folder, where, ADVICE)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UsageError(f"{where}: a model of type {config.model_type}, no language model; {ADVICE}")
    check_weight_files(folder, where)
    tokenizer = load_chat_tokenizer(folder, where)
    # without what is judged, which is a few words as a rule
    prompt = fill_prompt(settings.prompt or JUDGE_PROMPT, "", "", "")
    text = render_prompt(tokenizer, prompt, settings.model)
    length = len(tokenizer(text, add_special_tokens=False)["input_ids"])
    check_positions(config, length, settings.max_new_tokens, settings.model)
