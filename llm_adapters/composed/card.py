"""The README of a saved model, for whoever finds its folder without SlothKit."""

from pathlib import Path

from llm_adapters.configuration import FlashSlothConfig
from llm_adapters.model_card import INSTALL, describe_part

CARD_FILE = "README.md"
CARD = """---
tags:
- slothkit
- visual-compressor
pipeline_tag: image-text-to-text
---

# {compressor}

A multimodal LLM of SlothKit with a visual compressor ([FlashSloth](https://arxiv.org/abs/2412.04317)).
transformers alone cannot load it: {install}, then

```python
from transformers import AutoModelForImageTextToText, AutoProcessor
import llm_adapters.auto  # registers the classes

model = AutoModelForImageTextToText.from_pretrained("REPOSITORY_OR_FOLDER")
processor = AutoProcessor.from_pretrained("REPOSITORY_OR_FOLDER")
```

| | |
|---|---|
| vision tower | `{tower}` |
| compressor | {compressor_words} |
| projector | {projector} |
| query module | {query_module} |
| pruner | {pruner} |
| LLM | `{llm}` |
"""


def write_card(config: FlashSlothConfig, folder: Path) -> None:
    """Write it, if the folder has none: somebody may have written a better one."""
    path = folder / CARD_FILE
    if path.exists():
        return
    card = CARD.format(
        install=INSTALL,
        tower=config.vision_config.model_type,
        compressor=config.compressor,
        compressor_words=describe_part(config.compressor, config.compressor_knobs),
        projector=describe_part(config.projector, config.projector_knobs),
        query_module=describe_part(config.query_module, config.query_module_knobs),
        pruner=describe_part(config.pruner, config.pruner_knobs),
        llm=config.text_config.model_type,
    )
    path.write_text(card, encoding="utf-8")
