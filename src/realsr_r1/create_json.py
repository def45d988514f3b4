"""realsr-r1 create-json: makes a dataset of degraded crops from photos and their annotations.

It writes JSON lists in the published format, and a DatasetDict. With --json, an existing list
becomes a DatasetDict as it is. This module plans what data/building/arguments.py has read from the
command line. data/building/build.py has the parts made and joins them, and data/building/jobs.py
makes one part.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from realsr_r1.core.errors import UserError, run
from realsr_r1.core.files import clear_leftovers
from realsr_r1.core.json_yaml import read_json
from realsr_r1.core.schema import Json, Text, checked
from realsr_r1.core.texts import composed, read_text, split_lines, split_list, stem_of
from realsr_r1.data.building.arguments import check_arguments, check_output, fingerprint, parser

if TYPE_CHECKING:
    from realsr_r1.chain.spec import ChainSpec
    from realsr_r1.data.building.build import Plan
    from realsr_r1.data.building.parts import Part
    from realsr_r1.data.photos.sources import Item, Listing, Photo


def main(argv: list[str] | None = None) -> int:
    """Make a dataset folder. Returns the exit code; raises `UserError` on bad input."""
    args = parser().parse_args(argv)
    from realsr_r1.chain.spec import ChainSpec
    from realsr_r1.data.building import build
    from realsr_r1.reporting.dataset_page import PAGE_FILE, write_dataset_page

    if args.merge:
        check_output(args)
        state = build.merge_shards(args.output, write_dataset_page, args.overwrite)
        print(f"{args.output}: {state['summary']}\nto look at it: {args.output / PAGE_FILE}\n"
              f"{build.shards_folder(args.output)} is not needed any more")
        return _exit_code(state, args)
    check_arguments(args)
    check_output(args)
    target = args.shard.folder(args.output) if args.shard else args.output
    made_from = fingerprint(args)
    state = _finished_state(target, made_from)
    if state is not None:
        clear_leftovers(target)
        again = "; remove it to try the bad items again" if state.get("bad_count") else ""
        print(f"{target} is up to date, nothing to do{again}: {state['summary'].splitlines()[0]}")
        return _exit_code(state, args)
    chain = ChainSpec.from_yaml(args.chain_settings) if args.chain_settings else ChainSpec.published()
    plan = _plan_list(args, made_from, chain) if args.json else _plan_photos(args, made_from, chain)
    if args.shard:
        state = build.make_shard(args.output, args.shard, plan, args.overwrite)
    else:
        state = build.make_dataset(args.output, plan, write_dataset_page, args.overwrite)
    print(f"{target}: {state['summary']}")
    if not args.shard and state["records"]:
        print(f"to look at it: {target / PAGE_FILE}")
    return _exit_code(state, args)


def _exit_code(state: dict[str, Any], args: argparse.Namespace) -> int:
    """Return the exit code, or raise `UserError` where items were bad.

    Bad items of a shard are reported by --merge, which alone has all of them.
    """
    from realsr_r1.data.building.assembly import LEFT_OUT_FILE, REJECTED_FILE

    if args.shard:
        return 0
    files = [str(args.output / file) for count, file in (("bad_count", REJECTED_FILE),
                                                         ("left_out_count", LEFT_OUT_FILE))
             if state[count]]
    if not state["records"]:
        raise UserError(f"no good item among {state['bad_count'] + state['left_out_count']}, the first: "
                        f"{', '.join(state['bad'])}; all are listed in {' and '.join(files)}")
    if state["bad_count"] and not args.skip_bad:
        raise UserError(f"{state['bad_count']} bad item(s) left out, the first: {state['bad'][0]}; all are "
                        f"listed in {files[0]}, the others are done (--skip_bad accepts that)")
    return 0


def _finished_state(folder: Path, made_from: dict[str, Any]) -> dict[str, Any] | None:
    """Return the state of `folder` if it was already made from `made_from`."""
    from realsr_r1.data.building.build import STATE_FILE, ShardFile, StateFile

    file, way = folder / STATE_FILE, f"remove {folder} to make it again"
    if not file.is_file():
        return None
    state = read_json(file, dict[Text, Json], way)
    if state.get("fingerprint") == made_from:
        checked(StateFile if "records" in state else ShardFile, state, str(file), way)
        # Where no item was good, nothing is lost by another try.
        return state if state.get("records", 1) else None
    return None


# --- Plans ---

def _plan_photos(args: argparse.Namespace, made_from: dict[str, Any], chain: ChainSpec) -> Plan:
    """Plan crops of photos, split as the arguments say."""
    from realsr_r1.data.building.annotated import make_annotated_parts
    from realsr_r1.data.building.build import Plan
    from realsr_r1.data.building.jobs import PhotoJob, make_missing_parts
    from realsr_r1.data.building.parts import plan_parts
    from realsr_r1.data.degradation.config import DegradationConfig
    from realsr_r1.data.degradation.crops import CropPlan
    from realsr_r1.data.photos.annotation import (
        AnnotationConfig,
        annotating,
        annotating_crops,
        models,
        try_out,
    )
    from realsr_r1.data.photos.near_duplicates import hash_photos
    from realsr_r1.data.photos.sidecars import reader
    from realsr_r1.data.photos.sources import Item, all_photos, list_photos

    config = None if args.degradation_labeller else (
        DegradationConfig.from_yaml(args.degradation) if args.degradation else DegradationConfig())
    if config and args.crop_px % config.scale:
        raise UserError(f"--crop_px {args.crop_px} is no multiple of the degradation's scale {config.scale}")
    listing = list_photos(args.images, args.hf_dataset, args.hf_split)
    tags = None if args.tagger else reader(args.tags, "tag", listing.photos, images=args.images)
    levels = chain.levels
    if not levels and (args.captioner or args.descriptions):
        raise UserError(f"the chain of {args.chain_settings} describes nothing; drop --captioner and "
                        "--descriptions")
    descriptions = (reader(args.descriptions, "description", listing.photos, levels, args.images) if levels
                    and not args.captioner
                    else None)
    if listing.photos and tags is None and not args.tagger:
        also = f"; besides, {listing.rejected[0]}" if listing.rejected else ""
        raise UserError(f"give the photos' tags: --tags DIR, --tags FILE.jsonl or --tagger MODEL "
                        f"({args.images or args.hf_dataset} has none{also})")
    asking = AnnotationConfig.from_yaml(args.annotation) if args.annotation else AnnotationConfig()
    rejected = _with_orphans(args, listing, [tags, descriptions])
    test = _test_photos(args, listing)
    counts = {True: {"test": max(1, args.test_crops_per_photo)},
              False: {"train": args.crops_per_photo, "test_crops": args.test_crops_per_photo}}
    parts = plan_parts((photo, counts[photo.name in test]) for photo in listing.photos)
    crop_plan = CropPlan(args.crop_px, args.scales, args.test_crops_per_photo > 0, args.seed, config,
                         chain.question)

    of_others: list[Photo] = []
    for folder in args.evaluation_photos:
        photos, bad = all_photos(folder)
        if not photos and not bad:
            raise UserError(f"{folder} (given by --evaluation_photos) has no images")
        of_others += photos
        rejected += bad

    def make(work: Path, parts: Sequence[Part]) -> list[Item]:
        kept = [photo for photo in listing.photos if photo.name in test]
        named = {"tag": args.tagger, "description": args.captioner, "label": args.degradation_labeller}
        with models(named, asking, levels) as asked:
            of_crops = {kind: model for kind, model in asked.items()
                        if args.annotate == "crop" or kind == "label"}
            try_out(of_crops, listing.photos)
            evaluation = hash_photos(kept + of_others, work / "parts" / "evaluation", args.num_proc)
            job = PhotoJob(work, crop_plan, tags, descriptions, evaluation, {}, test)
            others = [photo for photo in listing.photos
                      if photo.name not in test] if args.test_crops_per_photo else []
            usable = hash_photos(others, work / "parts" / "others", args.num_proc,
                                 lambda some: job.for_photos(some).usable)
            job = replace(job, twins=usable.twins())
            of_photos = annotating(parts, {kind: model for kind, model in asked.items()
                                           if kind not in of_crops}, asking, levels)
            if of_crops:
                side = "hq_path" if args.annotate_side == "hq" else "image_path"
                make_annotated_parts(job, parts, args.num_proc, side, of_photos,
                                     annotating_crops(of_crops, asking, levels))
            else:
                make_missing_parts(job, parts, args.num_proc, of_photos)
        return [Item(photo.name, f"its copies can't be kept out of training: {evaluation.unread[number]}")
                for number, photo in enumerate(kept + of_others) if number >= len(kept)
                and number in evaluation.unread]

    return Plan(made_from, parts, rejected, listing.left_out, True, make)


def _with_orphans(args: argparse.Namespace, listing: Listing, readers: Sequence[Any]) -> list[Any]:
    """Return what is wrong with the listing: rejected photos, and sidecars without a photo."""
    names = [one.name for one in (*listing.rejected, *listing.left_out, *listing.photos)]
    source = str(args.images or args.hf_dataset)
    return listing.rejected + [item for one in readers if one is not None
                               for item in one.orphans(names, source)]


def _test_photos(args: argparse.Namespace, listing: Listing) -> frozenset[str]:
    """Return the names of the photos that --test_photos names.

    It may give the name or the file name, with or without suffix, of either view of a pair.
    """
    from realsr_r1.data.photos.sources import first_view

    text = args.test_photos
    if text.startswith("@"):
        names = split_lines(read_text(Path(text[1:]), "--test_photos"))
    else:
        names = split_list(text)
    wanted = {composed(name) for name in names}
    known: dict[str, set[str]] = {}
    for item in [*listing.photos, *listing.rejected, *listing.left_out]:
        stem = stem_of(item.name)
        names = set(map(composed, (item.name, stem, Path(item.name).name, Path(stem).name)))
        for name in names & wanted:
            known.setdefault(name, set()).update((stem, first_view(stem) or stem))
    for name in sorted(wanted - known.keys()):
        raise UserError(f"--test_photos names {name!r}, which isn't in {args.images or args.hf_dataset}")
    stems = {stem for found in known.values() for stem in found}
    return frozenset(photo.name for photo in listing.photos if photo.stem in stems)


def _plan_list(args: argparse.Namespace, made_from: dict[str, Any], chain: ChainSpec) -> Plan:
    """Plan the records of --json that are valid."""
    from realsr_r1.chain.settings import question_in
    from realsr_r1.data.building.build import Plan
    from realsr_r1.data.building.jobs import ListJob, make_missing_parts
    from realsr_r1.data.building.parts import plan_list
    from realsr_r1.data.records import read_list, usual_keys

    root = args.images or args.json.parent
    records = read_list(args.json)
    _refuse_images_in_output(records, root, args.output)

    def make(work: Path, parts: Sequence[Part]) -> list[Item]:
        job = ListJob(work, args.json, root, usual_keys(records), chain.levels,
                      question_in(args.chain_settings))
        make_missing_parts(job, parts, args.num_proc)
        return []

    return Plan(made_from, plan_list(records), [], [], False, make)


def _refuse_images_in_output(records: Sequence[Any], root: Path, output: Path) -> None:
    """Raise `UserError` where --output, which is written anew, holds images of the list."""
    from realsr_r1.data.building.arrow_rows import COLUMN_OF_KEY

    root, output = root.resolve(), output.resolve()
    for record in records:
        for key in COLUMN_OF_KEY:
            name = record.get(key) if isinstance(record, dict) else None
            if isinstance(name, str) and Path(os.path.normpath(root / name)).is_relative_to(output):
                raise UserError(f"the list's image {name} lies inside --output {output}, which is written "
                                "anew; give another --output")


if __name__ == "__main__":
    run(main)
