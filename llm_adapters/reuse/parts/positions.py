"""positions=keep in a model of transformers: the LLM sees kept patches where they stand among all patches.

For families whose images, or crops, are runs of as many tokens at positions of text, and for those whose
positions (time, row, column) follow the grid of an image. Where other tokens stand between the patches of an
image, such as the ends of a picture's rows, or images of own sizes have positions of text, it is refused.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from compressors.base import Compressor
from compressors.errors import UsageError
from connectors.versions import read_cache
from llm_adapters.kept_positions import (
    check_rotary,
    complete_positions,
    count_last_positions,
    shift_positions,
)
from llm_adapters.reuse.families import ModelFamily
from llm_adapters.reuse.families.family import RAGGED, read_merge_size
from llm_adapters.reuse.wrapping import VIDEO_TYPE, Kwargs, count_beams, split_placeholders

IMAGE_TYPE = 1  # in a processor's `mm_token_type_ids`
RUNS = ("fixed", "runs")  # of a family's `processor`: every crop has as many placeholders, side by side


@dataclass
class KeptPatches:
    """Of each image, crop or frame: the patches (N,) that its tokens stand at, and its patch grid."""

    places: list[Tensor]
    grids: list[tuple[int, int]]


@dataclass
class PositionKeeper:
    """Positions of one model. left_out: patches of a crop that are not kept, of `count` tokens."""

    model: PreTrainedModel
    language_model: Any
    count: int
    left_out: int

    def keep_positions(self, kwargs: Kwargs, is_visual: Tensor, kept: KeptPatches | None) -> None:
        """Change `position_ids`, and where there is no mask `attention_mask`, in the arguments of the base's
        forward; `kept` comes with images and videos alone."""
        check_rotary(self.language_model)
        mask, positions = complete_positions(
            kwargs.get("attention_mask"), kwargs.get("position_ids"), read_cache(kwargs), is_visual
        )
        if mask is not None:
            kwargs["attention_mask"] = mask
        if kept is not None:
            places = spread_values(is_visual, torch.cat(kept.places))
            positions = positions + shift_positions(is_visual, places, self.count, self.count + self.left_out)
        kwargs["position_ids"] = positions

    def continue_positions(
        self, original: Callable[..., dict[str, Any]], input_ids: Tensor, *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """Around `prepare_inputs_for_generation`: tokens without their images stand behind all patches."""
        inputs = original(input_ids, *args, **kwargs)
        for name in ("pixel_values", "pixel_values_videos"):
            if inputs.get(name) is not None:
                return inputs
        if inputs.get("mm_encoder_outputs"):
            return inputs
        positions = count_last_positions(inputs, kwargs.get("attention_mask"), input_ids)
        is_image, is_video = split_placeholders(input_ids, self.model.config, None)
        images = (is_image | is_video).sum(1, keepdim=True) // self.count
        return {**inputs, "position_ids": positions + images * self.left_out}


@dataclass
class GridPositionKeeper:
    """Positions (time, row, column) of one model: those of the sequence that has all patches.

    `get_rope_index` puts tokens at the first patches of their image or frame, as `generate` asks it before
    images are encoded; the forward that has encoded them puts that right."""

    base: PreTrainedModel
    compressor: Compressor
    merge: int  # patches of a side that are one position to the model

    def keep_positions(self, kwargs: Kwargs, is_visual: Tensor, kept: KeptPatches | None) -> None:
        """As `PositionKeeper`'s."""
        if kept is None:
            return
        positions = kwargs.get("position_ids")
        if positions is None:
            positions = self._compute_positions(kwargs)
        starts, offsets = locate_on_grids(kept)
        beams = count_beams(is_visual, len(starts))
        rows, columns = is_visual[::beams].nonzero(as_tuple=True)  # of all visual tokens
        first_of_image = starts.to(rows.device)
        own = positions[:, ::beams].clone()  # (3 or 4, B, T): text's, where it is there, comes first
        begins = own[-3:, rows[first_of_image], columns[first_of_image]]  # (3, visual tokens)
        own[-3:, rows, columns] = begins + offsets.to(begins)
        kwargs["position_ids"] = own.repeat_interleave(beams, 1)

    def _compute_positions(self, kwargs: Kwargs) -> Tensor:
        """The positions (3, B, T) that the model's forward computes where it gets none. UsageError where it
        would count visual tokens as text: they then stand on no grid."""
        if kwargs.get("mm_token_type_ids") is None:
            raise UsageError(
                "positions=keep: images came without mm_token_type_ids; give all that the processor makes, "
                "through the collator too"
            )
        cache = read_cache(kwargs)
        if cache is not None and cache.get_seq_length():
            raise UsageError(
                "positions=keep: images behind a KV cache need `position_ids`; give the whole conversation "
                "without a cache"
            )
        # which grids it takes, and what it calls the cache, is each family's and version's own
        compute: Any = self.base.compute_3d_position_ids
        arguments = dict.fromkeys(inspect.signature(compute).parameters)
        arguments.update((name, value) for name, value in kwargs.items() if name in arguments)
        positions: Tensor = compute(**arguments)
        return positions

    def index_positions(
        self,
        original: Callable[..., Any],
        ids: Tensor,
        types: Tensor,
        image_sizes: Tensor | None,
        video_sizes: Tensor | None,
        options: dict[str, Any],
    ) -> Any:
        """Around `get_rope_index`: the positions (3, B, T) of the tokens that are there, and by how much a
        row's next position is beyond its length (B, 1). ids, types (B, T); sizes (I, 3) and (V, 3) in
        patches, times first."""
        mask = options.pop("attention_mask", None)
        is_there = torch.ones_like(ids) if mask is None else mask.long()
        sizes = {IMAGE_TYPE: list_frames(image_sizes), VIDEO_TYPE: list_frames(video_sizes)}
        sources, targets = self._spread_rows((types * is_there).tolist(), sizes)
        source_index = pad_sequence(sources, batch_first=True).to(ids.device)
        is_full = pad_sequence([torch.ones_like(source) for source in sources], batch_first=True)
        full_mask = is_full.to(ids.device) * is_there.gather(1, source_index)
        for name, grids in (("image_grid_thw", image_sizes), ("video_grid_thw", video_sizes)):
            if grids is not None:
                options[name] = torch.cat([grids[:, :1], grids[:, 1:] * self.merge], 1)
        positions, deltas = original(
            ids.gather(1, source_index),
            mm_token_type_ids=types.gather(1, source_index),
            attention_mask=full_mask,
            **options,
        )
        left_out = full_mask.sum(1, keepdim=True) - is_there.sum(1, keepdim=True)
        index = torch.stack(targets).expand(len(positions), -1, -1).to(positions.device)
        return positions.gather(2, index), deltas + left_out.to(deltas.device)

    def _spread_rows(
        self, types: list[list[int]], sizes: dict[int, list[tuple[int, int]]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Rows with a token for every patch: of each the tokens that its own are copies of, and where in it
        each of the row's tokens is. `sizes` of images and of frames, by the types of their tokens."""
        sources: list[Tensor] = []
        targets: list[Tensor] = []
        unread = {kind: iter(sizes_of_kind) for kind, sizes_of_kind in sizes.items()}
        for row_types in types:
            source: list[int] = []
            target: list[int] = []
            while len(target) < len(row_types):
                column = len(target)
                if row_types[column] not in unread:
                    target.append(len(source))
                    source.append(column)
                    continue
                height, width = next(unread[row_types[column]])
                first = len(source)
                target += range(first, first + self.compressor.num_tokens(height, width))
                source += [column] * (height * width)
            sources.append(torch.tensor(source))
            targets.append(torch.tensor(target))
        return sources, targets


def shrink_grids(compressor: Compressor, merge: int, sizes: Tensor, as_rows: bool = False) -> Tensor | None:
    """Grids of patches (n, 3), times first -> those of a compressor's tokens, each `merge` patches by side;
    None where a token has no place, or `as_rows` one row of tokens."""
    grids: list[tuple[int, int]] = []
    for _, height, width in sizes.tolist():
        grid = compressor.out_grid(height, width)
        if grid is None and as_rows:
            grid = (1, compressor.num_tokens(height, width))
        if grid is None:
            return None
        grids.append(grid)
    return torch.cat([sizes[:, :1], sizes.new_tensor(grids) * merge], 1)


def list_frames(grids: Tensor | None) -> list[tuple[int, int]]:
    """(height, width) of every image, or frame, of grids (n, 3)."""
    sizes: list[tuple[int, int]] = []
    if grids is None:
        return sizes
    for times, height, width in grids.tolist():
        sizes += [(height, width)] * times
    return sizes


def locate_on_grids(kept: KeptPatches) -> tuple[Tensor, Tensor]:
    """Of all visual tokens (V,) the first one of each one's image, and how far its patch is from the first
    patch, (3, V): time, rows, columns."""
    starts: list[Tensor] = []
    offsets: list[Tensor] = []
    start = 0
    for places, (_, width) in zip(kept.places, kept.grids):
        starts.append(torch.full_like(places, start))
        offsets.append(torch.stack([torch.zeros_like(places), places // width, places % width]))
        start += len(places)
    return torch.cat(starts), torch.cat(offsets, 1)


def spread_values(is_visual: Tensor, values: Tensor) -> Tensor:
    """Values (visual tokens,) at the placeholders (B, T) that they belong to; of beams each has its row's."""
    beams = count_beams(is_visual, len(values))
    is_own = is_visual[::beams]
    spread = torch.zeros_like(is_own, dtype=torch.long)
    spread[is_own] = values.to(spread.device)
    return spread.repeat_interleave(beams, 0)


def make_position_keeper(
    family: ModelFamily, model: PreTrainedModel, part: Compressor, name: str
) -> PositionKeeper | GridPositionKeeper | None:
    """For a compressor that keeps positions, None for others; UsageError where they cannot be kept."""
    if not part.keeps_positions:
        return None
    base = cast(PreTrainedModel, model.base_model)
    kind = base.config.model_type
    refusal = f"compressor '{name}': positions=keep: in models of type '{kind}'"
    if family.rope:
        return GridPositionKeeper(base, part, read_merge_size(base))
    if family.processor in RAGGED:
        raise UsageError(
            f"{refusal} an image has a patch grid of its own, and positions are those of text; take "
            "positions=renumber"
        )
    if family.processor not in RUNS or family.whole_images:
        raise UsageError(
            f"{refusal} other tokens stand between the patches of an image; take positions=renumber"
        )
    language_model = getattr(base, family.language_model)
    check_rotary(language_model)
    height, width = family.grid(base)
    count = part.num_tokens(height, width)
    return PositionKeeper(model, language_model, count, height * width - count)
