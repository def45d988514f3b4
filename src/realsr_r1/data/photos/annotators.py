"""Taggers and captioners from the Hugging Face Hub, on the GPU where there is one.

They are models that answer a prompt about an image, and zero-shot detectors. Prompts and labels
come from the settings (configs/annotation/default.yaml). A name may end with @REVISION, the commit
or tag to load. No code that comes with a model is run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from realsr_r1.core.errors import UserError
from realsr_r1.core.texts import split_tags

if TYPE_CHECKING:
    from PIL import Image

Images = Sequence["Image.Image"]


def tagger(name: str, settings: dict[str, Any]) -> Callable[[Images], list[list[str]]]:
    """Return a detector, or a model that answers `prompt`.

    A detector looks for `candidate_labels` and keeps those with a score of at least `threshold`.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING_NAMES

    place, revision = _pinned(name)
    config = AutoConfig.from_pretrained(place, revision=revision, trust_remote_code=False)
    if config.model_type in MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING_NAMES:
        return _detector(name, settings)
    answer, prompt = _answerer(name, settings), _needed(settings, "prompt")
    # Models write tags as a list, too, with a mark before each and a full stop at the end.
    return lambda images: [[bare for tag in split_tags(text) if (bare := tag.strip(" .*-•"))]
                           for text in answer(images, prompt)]


def captioner(name: str, settings: dict[str, Any]) -> Callable[[Images], list[dict[str, str]]]:
    """Return a model that answers one prompt for each of the `levels` of descriptions.

    The published chain's levels are `rough`, `middle` and `final`.
    """
    levels = settings["levels"]
    answer, prompts = _answerer(name, settings), {key: _needed(settings, key) for key in levels}

    def describe(images: Images) -> list[dict[str, str]]:
        texts = {key: answer(images, prompts[key]) for key in levels}
        return [{key: " ".join(texts[key][number].split()) for key in levels}
                for number in range(len(images))]

    return describe


def _needed(settings: dict[str, Any], key: str) -> Any:
    if key not in settings:
        raise UserError(f"it needs the setting {key!r}: give --annotation configs/annotation/default.yaml, "
                        "or a copy with the key")
    return settings[key]


def _answerer(name: str, settings: dict[str, Any]) -> Callable[[Images, str], list[str]]:
    """Return a function (images, prompt) -> texts.

    It decodes greedily, so a photo gets the same answer each time.
    """
    pipe = _pipeline("image-text-to-text", name)

    def answer(images: Images, prompt: str) -> list[str]:
        chats = [[{"role": "user", "content": [{"type": "image", "image": image},
                                               {"type": "text", "text": prompt}]}]
                 for image in images]
        outputs = pipe(text=chats, return_full_text=False, batch_size=len(chats),
                       generate_kwargs={"max_new_tokens": settings.get("max_new_tokens", 128),
                                        "do_sample": False})
        return [(output[0] if isinstance(output, list) else output)["generated_text"] for output in outputs]

    return answer


def _detector(name: str, settings: dict[str, Any]) -> Callable[[Images], list[list[str]]]:
    pipe = _pipeline("zero-shot-object-detection", name)
    labels = list(_needed(settings, "candidate_labels"))

    def detect(images: Images) -> list[list[str]]:
        found = pipe([{"image": image, "candidate_labels": labels} for image in images],
                     threshold=settings.get("threshold", 0.3))
        return [list(dict.fromkeys(item["label"] for item in sorted(items, key=lambda item: -item["score"])))
                for items in found]

    return detect


def _pipeline(task: str, name: str) -> Any:
    from transformers import pipeline

    from realsr_r1.core.devices import pick_device

    place, revision = _pinned(name)
    return pipeline(task, model=place, revision=revision, device=pick_device(), dtype="auto",
                    trust_remote_code=False)


def _pinned(name: str) -> tuple[str, str | None]:
    """Return a model's name and the revision after its @, if there is one."""
    place, _, revision = name.partition("@")
    return place, revision or None
