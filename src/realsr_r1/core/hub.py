"""Sends a folder to the Hugging Face Hub, by its own client. Nothing is sent unless a user asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from realsr_r1.core.errors import UserError

KEPT = ".gitattributes"  # the Hub's own file in a repository


def check_hub(name: str) -> None:
    """Raise `UserError` where nothing can be sent to the repository `name` (USER/NAME, or NAME).

    Its form, the connection and who is logged in are checked, before any long work.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import validate_repo_id

    with _told(f"nothing can be sent to {name}", "log in with hf auth login, or drop the flag"):
        validate_repo_id(name)
        HfApi().whoami()


def push_folder(folder: Path, name: str) -> tuple[str, list[str]]:
    """Upload the files of `folder` to the model repository `name`.

    A repository that isn't there is made, and is private. Returns its address, and the files in it
    that `folder` doesn't have: they may be somebody's own, so they stay. Raises `UserError` when it
    can't be done.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    with _told(f"{folder} could not be sent to {name}", "it is whole here: check the connection and your "
               "rights there, and start the same command again, which only sends it"):
        repository = api.create_repo(name, private=True, exist_ok=True)
        there = api.list_repo_files(repository.repo_id)
        api.upload_folder(repo_id=repository.repo_id, folder_path=folder,
                          commit_message=f"Upload {folder.name} with realsr-r1 export")
    sent = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return str(repository), sorted({*there} - sent - {KEPT})


@contextmanager
def _told(fault: str, way: str) -> Iterator[None]:
    try:
        yield
    # No connection, no token, no rights, offline mode, a name that can't be one: the client's errors
    # are those of two HTTP libraries and of an uploader in Rust, and have no class in common.
    except Exception as error:
        line = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"{fault} (--push_to_hub): {line}; {way}") from error
