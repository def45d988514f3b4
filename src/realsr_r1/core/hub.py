"""Sends a folder to the Hugging Face Hub, by its own client. Nothing is sent unless a user asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from realsr_r1.core.errors import UserError


def check_hub(name: str) -> None:
    """Raise `UserError` where nothing can be sent to the repository `name` (USER/NAME, or NAME).

    Its form, the connection and who is logged in are checked, before any long work.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import validate_repo_id

    with _told(name):
        validate_repo_id(name)
        HfApi().whoami()


def push_folder(folder: Path, name: str) -> str:
    """Upload the files of `folder` to the model repository `name`; returns its address.

    A repository that isn't there is made, and is private. Files that are in it besides stay. Raises
    `UserError` when it can't be done.
    """
    from huggingface_hub import HfApi

    with _told(name):
        api = HfApi()
        repository = api.create_repo(name, private=True, exist_ok=True)
        api.upload_folder(repo_id=repository.repo_id, folder_path=folder,
                          commit_message=f"Upload {folder.name} with realsr-r1 export")
    return str(repository)


@contextmanager
def _told(name: str) -> Iterator[None]:
    from httpx import HTTPError

    try:
        yield
    # no connection, no token, no rights, offline mode, a name that can't be one
    except (HTTPError, OSError, ValueError) as error:
        line = " ".join(str(error).split())[:300]
        raise UserError(f"nothing can be sent to {name} (--push_to_hub): {line}; log in with hf auth login, "
                        "or drop the flag") from error
