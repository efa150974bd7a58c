"""What processors' classes whose placeholders follow a compressor have in common. By itself it is the kind
whose images all have as many tokens, which the class keeps as an attribute."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

from transformers import PreTrainedTokenizerBase, ProcessorMixin

from compressors.base import Compressor
from compressors.errors import UsageError
from llm_adapters.reuse.marking import add_markers, check_types, repeat_query_marker
from llm_adapters.reuse.saving import write_record
from llm_adapters.reuse.wrapping import bind_arguments


@dataclass
class AttachedState:
    """A processor's class, tokenizer and counts before; the compressor, without its weights; what tells the
    model that it belongs to."""

    plain: type
    tokenizer: PreTrainedTokenizerBase
    counts: dict[str, Any]
    compressor: Compressor
    num_queries: int
    pair: str
    grid: tuple[int, int] | None
    patch_size: tuple[int, int] | None
    own_rate: int
    record: dict[str, Any]


if TYPE_CHECKING:
    ProcessorBase = ProcessorMixin
else:
    # the classes below stand before a family's processor, which is the ProcessorMixin (`make_class`)
    ProcessorBase = object


class AttachedProcessor(ProcessorBase):
    """Stands before a processor's own class. `attached` is set on the instance."""

    attached: AttachedState
    tokenizer: PreTrainedTokenizerBase
    kind: ClassVar[str] = "fixed"
    sets_counts: ClassVar[bool] = True  # as attributes; others ask the compressor

    def __reduce__(self) -> tuple[Any, ...]:
        # the class was made at run time: a pickle cannot name it, but what it was made of
        counter, plain = type(self).__bases__
        return rebuild_processor, (counter, plain, dict(vars(self)))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        plain: Any = super().__call__
        arguments = bind_arguments(plain, args, kwargs)  # some take the text first
        if self.attached.num_queries and arguments.get("text"):
            arguments["text"] = self._repeat_markers(arguments["text"])
        return self._run_plain(plain, arguments)

    def _run_plain(self, plain: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        """What the processor's own class makes of the arguments."""
        return plain(**arguments)

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> Any:
        """As the processor's own, with what is attached beside it. UsageError for an upload, which would
        leave that out."""
        if push_to_hub:
            raise UsageError("save_pretrained(push_to_hub=True): use processor.push_to_hub(repository)")
        saved = super().save_pretrained(save_directory, **kwargs)
        write_record(save_directory, self.attached.record)  # an adapter's folder has no model's configuration
        return saved

    def _repeat_markers(self, text: str | list[str]) -> str | list[str]:
        """A text or several, with a `<query>` for each query token."""
        if isinstance(text, str):
            return repeat_query_marker(text, 0, self.attached.num_queries)
        repeated = []
        for number, one_text in enumerate(text):
            repeated.append(repeat_query_marker(one_text, number, self.attached.num_queries))
        return repeated

    def apply_chat_template(self, conversation: Any, *args: Any, **kwargs: Any) -> Any:
        plain: Any = super().apply_chat_template
        num_queries = self.attached.num_queries
        if num_queries:
            if bind_arguments(plain, (conversation, *args), kwargs).get("tokenize"):
                check_types(conversation)
            # answers are found by their places in the text, which is not to grow behind the template then
            is_masked = bool(kwargs.get("return_assistant_tokens_mask"))
            conversation = add_markers(conversation, num_queries if is_masked else 1)
        return plain(conversation, *args, **kwargs)


def make_class(counter: type[AttachedProcessor], plain: type) -> type:
    """A subclass of a processor's class, of the same name, so that it is saved as before, which counts as
    `counter` does."""
    return type(plain.__name__, (counter, plain), {"__module__": plain.__module__})


def rebuild_processor(
    counter: type[AttachedProcessor], plain: type, state: dict[str, Any]
) -> AttachedProcessor:
    """What unpickling and copying call."""
    processor: object = object.__new__(make_class(counter, plain))
    vars(processor).update(state)
    return cast(AttachedProcessor, processor)  # its class was made so
