"""What `save_pretrained` of a model with a compressor attached writes beside its weights: a configuration
that no class of transformers takes for the plain model's, and a model card."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from compressors.errors import UsageError
from connectors.hub import is_hub_id
from llm_adapters.model_card import INSTALL, describe_part
from llm_adapters.reuse.wrapping import bind_arguments

# Auto classes repeat it as they refuse it, so that it says what to do
MODEL_TYPE = f"{{plain}} with slothkit ({INSTALL}; from llm_adapters import reuse; reuse.load)"
PLAIN_CONFIG = "config"  # the key of the plain model's configuration in the record
RECORD_FILE = "slothkit.json"  # beside a processor, which may stand with an adapter alone
ADVICE = (
    f"This model has a visual compressor in it, without which it does not answer: {INSTALL}, then "
    "from llm_adapters import reuse; model, processor = reuse.load(...)"
)
CARD = """---
{header}tags:
- slothkit
- visual-compressor
pipeline_tag: image-text-to-text
---

# {title}

`{architecture}` of transformers with the visual compressor `{compressor}` of
SlothKit in it ([FlashSloth](https://arxiv.org/abs/2412.04317)). transformers alone cannot load it:
{install}, then

```python
from llm_adapters import reuse

model, processor = reuse.load("{place}")
```

| | |
|---|---|
| base model | {base} |
| compressor | `{compressor}` |
| its knobs | {knobs} |
| query module | {query_module} |
| its knobs | {query_knobs} |
| pruner | {pruner} |
"""


def find_base_folder(model: PreTrainedModel) -> str | None:
    """The folder that a model was loaded from; None for a repository of the hub. To be asked where it was
    loaded: from another working directory a relative folder looks like a repository."""
    base = model.name_or_path
    return base if base and not is_hub_id(base) else None


def save_with_card(
    model: PreTrainedModel,
    keeps_names: bool,
    base_folder: str | None,
    original: Callable[..., Any],
    *args: Any,
    **kwargs: Any,
) -> Any:
    """`save_pretrained` of an attached model, `keeps_names` as its family says, `base_folder` as
    `find_base_folder`. UsageError for an upload before all files are written."""
    if bind_arguments(original, args, kwargs).get("push_to_hub"):
        raise UsageError("save_pretrained(push_to_hub=True): use model.push_to_hub(repository)")
    if keeps_names:
        kwargs.setdefault("save_original_format", False)
    result = original(*args, **kwargs)
    if not kwargs.get("is_main_process", True):
        return result
    folder = Path(args[0] if args else kwargs["save_directory"])
    path = folder / "config.json"
    plain = json.loads(path.read_text())
    record = plain.pop("slothkit")
    path.write_text(json.dumps(hide_config(plain, record), indent=2) + "\n")
    (folder / "README.md").write_text(write_card(model, base_folder, record))
    return result


def hide_config(plain: dict[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """The plain model's configuration where its own class does not find it. Auto classes refuse the
    `model_type`; a class of transformers refuses the words in the place of its parts' configurations."""
    hidden: dict[str, Any] = {
        "model_type": MODEL_TYPE.format(plain=plain["model_type"]),
        "architectures": plain.get("architectures"),
        "slothkit": {**record, PLAIN_CONFIG: plain},
    }
    for name, value in plain.items():
        if isinstance(value, dict) and name.endswith("_config"):
            hidden[name] = ADVICE
    return hidden


def write_card(model: PreTrainedModel, base_folder: str | None, record: Mapping[str, Any]) -> str:
    """The README of the folder."""
    base = model.name_or_path or ""
    # a path tells nobody else anything
    is_public = bool(base) and base != base_folder and is_hub_id(base)
    title = f"{base.split('/')[-1]} with {record['compressor']}" if is_public else record["compressor"]
    pruner = dict(record.get("pruner", {}))
    return CARD.format(
        header=f"base_model: {base}\n" if is_public else "",
        title=title,
        architecture=type(model).__name__,
        compressor=record["compressor"],
        install=INSTALL,
        place="REPOSITORY_OR_FOLDER",
        base=f"`{base}`" if is_public else f"of type `{model.config.model_type}`",
        knobs=_list_knobs(record["knobs"]),
        query_module=f"`{record['query_module']}`" if record["query_module"] else "none",
        query_knobs=_list_knobs(record["query_knobs"]),
        pruner=describe_part(pruner.pop("name", None), pruner),
    )


def _list_knobs(knobs: Mapping[str, Any]) -> str:
    """`name=value`, one after another."""
    return ", ".join(f"`{name}={value}`" for name, value in knobs.items()) or "as they are by default"


def write_record(folder: str | Path, record: Mapping[str, Any]) -> None:
    """What is attached, beside a processor."""
    Path(folder, RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n")
