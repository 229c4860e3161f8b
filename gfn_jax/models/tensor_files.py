"""Files of tensors and where they are: folders, hub ids, safetensors in one file or in indexed shards."""

import contextlib
import json
import pathlib
import re
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOATS = ("F64", "F32", "F16", "BF16")


def resolve(name_or_path: str | pathlib.Path, revision: str | None = None) -> pathlib.Path:
    """The local folder of a checkpoint or adapter; a hub id is downloaded (or found in the offline cache).

    A folder never touches the network. Pickle files are not downloaded.

    Raises:
        ValueError: neither a folder nor a hub id that could be had.
    """
    folder = pathlib.Path(name_or_path).expanduser()
    if folder.is_dir():
        return folder
    name = str(name_or_path)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ValueError(f"there is no folder {name}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]
    try:
        return pathlib.Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{name} is no local folder, and the hub did not supply it: {reason}") from error


def read_json(folder: pathlib.Path, name: str) -> dict[str, Any]:
    """A JSON file of a checkpoint, or a ValueError that names what is missing or malformed."""
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    if not (folder / name).is_file():
        raise ValueError(f"{folder} has no {name}")
    try:
        content = json.loads((folder / name).read_text())
    except ValueError as error:
        raise ValueError(f"{folder / name} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{folder / name} is no JSON object")
    return content


class TensorFiles:
    """The tensors of one or several safetensors files, by name, sliced lazily.

    A file is mapped anew for each view and let go with it: a mapping kept open would keep every page that was
    ever read in this process's memory, in the end the whole model.

    Raises:
        ValueError: a file that is missing, truncated or damaged, or a tensor that two files hold.
    """

    def __init__(self, paths: list[pathlib.Path]):
        self._paths: dict[str, pathlib.Path] = {}
        self._kinds: dict[str, tuple[str, tuple[int, ...]]] = {}
        for path in paths:
            if not path.is_file():
                raise ValueError(f"{path.parent} lacks the file {path.name}")
            try:
                with safe_open(path, framework="numpy") as file:
                    # A file is no iterable, whatever the linter thinks.
                    views = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            except SafetensorError as error:
                raise ValueError(f"{path} is truncated or damaged: {error}") from error
            for name in views.keys() & self._paths.keys():
                raise ValueError(f"tensor {name} is both in {self._paths[name]} and in {path.name}")
            self._paths |= dict.fromkeys(views, path)
            self._kinds |= {name: (view.get_dtype(), tuple(view.get_shape())) for name, view in views.items()}

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __contains__(self, name: str) -> bool:
        return name in self._paths

    def path(self, name: str) -> pathlib.Path:
        """The file that holds a tensor."""
        return self._paths[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return self._kinds[name][1]

    def slices(self, name: str) -> Any:
        """A view of the tensor that reads what is indexed, and keeps the file open as long as it lives."""
        return safe_open(self._paths[name], framework="numpy").get_slice(name)

    def equal(self, one: str, other: str, files: "TensorFiles | None" = None, rows: int = 4096) -> bool:
        """Whether a tensor is a copy of another of its shape, rounded to its dtype; compared a few rows at a time.

        Args:
            one: the copy.
            other: what it may be a copy of.
            files: where that lies, if not here.
            rows: compared at once.
        """
        left, right = self.slices(one), (files or self).slices(other)
        size = self.shape(one)[0]
        blocks = (slice(start, min(start + rows, size)) for start in range(0, size, rows))
        return all(np.array_equal(left[block], right[block].astype(left[block].dtype)) for block in blocks)

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Raises ValueError unless the tensor is of floats and of that shape."""
        kind, held = self._kinds[name]
        if kind not in FLOATS:
            raise ValueError(f"tensor {name} holds {kind}; implemented are {', '.join(FLOATS)}")
        if held != shape:
            raise ValueError(f"tensor {name} has shape {held}; config.json implies {shape}")


def weight_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The safetensors files of a checkpoint: one, or the shards that its index names.

    Raises:
        ValueError: there are none, or the index names one elsewhere; pickle files are refused.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        index = read_json(folder, INDEX)
        if not isinstance(index.get("weight_map"), dict) or not index["weight_map"]:
            raise ValueError(f"{folder / INDEX} has no weight_map")
        names = sorted(set(map(str, index["weight_map"].values())))
        for name in names:
            if not re.fullmatch(r"[^/\\]+\.safetensors", name):
                raise ValueError(f"{folder / INDEX} names {name!r}, which is no safetensors file in that folder")
        return [folder / name for name in names]
    pickles = sorted(path.name for end in ("bin", "pt", "pth", "ckpt") for path in folder.glob(f"*.{end}"))
    if pickles:
        raise ValueError(
            f"{folder} holds its weights as pickle ({pickles[0]}), which can run code: refused; "
            "convert them to safetensors"
        )
    raise ValueError(f"{folder} has neither {SINGLE} nor {INDEX}")


def write_tensors(path: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a safetensors file that all may read who may read new files; safetensors itself shuts out all others."""
    path.unlink(missing_ok=True)
    path.touch()
    mode = path.stat().st_mode
    save_file(dict(tensors), path, {"format": "pt"})
    path.chmod(mode)


@contextlib.contextmanager
def whole_folder(folder: str | pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder beside the one that is wanted, which takes its name, and its place, once all is written in it.

    So there is never half of one: who is killed while writing leaves the earlier folder, or none, and a hidden one
    that the next attempt removes.

    Raises:
        OSError: the folder cannot be written.
    """
    folder = pathlib.Path(folder).resolve()
    draft, replaced = (folder.with_name(f".{folder.name}.{word}") for word in ("partial", "replaced"))
    if replaced.exists() and not folder.exists():  # killed between the two renames below
        replaced.rename(folder)
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        yield draft
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    if folder.exists():
        folder.rename(replaced)
    draft.rename(folder)
    shutil.rmtree(replaced, ignore_errors=True)
