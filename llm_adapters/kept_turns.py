"""A turn behind a kept cache: what its query tokens would read is not there.

`generate` itself gives several ids behind its cache where it verifies guesses of an assistant or of a look-up
in the prompt, which may be markers or placeholders, too. Only it knows that no turn and no image begins
there, so it is made to say so.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from compressors.errors import UsageError

GUESSED = "slothkit_guessed"  # from `generate` to the model's forward


def says_guessed(original: Callable[..., dict[str, Any]], *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Around `prepare_inputs_for_generation`: arguments of the forward, and whether ids behind the cache are
    the model's own words and guesses."""
    return {**original(*args, **kwargs), GUESSED: not kwargs.get("is_first_iteration", False)}


def check_turn(ids: Tensor | None, cache: Cache | None, query_id: int) -> None:
    """UsageError for query tokens that begin a turn behind a cache. ids: (B, T)."""
    if ids is None or cache is None or ids.shape[1] == 1 or torch.compiler.is_compiling():
        return
    if cache.get_seq_length() and (ids == query_id).any():
        raise UsageError(
            "a new turn behind a cache: its query tokens could not read the images; give the "
            "whole conversation without a KV cache, and without prefill_chunk_size"
        )
