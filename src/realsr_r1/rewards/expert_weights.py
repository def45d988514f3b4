"""Where the weights of learned metrics are looked for, and what is said when they are missing.

pyiqa, torch, CLIP and the hub's client each download what isn't in a cache of their own. All that
leans on where these caches are stands here.
"""

from __future__ import annotations

import contextlib
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from urllib.parse import urlparse

HUB = "huggingface"  # the hub's part of a folder of weights, laid out as ~/.cache/huggingface/hub
# Parts of a folder of weights for files by their address, as in torch's hub folder.
PARTS = (("openaipublic", "clip"), ("download.pytorch.org", "checkpoints"), ("/ARNIQA.pth", "checkpoints"),
         ("IQA-PyTorch-Weights", "pyiqa"))


class Weights:
    """The one place where experts' weights are looked for and downloaded to.

    `folder`: it has the layout of torch's hub folder (`~/.cache/torch/hub`), which may be copied:
    `pyiqa/FILE` are pyiqa's, `clip/FILE` CLIP's, `checkpoints/FILE` torchvision's, and
    `huggingface/` has what timm and transformers load from the hub. None: the caches themselves.
    With `HF_HUB_OFFLINE` nothing is downloaded.
    """

    def __init__(self, folder: str | None):
        self.folder = folder
        self._asked: list[str] = []  # addresses that a metric asked for because no file was there

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Inside, metrics that are made find their weights in the folder."""
        import torch
        from huggingface_hub import constants
        from pyiqa.utils import download_util

        before = torch.hub.get_dir(), download_util.DEFAULT_CACHE_DIR, constants.HF_HUB_CACHE
        opener = urllib.request._opener
        if self.folder is not None:
            root = Path(self.folder).absolute()
            torch.hub.set_dir(str(root))
            download_util.DEFAULT_CACHE_DIR, constants.HF_HUB_CACHE = str(root / "pyiqa"), str(root / HUB)
        urllib.request.install_opener(urllib.request.build_opener(
            _Watcher(self._asked, constants.is_offline_mode())))
        try:
            yield
        finally:
            urllib.request.install_opener(opener)
            torch.hub.set_dir(before[0])
            _, download_util.DEFAULT_CACHE_DIR, constants.HF_HUB_CACHE = before

    def fault(self, error: Exception) -> str:
        """What is missing and the ways out, on one line, after `error` in `in_use`."""
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        way = f"run once with internet and --expert_weights {self.folder or 'DIR'}, which then has it"
        asked = self._asked[-1] if self._asked else _address_in(error)
        if asked is None:
            return f"its weights can't be read or downloaded ({reason}); {way}"
        name, part = PurePosixPath(urlparse(asked).path), self._place(asked)
        name = name.name if part else f"{name.name} of {'/'.join(name.parts[1:3])}"
        where = f"are not in {part}" if part else "are not in the hub's cache"
        by_hand = "put the file there, or " if part else ""
        return (f"its weights {name} {where} and could not be downloaded from {asked} ({reason}); {by_hand}"
                f"{way}")

    def _place(self, address: str) -> Path | None:
        """The folder where the file of an address belongs, or None for the hub's cache."""
        import torch

        part = next((part for sign, part in PARTS if sign in address), None)
        return None if part is None else Path(self.folder or torch.hub.get_dir()) / part


class _Watcher(urllib.request.BaseHandler):
    """Notes the addresses that are asked for, and refuses them where `offline`."""

    def __init__(self, asked: list[str], offline: bool):
        self.asked, self.offline = asked, offline

    def https_request(self, request: urllib.request.Request) -> urllib.request.Request:
        self.asked.append(request.full_url)
        if self.offline:
            raise urllib.error.URLError("HF_HUB_OFFLINE is set")
        return request

    http_request = https_request


def _address_in(error: BaseException | None) -> str | None:
    """The first address that an error, or what caused it, names."""
    while error is not None:
        found = re.search(r"https?://[^\s'\"]+", str(error))
        if found:
            return found[0].rstrip(".,:)")
        error = error.__cause__ or error.__context__
    return None
