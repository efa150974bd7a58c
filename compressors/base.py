"""The contract of a visual compressor: patch features (B, H, W, C) -> visual tokens (B, N, C')."""

from typing import Literal

from torch import Tensor, nn

from compressors.cues import JOINT
from compressors.errors import UsageError
from compressors.registry import Registry


class CompressorRegistry(Registry):
    """Compressors by name; what is no compressor is refused as it is created."""

    def create(self, name: str, **arguments: object) -> "Compressor":
        part = super().create(name, **arguments)
        if not isinstance(part, Compressor):
            raise UsageError(f"compressor '{name}': {type(part).__name__} must be a subclass of Compressor")
        out_dim = getattr(part, "out_dim", None)
        if not isinstance(out_dim, int) or out_dim < 1:
            raise UsageError(
                f"compressor '{name}': its constructor must set out_dim, the width of its tokens; "
                f"it is {out_dim}"
            )
        check_question_needs(part, name)
        if part.varies and part.keeps_positions:
            raise UsageError(
                f"compressor '{name}': positions=keep: they are kept where images have as many tokens; take "
                "positions=renumber, or the same number for all"
            )
        return part


def check_question_needs(part: "Compressor", name: str) -> None:
    """UsageError for a compressor that says in two ways what its text is, or lists `joint` before others."""
    where = f"compressor '{name}': needs_cues={list(part.needs_cues)}"
    if part.needs_tower_text != (JOINT in part.needs_cues):
        raise UsageError(
            f"{where} but needs_tower_text={part.needs_tower_text}: leave that out, it follows from the cue "
            f"'{JOINT}'"
        )
    if not part.needs_tower_text:
        return
    if part.needs_text:
        raise UsageError(
            f"{where} and needs_text: `text` is by the tower's text encoder or by the LLM; take one of them"
        )
    if part.needs_cues[-1] != JOINT:
        raise UsageError(f"{where}: the width of '{JOINT}' is the text's; list it last")


registry = CompressorRegistry("compressor", group="slothkit.compressors", context=("dim", "llm_dim"))
register = registry.register
MaybeTensor = Tensor | None
Positions = Literal["keep", "renumber"]


class Compressor(nn.Module):
    """Base class. A compressor's knobs are its keyword arguments; `dim` is the tower's width C, and one that
    needs the LLM's width takes `llm_dim`. Subclasses set `out_dim` and define `out_grid` or `num_tokens`, and
    `forward`.

    needs_text     forward wants `text (B, T, llm_dim)`, the embeddings of the question asked where the image
                   stands, and `text_mask (B, T)`, True where there is a token; None: everywhere
    needs_tower_text    follows from the cue `joint`, the last of `needs_cues`: forward gets the question by
                   the text encoder that was trained with the tower, too, `text (B, M, E)`, one or several
                   pieces of it, and `text_mask (B, M)`
    needs_projected    patches as the projector makes them, at the LLM's width, come along last in the
                   channels: one that chooses patches as the LLM will see them. Its out_dim is `dim`
    needs_levels   hidden states of the tower, as its `levels=` takes them, that come along in the channels:
                   features are then (B, H, W, (1 + L) C), the tower's output first
    needs_cues     what else the tower knows of its patches (`compressors/cues.py`), behind the levels in the
                   channels: `split_cues` gives it
    projects       the output is already at the LLM's width: no projector follows by default
    image_rate     the *image* is shrunk by this factor before the tower (1: not at all)
    varies         an image may have fewer tokens than `num_tokens`, which is the most then: `present` tells
                   which there are
    is_subset      a `SubsetCompressor`: its tokens are patches as they are, and forward takes `kept`, their
                   choice, where it is made. An attribute, as what PEFT wraps around one is of another class
    keeps_positions    in the LLM each token has the position that its patch, `kept`, would have if nothing
                   were left out, and text behind an image goes on from there; otherwise positions count the
                   tokens that are there. A knob `positions` of those that define `kept`
    raster_order   without a grid, tokens are in the order of the patches that they were chosen from, as those
                   of selectors and mergers: any first part of them shows the top of the picture
    """

    out_dim: int
    needs_text: bool = False
    needs_projected: bool = False
    needs_levels: tuple[int, ...] = ()
    needs_cues: tuple[str, ...] = ()
    projects: bool = False
    image_rate: int = 1
    varies: bool = False
    is_subset: bool = False
    keeps_positions: bool = False
    raster_order: bool = False

    def out_grid(self, height: int, width: int) -> tuple[int, int] | None:
        """Grid of the visual tokens, row-major, for a (height, width) patch grid; None: no spatial order."""
        return None

    def num_tokens(self, height: int, width: int) -> int:
        """Exactly how many tokens `forward` returns for such a grid; raises UsageError where it does."""
        grid = self.out_grid(height, width)
        if grid is None:
            raise NotImplementedError(f"{type(self).__name__} must define out_grid or num_tokens")
        return grid[0] * grid[1]

    @property
    def needs_tower_text(self) -> bool:
        """Whether `forward` wants the question by the text encoder that was trained with the tower."""
        return JOINT in self.needs_cues

    @property
    def reads_question(self) -> bool:
        """Whether `forward` wants `text`, by the LLM's embeddings or by the tower's own text encoder."""
        return self.needs_text or self.needs_tower_text

    @property
    def draws(self) -> bool:
        """Whether it draws its token count in training."""
        return False

    def draw(self) -> None:
        """Called before each training step: one that trains at several token counts draws the next. Where
        nobody calls it, such a compressor draws in each forward of a training itself."""

    def begin_step(self) -> None:
        """Called before each step of training, however many forwards it has: one that changes while it is
        trained counts them. Where nobody calls it, such a compressor takes each forward for a step."""

    def pick(self, scale: int) -> None:
        """Settles one of these counts for good; a UsageError where there is only one. In a composed model the
        processor has to follow before it makes inputs: `processor.image_tokens =
        model.num_image_tokens(*processor.crop_size)`; of another MLLM `reuse.pick` takes both along."""
        raise UsageError(f"scale={scale}: {self.registered_name} is trained at one token count only")

    def visible(self, height: int, width: int) -> int:
        """How many of its tokens, the first ones, the LLM may see. Fewer than `num_tokens` only in training:
        whoever places the tokens masks the others, as if they were not there."""
        return self.num_tokens(height, width)

    def forward(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        """(B, H, W, C) -> (B, N, out_dim)."""
        raise NotImplementedError

    def kept(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> MaybeTensor:
        """Where the tokens of `forward` stand: raster indices of patches (B, N), no two of an image the same.

        A token stands at the patch that it is, or that others were merged into; -1 for one that stands at
        none, such as CLS or a mean of what was left out. None for a compressor that chooses no patches. One
        that draws its choice in training draws anew here."""
        return None

    def present(
        self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None
    ) -> MaybeTensor:
        """Which of the tokens of `forward` there are, (B, N), by features and question of each image alone.
        Whoever places the tokens masks the others, as if they were not there. None: all, of one that does not
        vary."""
        return None

    def attention(
        self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None
    ) -> MaybeTensor:
        """Weights over the patches for pictures, (B, H, W), each image's sum 1; None if there are none."""
        return None
