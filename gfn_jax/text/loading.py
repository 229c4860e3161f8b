"""Tokenizers from a folder, and where the models that the project ships lie."""

import json
import os
import pathlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SHIPPED = pathlib.Path(__file__).parents[1] / "assets"


def model_folder(name: str) -> str:
    """The folder of a model the project ships, or the name itself (a folder or a hub id)."""
    return str(SHIPPED / name) if (SHIPPED / name).is_dir() else name


def check_no_code(folder: pathlib.Path, *names: str) -> None:
    """Raises ValueError where a settings file of the folder names Python of its own (`auto_map`)."""
    for name in names:
        if (folder / name).is_file() and json.loads((folder / name).read_text()).get("auto_map"):
            raise ValueError(f"its {name} names code of its own (auto_map), which is never run")


def load_tokenizer(folder: str | os.PathLike) -> "PreTrainedTokenizerFast":
    """A fast tokenizer from a local folder, whose own code (`auto_map`) is never run and never asked about.

    Raises:
        FileNotFoundError: the folder holds no tokenizer.
        ValueError: the tokenizer cannot be read, is not a fast one, or is code.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # else it remarks that torch is missing
    from transformers import AutoTokenizer

    path = pathlib.Path(folder)
    if not any((path / name).is_file() for name in ("tokenizer.json", "vocab.json", "tokenizer.model")):
        raise FileNotFoundError(f"{path} holds no tokenizer (tokenizer.json)")
    try:
        check_no_code(path, "tokenizer_config.json")
        tokenizer: Any = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"the tokenizer in {path} cannot be read: {str(error).splitlines()[0]}") from error
    if not tokenizer.is_fast:
        raise ValueError(f"the tokenizer in {path} is not a fast one (tokenizer.json)")
    return tokenizer
