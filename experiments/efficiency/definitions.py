"""What the columns mean: printed under each table."""

COUNT_NOTES = [
    "visual, query: tokens of a row, all its images together, beside the text tokens.",
    "FLOPs: of matrix products, attention and convolutions in a prefill of the whole batch; a "
    "multiply-add counts as two. LLM: all decoder layers over visual, query and text tokens, logits "
    "after the last one alone. EmbQ acts inside the LLM and is counted apart. A token: a decoding step "
    "of one row.",
    "KV cache: keys and values after the prefill, whole batch. Weights: all parameters.",
]
TIME_NOTES = [
    "TTFT: from pictures in memory (PIL, RGB) to the first token on the host, through transformers' "
    "generate, for the whole batch: resizing and normalising on the CPU, the copy to the device, tower, "
    "compressor, projector, prefill, choice of the token. Token ids are made beforehand.",
    "tokens/s: decoding after the first token, all rows together, by generate; each token is copied to "
    "the host. Read: bytes of the LLM's weights (without an input embedding of its own) and of the KV "
    "cache, over the time of a step.",
    "By part: in a run of its own, in which every part is waited for. Other: placing tokens, copies, "
    "generate.",
    "Peak memory: weights and the most that an answer holds beside them; on a GPU as the allocator "
    "counts, on a CPU tensors alone.",
    "Median of the rounds (lowest - highest), after one round that does not count. Rows of the same "
    "batch, images and picture take turns within a round; models of Table 1 run one after another. "
    "Weights are random: values do not change the time.",
]
TRAINING_NOTES = [
    "A step: an optimiser step of the sweep's own trainer, with the precision and checkpointing of the "
    "preset; copying its rows to the device included, reading and preparing data not.",
    "FLOPs of a step: forward times 3 for parts that are trained, 2 for a frozen LLM, 1 for a frozen "
    "tower, 0 for a tower whose features are cached; what checkpointing computes again does not count.",
    "Hours: rows of the data / rows of a step x median seconds of a step / 3600, on one device. Rows have "
    "one image and the text tokens assumed: all are of one length.",
    "Peak memory: weights, gradients, AdamW's state, activations.",
]
