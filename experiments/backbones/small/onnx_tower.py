"""A DINOv2 tower back from an exported ONNX graph: names, positions and sizes, then the same output.

The exporter keeps the names of biases and norms, but folds the transpose of a linear layer into its weight
and leaves that nameless; the node that multiplies by it still has the layer's name. The position embedding
falls into two nameless constants, one for CLS and one for the patches.
"""

from collections.abc import Iterable
from math import isqrt
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import Dinov2Config, Dinov2Model

from compressors.errors import UsageError

BACKBONE_PREFIX = "backbone."
HEAD_WIDTH = 64  # of every published DINOv2


class OnnxNode(NamedTuple):
    """One operation of a graph."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...] = ()


def read_graph(path: Path) -> tuple[dict[str, np.ndarray], list[OnnxNode]]:
    """The constants and the operations of an ONNX file."""
    import onnx  # of the extra `small`: the rest of this module works without it
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    arrays = {constant.name: numpy_helper.to_array(constant) for constant in graph.initializer}
    nodes = []
    for node in graph.node:
        nodes.append(OnnxNode(node.op_type, node.name, tuple(node.input), tuple(node.output)))
    return arrays, nodes


def collect_weights(arrays: dict[str, np.ndarray], nodes: Iterable[OnnxNode]) -> dict[str, Tensor]:
    """The tower's weights under the names that checkpoints on the hub have."""
    tower_nodes = [node for node in nodes if format_dotted_name(node).startswith(BACKBONE_PREFIX)]
    named_arrays = {name: array for name, array in arrays.items() if name.startswith(BACKBONE_PREFIX)}
    for node in tower_nodes:
        if node.op != "MatMul":
            continue
        # the input that is a constant is the folded weight; products of activations have none
        constants = [arrays[name] for name in node.inputs[1:] if name in arrays]
        if constants:
            layer = format_dotted_name(node).rpartition(".")[0]
            named_arrays[f"{layer}.weight"] = constants[0].T
    cls_position, patch_positions = find_position_embeddings(arrays, tower_nodes)
    positions = np.concatenate([cls_position, patch_positions], axis=1)
    named_arrays[f"{BACKBONE_PREFIX}embeddings.position_embeddings"] = positions
    weights = {}
    for name, array in named_arrays.items():
        weights[name.removeprefix(BACKBONE_PREFIX)] = torch.from_numpy(np.array(array, np.float32))
    return weights


def format_dotted_name(node: OnnxNode) -> str:
    """`/backbone/encoder/layer.0/norm1/Add` as a module's name: backbone.encoder.layer.0.norm1.Add."""
    return node.name.strip("/").replace("/", ".")


def find_position_embeddings(arrays: dict[str, np.ndarray], nodes: Iterable[OnnxNode]) -> list[np.ndarray]:
    """The position embedding of CLS (1, 1, C) and of the patches (1, P, C).

    UsageError where the graph has another number of constants that could be one.
    """
    folder = f"{BACKBONE_PREFIX}embeddings."
    candidates = {}
    for node in nodes:
        if not format_dotted_name(node).startswith(folder):
            continue
        for name in node.inputs:
            nameless = name in arrays and not name.startswith(BACKBONE_PREFIX)
            if nameless and arrays[name].ndim == 3:
                candidates[name] = arrays[name]
    parts = sorted(candidates.values(), key=lambda array: array.shape[1])
    if len(parts) != 2:
        raise UsageError(f"the ONNX graph has {len(parts)} constants for positions, not CLS and patches")
    return parts


def infer_config(state: dict[str, Tensor]) -> Dinov2Config:
    """The configuration that the weights' shapes tell."""
    width, _, patch, _ = state["embeddings.patch_embeddings.projection.weight"].shape
    side = isqrt(state["embeddings.position_embeddings"].shape[1] - 1)  # in patches; CLS has a position too
    layers = 0
    for name in state:
        if name.startswith("encoder.layer."):
            layers = max(layers, 1 + int(name.split(".")[2]))
    inner_width = len(state["encoder.layer.0.mlp.fc1.bias"])
    return Dinov2Config(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // HEAD_WIDTH,
        mlp_ratio=inner_width // width,
        image_size=side * patch,
        patch_size=patch,
        use_mask_token=False,
    )


def save_checkpoint(state: dict[str, Tensor], out: Path) -> None:
    """Write the weights as a checkpoint that `load_tower` takes."""
    config = infer_config(state)
    config.architectures = [Dinov2Model.__name__]
    config.save_pretrained(out)
    # transposed weights are views, which safetensors refuses
    contiguous = {name: tensor.contiguous() for name, tensor in state.items()}
    save_file(contiguous, out / "model.safetensors", {"format": "pt"})


@torch.inference_mode()
def run_checkpoint(folder: Path, pixels: Tensor) -> Tensor:
    """What the checkpoint makes of (B, 3, h, w), after its final norm: (B, 1 + patches, C).

    UsageError where its weights are not those of a DINOv2.
    """
    # transformers declares only what from_pretrained returns without output_loading_info
    loaded = cast(Any, Dinov2Model.from_pretrained(folder, output_loading_info=True))
    model: Dinov2Model = loaded[0]
    info: dict[str, Iterable[str]] = loaded[1]
    amiss = sorted({*info["missing_keys"], *info["unexpected_keys"]})
    if amiss:
        raise UsageError(f"the ONNX graph does not hold a DINOv2: {len(amiss)} weights amiss, as {amiss[0]}")
    return model.eval()(pixels).last_hidden_state


def run_onnx(path: Path, pixels: Tensor) -> Tensor:
    """What ONNX Runtime makes of the same pixels at the same place of the graph."""
    import onnx  # of the extra `small`, as above
    import onnxruntime

    model = onnx.load(path)
    norm_nodes = [node for node in model.graph.node if node.name.startswith("/backbone/layernorm/")]
    # the graph goes on after the tower; its only output is now the end of the tower's last norm
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(norm_nodes[-1].output[0]))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    input_name = session.get_inputs()[0].name
    outputs = session.run(None, {input_name: pixels.numpy()})
    return torch.from_numpy(outputs[0])
