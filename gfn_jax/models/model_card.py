"""The card (README.md) of an exported adapter or model: what it was trained from, on what, how, and how well."""

import json
import pathlib
from collections.abc import Mapping

from gfn_jax.models.adapter_settings import CONFIG

_CARD = """---
{header}
---

# {title}

{what} of `{base}`, trained on the task `{task}` with gfn_jax (GFlowNet fine-tuning of language models in JAX).

| | |
|---|---|
| Base | `{base}` |
| Task | {task} |
| Configuration | `{digest}` |

## Results

{results}

## Reproduce

```
{command}
```
"""


def write_model_card(
    folder: str | pathlib.Path,
    base: str,
    task: str,
    config_digest: str,
    metrics: Mapping[str, float],
    command: str,
) -> pathlib.Path:
    """Writes README.md beside an exported adapter or merged model, and returns its path.

    Args:
        folder: where `save_adapter` or `export_merged` wrote.
        base: the name or folder of the base model.
        task: what was trained on.
        config_digest: the fingerprint of the run's configuration.
        metrics: name -> value, as measured at the end of the run.
        command: what reproduces the run.

    Raises:
        ValueError: the folder holds no exported adapter or model.
    """
    folder = pathlib.Path(folder)
    is_adapter = (folder / CONFIG).is_file()
    if not is_adapter and not (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds neither an adapter nor a model to write a card for")
    # The header is YAML, of which JSON strings are a part: whatever a name holds, it is quoted.
    header = [f"base_model: {json.dumps(base)}", f"library_name: {'peft' if is_adapter else 'transformers'}"]
    header += ["pipeline_tag: text-generation", "tags:", "- gflownet", "- gfn_jax", f"- {json.dumps(task)}"]
    rows = [f"| {name} | {value:.6g} |" for name, value in metrics.items()]
    card = _CARD.format(
        header="\n".join(header),
        title=f"{task}: {'adapter' if is_adapter else 'merged model'}",
        what="A LoRA adapter" if is_adapter else "A fine-tuned copy",
        base=base,
        task=task,
        digest=config_digest,
        results="\n".join(["| metric | value |", "|---|---|", *rows]) if rows else "None were measured.",
        command=command,
    )
    path = folder / "README.md"
    path.write_text(card)
    return path
