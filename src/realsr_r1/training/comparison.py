"""What a run does otherwise than a profile, in words: `--compare_with NAME`.

A profile is a recipe of a stage with its chain settings, such as configs/recipes/published_grpo.yaml.
All settings are compared but those in not_compared.py: what a run saves, logs, and how it uses memory.
Knows settings only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from realsr_r1.chain.settings import ChainSettings
from realsr_r1.core.errors import UserError
from realsr_r1.core.files import write_json
from realsr_r1.core.json_yaml import read_yaml
from realsr_r1.core.presets import PRESETS, find_preset
from realsr_r1.core.run_files import DIFFERENCES_FILE, Difference, DifferencesFile, differences_of
from realsr_r1.core.schema import Json, Text
from realsr_r1.training.not_compared import NOT_COMPARED

BEFORE = "in the run before: "


@dataclass(frozen=True)
class Words:
    """How a setting is said: what it is, and what its values mean (others are said as they are)."""

    what: str
    values: Mapping[Any, str] = field(default_factory=dict)


# Setting of `ChainGRPOConfig`, `ColdStartConfig` or `ModelConfig`, or what several come to -> how it is
# said. Settings that aren't here are said by their flags.
SETTINGS = {
    "reward_funcs": Words("rewards that are added up"),
    "reward_weights": Words("weights of the rewards", {None: "1 each"}),
    "experts": Words("experts that score an image"),
    "format_rule": Words("a chain has the right form", {
        "exact": "with each section once, one image in an image and none in a text",
        "lazy": "with its tags in order, whatever is inside and however often a tag is repeated"}),
    "tag_rule": Words("a photo's tag counts as named", {
        "words": "as a whole word of the rough description; each tag counts once",
        "substring": "wherever its letters stand in the rough description; the tags are those of the list's "
                     "first entry, and repeats count"}),
    "tag_precision": Words("tags that are named wrongly", {False: "cost nothing", True: "cost (F1)"}),
    "tag_synonyms": Words("synonyms of tags", {None: "none"}),
    "image_rule": Words("the image that is scored", {
        "chain": "the final one of a well-formed chain; any other chain scores 0",
        "last": "the last one of any completion, well formed or not"}),
    "grammar": Words("what a policy may write", {
        "image": "text, and images of a size that fits; image codes stand in images only, and no image "
                 "begins where it has no room",
        "chain": "whole chains only",
        "rows": "any token in text, image codes and late image starts too; sizes from the whole vocabulary "
                "by the entropy rule of codes; only the rows of an image are fixed"}),
    "text_top_k": Words("likeliest tokens that text is drawn from"),
    "image_top_k_min": Words("fewest codes that are drawn from (at no entropy)"),
    "image_top_k_max": Words("most codes that are drawn from (at high entropy)"),
    "cache_dtype": Words("a rollout's keys and values are kept in", {"auto": "the policy's type"}),
    "rollout_temperature": Words("temperature of sampling"),
    "guidance_scale": Words("guidance inside images"),
    "num_generations": Words("completions of a prompt"),
    "max_prompt_length": Words("longest prompt, in tokens"),
    "max_completion_length": Words("longest completion, in tokens"),
    "train_forced_tokens": Words("tokens that leave no choice (new lines, image ends)", {
        False: "are left out of the loss", True: "count in the loss"}),
    "credit": Words("a token's advantage", {"sequence": "that of all rewards' sum",
                                            "section": "that of the rewards which judge its section"}),
    "temperature": Words("temperature of the loss"),
    "loss_type": Words("the loss (TRL's name)"),
    "scale_rewards": Words("advantages are divided by the spread of"),
    "multi_objective_aggregation": Words("rewards are joined by (TRL's name)"),
    "importance_sampling_level": Words("importance sampling by"),
    "num_iterations": Words("times that a rollout is learned from"),
    "beta": Words("weight of the KL term"),
    "mask_truncated_completions": Words("completions that are cut off", {
        False: "count in the loss", True: "are left out of the loss"}),
    "learning_rate": Words("learning rate"),
    "lr_scheduler_type": Words("course of the learning rate"),
    "warmup_steps": Words("warm-up (below 1 a share of all steps)"),
    "num_train_epochs": Words("passes over the data"),
    "max_steps": Words("steps, whatever the passes", {-1: "not limited"}),
    "samples_a_step": Words("prompts or chains that a device learns from in a step"),
    "steps_a_rollout": Words("steps that learn from one rollout"),
    "optim": Words("optimizer"),
    "adam_beta1": Words("first beta of the optimizer"),
    "adam_beta2": Words("second beta of the optimizer"),
    "weight_decay": Words("weight decay"),
    "max_grad_norm": Words("gradients are clipped at"),
    "bf16": Words("numbers in training", {False: "float32", True: "bfloat16"}),
    "dtype": Words("weights of the policy are held in"),
    "seed": Words("seed"),
    "use_peft": Words("what is trained", {False: "all weights", True: "LoRA adapters"}),
    "load_in_4bit": Words("weights of the policy in 4 bits", {False: "no", True: "yes"}),
    "z_loss": Words("weight of the z-loss"),
    "dropout": Words("dropout"),
    "max_length": Words("longest prompt and chain, in tokens"),
    "train_sampling_strategy": Words("order of the chains", {
        "random": "random", "group_by_length": "random, with chains of similar length in a step"}),
    "zero_image_head": Words("the head's rows of image codes at the start", {
        False: "as the policy has them", True: "zero, unless the policy comes from another run"}),
}
# Chain setting -> how it is said. `sections` are the names, in order, with the shares of the final side
# that images have.
CHAIN = {
    "sections": Words("sections of the chain"),
    "target_px": Words("side of the final image, in px"),
    "grid_unit_px": Words("unit of sizes, in px"),
    "fit": Words("a photo that has no whole grid units is cut", {
        "crop": "at its centre", "random_crop": "at a place drawn at random",
        "stretch": "nowhere: it is stretched to a square"}),
    "pixels": Words("decoded pixels", {"rounded": "are rounded to 8 bits", "cut": "are cut to 8 bits"}),
}


def compared(args: Any, model_args: Any, chain: ChainSettings, stage: str) -> DifferencesFile | None:
    """Return what differs from the profile of `--compare_with`, and print it on rank 0.

    None where none is asked for. `args`, `model_args`: the settings of a run. `chain`: its chain
    settings, those of `--chain_settings` included. `stage`: "sft" or "grpo". Where the policy is what
    another run has left, such as a cold start or its export, and that was compared with the same
    profile, its differences are told, too. Raises `UserError` for a profile that has no recipe of this stage.
    """
    if args.compare_with is None:
        return None
    rows = differences(args, model_args, chain, args.compare_with, stage)
    other = differences_of(Path(model_args.model_name_or_path)) if model_args.model_name_or_path else None
    if other is not None:
        rows += [Difference(**{**row, "what": f"{BEFORE}{row['what']}"}) for row in other["rows"]
                 if other["profile"] == args.compare_with]
    found: DifferencesFile = {"profile": args.compare_with, "rows": rows}
    if args.process_index == 0:
        print("\n".join(said(found)), flush=True)
    return found


def differences(args: Any, model_args: Any, chain: ChainSettings, profile: str,
                stage: str) -> list[Difference]:
    """Return a row for each setting of a run that differs from the profile's; see `compared`."""
    recipe = _recipe(profile, stage)
    their_chain = ChainSettings()
    if "chain_settings" in recipe:
        their_chain = ChainSettings.read(find_preset("--chain_settings", str(recipe["chain_settings"])))
    ours = {**_values(args, model_args), **_chain_values(chain)}
    theirs = {**_defaults(args, model_args), **recipe, **_chain_values(their_chain)}
    theirs["samples_a_step"] = theirs["per_device_train_batch_size"] * theirs["gradient_accumulation_steps"]
    theirs["steps_a_rollout"] = 1
    for values, settings in ((ours, chain), (theirs, their_chain)):
        if "experts" in values:
            values["experts"] = values["experts"] or settings.experts
    known = {**SETTINGS, **CHAIN}
    others = {name: Words(f"--{name}") for name in ours if name not in {**known, **NOT_COMPARED}}
    return [Difference(setting=name, what=words.what, ours=_said(ours[name], words),
                       theirs=_said(theirs[name], words))
            for name, words in {**known, **others}.items()
            if name in ours and _plain(ours[name]) != _plain(theirs[name])]


def said(found: DifferencesFile) -> list[str]:
    """Return a heading and a line for each difference."""
    profile, rows = found["profile"], found["rows"]
    if not rows:
        return [f"no setting differs from {profile}"]
    return [f"{len(rows)} settings differ from {profile}:",
            *(f"  {row['what']}: {row['ours']} ({profile}: {row['theirs']})" for row in rows)]


def keep(found: DifferencesFile | None, output: Path) -> None:
    """Write the table into a run's folder; without one, an older table there is taken away."""
    if found is None:
        (output / DIFFERENCES_FILE).unlink(missing_ok=True)
    else:
        write_json(output / DIFFERENCES_FILE, found)


def _recipe(profile: str, stage: str) -> dict[str, Any]:
    path = find_preset("--config", f"{profile}_{stage}")
    if not Path(path).is_file():
        ending = f"_{stage}.yaml"
        recipes = (PRESETS / "configs" / "recipes").glob(f"*{ending}")
        known = ", ".join(sorted(file.name.removesuffix(ending) for file in recipes))
        raise UserError(f"--compare_with {profile}: there is no recipe {profile}{ending} to compare with; "
                        f"known are {known}")
    return read_yaml(path, dict[Text, Json])


def _values(args: Any, model_args: Any) -> dict[str, Any]:
    """Return a run's settings by name."""
    values = {item.name: getattr(one, item.name) for one in (model_args, args) for item in fields(one)}
    made = args.per_device_train_batch_size * args.gradient_accumulation_steps
    # GRPO's numbers count completions once its settings are made.
    values["samples_a_step"] = made / values.get("num_generations", 1)
    if "steps_per_generation" in values:
        values["steps_a_rollout"] = max(1, args.steps_per_generation / args.gradient_accumulation_steps)
        # The name is enough to tell the difference, and a model card that shows it names no places.
        values["tag_synonyms"] = args.tag_synonyms and Path(args.tag_synonyms).name
    return values


def _defaults(args: Any, model_args: Any) -> dict[str, Any]:
    return {item.name: item.default if item.default_factory is MISSING else item.default_factory()
            for one in (model_args, args) for item in fields(one)}


def _chain_values(settings: ChainSettings) -> dict[str, Any]:
    sections = [section.name if section.share is None else f"{section.name} ({section.share:g})"
                for section in settings.chain.sections]
    return {"sections": ", ".join(sections), **{name: getattr(settings, name) for name in CHAIN
                                                if name != "sections"}}


def _plain(value: Any) -> Any:
    """Return a value as it is compared: lists (rewards, experts) without order, enums as texts."""
    value = getattr(value, "value", value)
    if isinstance(value, list | tuple):
        return sorted(map(str, value)) if len(value) > 1 else "".join(map(str, value)) or None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _said(value: Any, words: Words) -> str:
    value = getattr(value, "value", value)
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, float):
        value = int(value) if value.is_integer() else value
    if isinstance(value, str | int | None) and value in words.values:
        return words.values[value]
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
