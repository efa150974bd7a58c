"""A compressor, and a query module if wanted, in a multimodal model of transformers.

    model = LlavaForConditionalGeneration.from_pretrained(...)
    reuse.attach(model, processor, compressor="visionzip", tokens=64)                  # nothing to train
    reuse.attach(model, processor, compressor="sap", rate=3, query_module="embq")      # to be trained
    model.save_pretrained(folder), processor.save_pretrained(folder)
    model, processor = reuse.load(folder)
    reuse.pick(model, processor, 2)                                  # another scale, where it has several
    reuse.detach(model, processor)                                   # what they were before
    reuse.prune(model, "fastv", ratio=0.5)                           # a pruner inside the LLM

The compressor reads the tower's patch features in the place of the model's own reduction (pixel shuffle,
pooling, merger), or between tower and projector where there is none. The model's own projector follows where
the widths agree, otherwise a new one that has to be trained. What it asks of a CLIP or SigLIP tower beside
that (attention, keys, CLS) it gets; a compressor without weights before the model's own projector needs no
training.

With a query module, questions are marked: `processor.apply_chat_template` does it, and in plain text
"USER: <image>\\n<question>What is this?<query> ASSISTANT:". `<question>` is one more token in the sequence,
so the ids alone say what each query may read, through any collator, trainer and harness: its question, and
the images before it. A later turn takes the whole conversation again, not `past_key_values` of the last one.
"""

from llm_adapters.reuse.attaching import attach, detach, name_trained_parts, pick
from llm_adapters.reuse.creating import NeedsTraining
from llm_adapters.reuse.families import FAMILIES
from llm_adapters.reuse.loading import load
from llm_adapters.reuse.pruning import prune

__all__ = ["FAMILIES", "NeedsTraining", "attach", "detach", "load", "name_trained_parts", "pick", "prune"]
