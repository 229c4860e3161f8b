"""A folder on its way to the hub."""

import pathlib

from gfn_jax.errors import first_line


def check_name(repository: str) -> None:
    """Raises ValueError where a repository is not named OWNER/NAME, as the hub has it."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise ValueError(f"{repository!r} is no OWNER/NAME of the hub: {error}") from error
    if repository.count("/") != 1:
        raise ValueError(f"{repository!r} is no OWNER/NAME of the hub")


def push(folder: pathlib.Path, repository: str) -> str:
    """Uploads a folder's files in one commit to a model repository, which is made if need be; returns its address.

    Args:
        folder: of an adapter or a model, with its card.
        repository: OWNER/NAME.

    Raises:
        ValueError: the hub refuses or cannot be reached; the folder is still there.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        address = api.create_repo(repository, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Exported by gfn_jax")
    except Exception as error:  # whatever its client raises, which changes from version to version
        reason = first_line(error)
        raise ValueError(
            f"the hub did not take it ({reason}); it is in {folder}: hf upload {repository} {folder}"
        ) from error
    return str(address)
