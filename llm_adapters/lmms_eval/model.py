"""A model as lmms-eval calls it: a saved one, or one of transformers with parts put into it."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from lmms_eval.api.model import lmms
from lmms_eval.utils import simple_parse_args_string
from tqdm import tqdm

from compressors.checks import check_at_least
from compressors.errors import UsageError
from compressors.registry import conform
from llm_adapters.adapter import find_position_limit
from llm_adapters.chat.video_files import VideoClip, find_video_settings
from llm_adapters.evaluated_model import (
    NOT_NAMED,
    list_settings,
    load_evaluated_model,
    read_device,
    read_dtype,
    read_parts,
    reads_videos,
)
from llm_adapters.kv_cache import CACHE_KINDS, StaticCaches, pick_caches
from llm_adapters.lmms_eval.requests import (
    Medium,
    batch_requests,
    collect_media,
    cut_answer,
    find_clips,
    identify_pictures,
    make_message,
    read_generation_settings,
    show_frames_as_images,
    sort_out_rows,
)
from llm_adapters.modeling import FlashSlothForConditionalGeneration
from llm_adapters.shared_prefix import LEAST_SHARED_TOKENS, PictureKeeper, can_share_prefix


class SlothKit(lmms):
    """`--model slothkit --model_args pretrained=DIR`.

    pretrained   OUT/cells/CELL, OUT/finetune/KEY, or a folder that save_pretrained wrote, or a repository of
                 the hub: of ours, of another MLLM with a compressor attached (`llm_adapters.reuse`), or, with
                 `compressor` or `prune`, of an MLLM as it is
    revision     of a repository: a branch, a tag or a commit
    batch_size   questions of a batch
    device       as PyTorch names it; None: a GPU if there is one. `accelerate launch` gives each process its
                 own
    dtype        float32, bfloat16 or float16; None: bfloat16 on a GPU, else float32
    cache        of a composed model: dynamic, static or auto (`llm_adapters.kv_cache`)
    compressor   NAME of one without weights that is put into an MLLM; its knobs as NAME.KNOB
    text_encoder     of a compressor that compares patches with the question, as in `reuse.attach`
    prune        NAME of a pruner inside the LLM, its knobs as NAME.KNOB; null: none
    max_num_frames   of a video, evenly spaced; images one after another where a model reads no videos
    """

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 1,
        device: str | None = None,
        dtype: str | None = None,
        revision: str | None = None,
        cache: str = "auto",
        max_num_frames: int = 8,
        compressor: str | None = NOT_NAMED,
        prune: str | None = NOT_NAMED,
        text_encoder: str | None = None,
        **knobs: Any,
    ):
        super().__init__()
        self.max_num_frames = conform(max_num_frames, int, "max_num_frames")
        check_at_least(0, max_num_frames=self.max_num_frames)
        if not str(batch_size).isdigit() or not int(batch_size):
            raise UsageError(f"batch_size={batch_size}: expected a number of at least 1")
        torch_dtype = read_dtype(dtype)
        if cache not in CACHE_KINDS:
            raise UsageError(f"cache={cache}: choose one of {', '.join(CACHE_KINDS)}")
        self.batch_size = int(batch_size)
        self.accelerator = Accelerator()
        self.device = read_device(device)
        if self.accelerator.num_processes > 1:  # each process has the device that accelerate gives it
            self.device = self.accelerator.device
        folder = str(pretrained)
        parts = read_parts(compressor, prune, text_encoder, knobs, list_settings(type(self)))
        name_of_revision = None if revision is None else str(revision)  # the harness reads a number as one
        self.model, self.processor = load_evaluated_model(
            folder, parts, self.device, torch_dtype, name_of_revision
        )
        self.processor.tokenizer.padding_side = "left"
        self.position_limit = find_position_limit(self.model.config)
        self.has_warned = False
        self.caches: StaticCaches | None = None  # None: a cache grows with each answer
        self.keeper: PictureKeeper | None = None  # where questions about a picture share its prefix
        is_composed = isinstance(self.model, FlashSlothForConditionalGeneration)
        self.reads_videos = reads_videos(self.model, self.processor)
        if is_composed:
            self.caches = pick_caches(cache, self.model)
        elif cache == "static":
            raise UsageError(f"cache=static: {folder} is no composed model; leave cache out")
        if (
            is_composed
            and self.processor.image_tokens >= LEAST_SHARED_TOKENS
            and can_share_prefix(self.model)
        ):
            self.keeper = PictureKeeper(self.model, self.processor, self.caches)

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict | None = None) -> "SlothKit":
        """As the harness's, but --model_args wins over --batch_size and --device."""
        arguments = {name: value for name, value in (additional_config or {}).items() if value is not None}
        return cls(**{**arguments, **simple_parse_args_string(arg_string)})

    def generate_until(self, requests: Sequence) -> list[str]:
        """An answer to each request, in their order."""
        request_args, answers = [request.args for request in requests], [""] * len(requests)
        with tqdm(total=len(request_args), disable=self.rank != 0, desc="Model Responding") as bar:
            for numbers in batch_requests(request_args, self.batch_size, self.keeper is not None):
                for number, answer in zip(
                    numbers, self.answers([request_args[number] for number in numbers])
                ):
                    answers[number] = answer
                bar.update(len(numbers))
        return answers

    def answers(self, asked: Sequence[tuple]) -> list[str]:
        """Answers to (context, settings, doc_to_visual, document, task, split)s with the same settings."""
        rows = []
        for context, _, doc_to_visual, document, task, split in asked:
            visuals = doc_to_visual(self.task_dict[task][split][document])
            media = collect_media(visuals, task, self.max_num_frames)
            rows.append((context, media if self.reads_videos else show_frames_as_images(media)))
        answers = [""] * len(asked)
        for numbers in sort_out_rows(rows):
            group = [rows[number] for number in numbers]
            for number, answer in zip(numbers, self.generate(group, asked[0][1])):
                answers[number] = answer
        return answers

    @torch.inference_mode()
    def generate(self, rows: Sequence[tuple[str, Sequence[Medium]]], settings: Mapping) -> list[str]:
        """The answers to questions (context, media), padded on the left."""
        chats = []
        clips: list[VideoClip] = []
        for context, media in rows:
            chats.append([make_message(context, media)])
            clips += find_clips(media)
        inputs = self.processor.apply_chat_template(
            chats,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
            processor_kwargs={"padding": True, **find_video_settings(clips)},
        ).to(self.device, self.model.dtype)
        options = read_generation_settings(settings)
        self.warn_of_length(inputs["input_ids"].shape[1] + options["max_new_tokens"])
        if self.keeper is None:
            if self.caches is not None:
                options |= self.caches.lend_options(inputs["input_ids"], options)
            out = self.model.generate(**inputs, **options)
            answer_ids = out[:, inputs["input_ids"].shape[1] :]
        else:
            pictures = [identify_pictures(media) for _, media in rows]
            answer_ids = self.keeper.generate(inputs, pictures, **options)
        texts = self.processor.tokenizer.batch_decode(answer_ids, skip_special_tokens=True)
        return [cut_answer(text, settings.get("until")) for text in texts]

    def warn_of_length(self, tokens: int) -> None:
        """Say once that a prompt and its answer are longer than the LLM was made for, which no model refuses
        by itself."""
        if self.position_limit is None or tokens <= self.position_limit or self.has_warned:
            return
        self.has_warned = True
        warnings.warn(
            f"a prompt and its answer have {tokens} tokens, and the LLM has positions for "
            f"{self.position_limit}: answers may be poor; lower max_num_frames, or compress more",
            stacklevel=2,
        )

    def clean(self) -> None:
        """Let go of the model, also where it is held beside its own attribute."""
        self.keeper = None
        self.caches = None
        super().clean()

    def loglikelihood(self, requests: Sequence) -> list[tuple[float, bool]]:
        raise NotImplementedError(
            f"{requests[0].task_name}: slothkit answers in words; take the task that "
            "generates, such as seedbench instead of seedbench_ppl"
        )

    def generate_until_multi_round(self, requests: Sequence) -> list[str]:
        raise NotImplementedError(f"{requests[0].task_name}: slothkit answers one question at a time")
