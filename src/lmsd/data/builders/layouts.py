"""What lies at a path, as the tools that people use leave it: `lmsd data build PATH out=DIR` looks and says.

    folder        images, a .txt or .caption beside each
    imagefolder   Hugging Face's: metadata.jsonl, .csv or .parquet inside the folder, or inside each split's
    classes       one folder a class (below train/, val/, test/ or not), no captions
    kohya         folders named 10_dog: each of their pictures comes ten times an epoch
    coco          captions_*.json beside the images, several captions an image
    table         one .csv, .tsv, .jsonl or .parquet that names the images
    parquet       .parquet files that hold the images
    tars          shards of img2dataset, or of any other program that writes webdataset's

Nothing is guessed: a path that looks like two of them is refused, and `source=` says which is meant.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from lmsd.data.builders import parquet, tars
from lmsd.data.builders.captions import SUFFIXES as TABLES
from lmsd.data.builders.entries import Entry, File, Spilled, files_under, source_of
from lmsd.data.builders.folder import beside, folder_source
from lmsd.data.builders.listed import by_table
from lmsd.data.builders.source import Captions, Dropped, LayoutName, Source
from lmsd.data.names import TEXTS, grouped, is_image
from lmsd.data.notes import Notes
from lmsd.data.shards import split_word
from lmsd.data.text import BadText, captions
from lmsd.errors import UserError

MOST_REPEATS = 500
_REPEATS = re.compile(r"(\d+)_(.+)")
_UNFINISHED = (".incomplete", ".part", ".crdownload", ".aria2", ".download", ".partial")
_METADATA = tuple(f"metadata{suffix}" for suffix in TABLES)


@dataclass(frozen=True)
class Found:
    """Files of a path, and by layout what in them says so."""

    path: Path
    files: list[File]
    evidence: dict[LayoutName, str]


def recognized(path: Path) -> tuple[LayoutName, str]:
    """The layout at a path, and what says so. UserError when it looks like none, or like several."""
    found = _looked_at(path)
    if not found.evidence:
        raise UserError(f"{path} holds no images, tables of images or shards that lmsd data build knows")
    if len(found.evidence) > 1:
        kinds = " and ".join(f"{name} ({why})" for name, why in found.evidence.items())
        first, second = list(found.evidence)[:2]
        raise UserError(f"{path} looks like {kinds}: say which by source={first} or source={second}")
    return next(iter(found.evidence.items()))


def layout_source(name: LayoutName, path: Path | None, lines: Captions) -> Source:
    """The pictures at a path, read as the layout `name`; lines: what several lines of a caption give.

    UserError when the path does not hold that layout, or no picture of it can be used.
    """
    if path is None:
        here = f"; the one of that name here is ./{name}" if Path(name).exists() else ""
        raise UserError(f"the source {name} needs path=, the folder or the file{here}")
    if name == "folder":
        return folder_source(path, None, lines)
    if not path.exists():
        raise UserError(f"path={path} is not there")
    dropped: list[Dropped] = []
    root = path if path.is_dir() else path.parent
    files = _finished(files_under(root, dropped))
    if not path.is_dir() and name in ("coco", "table", "parquet", "tars"):
        mine = File(path.name, path)
        files = [mine, *(file for file in files if name in ("coco", "table") and is_image(file.name))]
    source = _READERS[name](root, files, dropped, lines)
    if not source.total:
        why = f"; {dropped[0].name}: {dropped[0].reason}" if dropped else ""
        raise UserError(f"no picture under {path} can be used as {name}{why}")
    return source


def _looked_at(path: Path) -> Found:
    if path.is_dir():
        files = _finished(files_under(path, []))
        return Found(path, files, _folder_evidence(files))
    if not path.is_file():
        raise UserError(f"{path} is not there")
    suffix = path.suffix.lower()
    evidence: dict[LayoutName, str] = {}
    if suffix == ".tar":
        evidence["tars"] = path.name
    elif suffix == ".json" and _is_coco(path):
        evidence["coco"] = path.name
    elif suffix == ".parquet":
        held = parquet.image_column(path)
        evidence["parquet" if held else "table"] = f"its column {held}" if held else path.name
    elif suffix in TABLES:
        evidence["table"] = path.name
    return Found(path, [File(path.name, path)], evidence)


def _finished(files: list[File]) -> list[File]:
    """The files, none of which is a download that has not ended."""
    broken = next((file for file in files if file.name.lower().endswith(_UNFINISHED)), None)
    if broken is not None:
        raise UserError(f"{broken.path} is a download that did not end: fetch it again, or remove it")
    return files


def _folder_evidence(files: list[File]) -> dict[LayoutName, str]:
    """By layout, what in a folder's files says so."""
    images = [file.name for file in files if is_image(file.name)]
    evidence: dict[LayoutName, str] = {}
    shards = [file for file in files if file.name.lower().endswith(".tar")]
    if shards:
        _whole(shards, files)
        evidence["tars"] = shards[0].name
    tables = [file for file in files if file.name.lower().endswith(TABLES)]
    metadata = [file for file in tables if PurePosixPath(file.name).name.lower() in _METADATA]
    coco = next((file.name for file in files if file.name.endswith(".json") and _is_coco(file.path)), None)
    repeated = [name for name in images if _repeat(name)]
    if images and coco is not None:
        evidence["coco"] = coco
    if images and metadata:
        evidence["imagefolder"] = metadata[0].name
    if repeated:
        evidence["kohya"] = repeated[0].rpartition("/")[0] + "/"
    others = [name for name in images if name not in {*repeated} and "reg" not in _folders(name)]
    text = _text_beside([file for file in files if not _repeat(file.name)]) if others else None
    if text is not None and not metadata:
        evidence["folder"] = text
    if not images and not shards:
        held = [file for file in tables if file.name.lower().endswith(".parquet")]
        if held and parquet.image_column(held[0].path):
            evidence["parquet"] = held[0].name
    if images and not evidence:
        evidence |= _plain_evidence(images, tables)
    return evidence


def _plain_evidence(images: list[str], tables: list[File]) -> dict[LayoutName, str]:
    """Images without texts: by their table, by their folders, or bare."""
    if tables:
        if len(tables) > 1:
            names = ", ".join(file.name for file in tables[:3])
            raise UserError(
                f"several tables may hold the captions ({names}): name one in place of the folder"
            )
        return {"table": tables[0].name}
    classes = {_class_of(name) for name in images}
    if None not in classes and len(classes) > 1:
        return {"classes": ", ".join(sorted(str(name) for name in classes)[:3])}
    return {"folder": "images alone"}


def _text_beside(files: list[File]) -> str | None:
    """A text of the same name as an image."""
    for group in grouped([file.name for file in files]).values():
        suffixes = dict(group)
        text = next((suffix for suffix in (*TEXTS, "json", "cls") if suffix in suffixes), None)
        if text is not None and any(is_image(f"x.{suffix}") for suffix in suffixes):
            return files[suffixes[text]].name
    return None


def _whole(shards: list[File], files: list[File]) -> None:
    """Whether img2dataset, which writes NNNNN_stats.json last, has ended every shard."""
    names = {file.name for file in files}
    stats = {file.name: f"{file.name[: -len('.tar')]}_stats.json" for file in shards}
    if any(name in names for name in stats.values()):
        broken = next((name for name, stat in stats.items() if stat not in names), None)
        if broken is not None:
            raise UserError(
                f"{broken} has no {stats[broken]}: img2dataset has not finished it, so run that again, or "
                "remove the shard"
            )


def _folders(name: str) -> list[str]:
    return name.split("/")[:-1]


def _class_of(name: str) -> str | None:
    """The class that an image's folder names: the first that is no split."""
    folders = _folders(name)
    if folders and split_word(folders[0]):
        folders = folders[1:]
    return folders[0] if folders else None


def _is_coco(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(1 << 16)
        if b'"images"' not in head and b'"annotations"' not in head and b'"info"' not in head:
            return False
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and {"images", "annotations"} <= found.keys()


def _imagefolder(root: Path, files: list[File], dropped: list[Dropped], lines: Captions) -> Source:
    """Each folder that has a table, with the images below it; splits by the words of folders' names."""
    tables = [file for file in files if PurePosixPath(file.name).name.lower() in _METADATA]
    if not tables:
        raise UserError(f"there is no metadata.jsonl, .csv or .parquet under {root}")
    left = [file for file in files if is_image(file.name)]
    entries: list[Entry] = []
    for table in sorted(tables, key=lambda file: -file.name.count("/")):
        folder = table.name.rpartition("/")[0]
        below = [file for file in left if not folder or file.name.startswith(f"{folder}/")]
        cut = len(folder) + 1 if folder else 0
        named = [File(file.name[cut:], file.path) for file in below]
        gone: list[Dropped] = []
        for entry in by_table(table.path.parent, named, table.path, gone):
            name = f"{folder}/{entry.name}".lstrip("/")
            entries.append(replace(entry, name=name, split=_split(name)))
        dropped += [Dropped(f"{folder}/{each.name}".lstrip("/"), each.reason) for each in gone]
        left = [file for file in left if file not in below]
    dropped += [Dropped(file.name, "no caption: no metadata names it") for file in left]
    return source_of("imagefolder", _sorted(entries), lines, dropped=dropped, where="the metadata")


def _split(name: str) -> Any:
    return next(filter(None, map(split_word, _folders(name)[:2])), None)


def _sorted(entries: list[Entry]) -> list[Entry]:
    return sorted(entries, key=lambda entry: entry.name)


def _class_folders(root: Path, files: list[File], dropped: list[Dropped], lines: Captions) -> Source:
    """Images whose class is their folder's name."""
    entries = []
    for file in files:
        if is_image(file.name):
            label = _class_of(file.name)
            if label is None:
                dropped.append(Dropped(file.name, "no class: it lies in no folder of one"))
            else:
                split = split_word(_folders(file.name)[0])
                entries.append(Entry(*file, None, str(label), split))
    return source_of("classes", entries, "none", dropped=dropped)


def _kohya(root: Path, files: list[File], dropped: list[Dropped], lines: Captions) -> Source:
    """Folders named REPEATS_NAME: a picture without a text is captioned by its folder's name."""
    repeated = {file: found for file in files if (found := _repeat(file.name))}
    inside = [file for file in repeated if "reg" not in _folders(file.name)]
    apart = "regularization images, which are left out: prior preservation draws its own"
    other = "it lies in no folder named like 10_dog"
    for file in files:
        if is_image(file.name) and file not in inside:
            dropped.append(Dropped(file.name, apart if "reg" in _folders(file.name) else other))
    gone: list[Dropped] = []
    worded = beside(inside, gone, set(), bare=lines == "none")
    bare = {each.name for each in gone if each.reason.startswith("no caption")}
    dropped += [each for each in gone if each.name not in bare]
    notes, entries = Notes(), [*worded]
    for file in inside:
        if file.name in bare:
            notes.add("images without a text, captioned by their folder's name", file.name)
            entries.append(Entry(*file, [repeated[file][1]]))
    times = {file.name: max(count, 1) for file, (count, _) in repeated.items()}
    entries = [replace(entry, repeats=times[entry.name]) for entry in entries]
    return source_of("kohya", _sorted(entries), lines, dropped=dropped, notes=notes)


def _repeat(name: str) -> tuple[int, str] | None:
    """How often an image comes, and its name, by the innermost folder like 10_dog; a year is none."""
    found = next(filter(None, map(_REPEATS.fullmatch, reversed(_folders(name)))), None)
    return (int(found[1]), found[2]) if found and int(found[1]) <= MOST_REPEATS else None


def _coco(root: Path, files: list[File], dropped: list[Dropped], lines: Captions) -> Source:
    """Files of annotations, each with the images that it names; a split is what the file's name says."""
    images: dict[str, list[File]] = {}
    for file in files:
        if is_image(file.name):
            images.setdefault(PurePosixPath(file.name).name, []).append(file)
    entries: dict[str, Entry] = {}
    tables = [file for file in files if file.name.endswith(".json") and _is_coco(file.path)]
    worded = {file: found for file in tables if (found := _coco_captions(file.path))}
    if not worded:
        raise UserError(
            f"{tables[0].path if tables else root} has no captions: captions_*.json of COCO has them"
        )
    told: dict[File, tuple[File, list[str]]] = {}
    for table, found in worded.items():
        for name, texts in found.items():
            image = _coco_image(images.get(PurePosixPath(name).name, []), name, table)
            if image is None:
                dropped.append(Dropped(name, f"{table.name} names it, and it is no image under the folder"))
                continue
            first, known = told.setdefault(image, (table, []))
            before = len(known)
            if _coco_split(first) != _coco_split(table):
                raise UserError(
                    f"{image.name} is in two splits, by {first.name} and by {table.name}, and would be "
                    "learned and scored: take one of the two files away"
                )
            known += [text for text in texts if text not in known[:before]]
    for image, (table, texts) in told.items():
        try:
            entries[image.name] = Entry(*image, captions(texts), None, _coco_split(table))
        except BadText as error:
            dropped.append(Dropped(image.name, f"its caption cannot be used: {error}"))
    named = {file.name for found in images.values() for file in found} - entries.keys()
    dropped += [Dropped(name, "no caption: no annotations name it") for name in sorted(named)]
    return source_of("coco", _sorted(list(entries.values())), lines, dropped=dropped)


def _coco_split(table: File) -> Any:
    return split_word(PurePosixPath(table.name).stem)


def _coco_captions(path: Path) -> dict[str, list[str]]:
    """File name → captions, in the order of the annotations."""
    found = json.loads(path.read_bytes())
    try:
        names = {image["id"]: str(image["file_name"]) for image in found["images"]}
        texts: dict[str, list[str]] = {}
        for each in found["annotations"]:
            if "caption" in each:
                texts.setdefault(names[each["image_id"]], []).append(each["caption"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is cut or no file of COCO's ({error!r} is missing)") from error
    return texts


def _coco_image(candidates: list[File], name: str, table: File) -> File | None:
    """Of the images of that name the one in the folder that the annotations are about."""
    fitting = [file for file in candidates if f"/{file.name}".endswith(f"/{name}")]
    about = PurePosixPath(table.name).stem.removeprefix("captions_")
    return next((file for file in fitting if about in _folders(file.name)), fitting[0] if fitting else None)


def _table(root: Path, files: list[File], dropped: list[Dropped], lines: Captions) -> Source:
    """One table that names the images below its folder."""
    tables = [file for file in files if file.name.lower().endswith(TABLES)]
    if len(tables) != 1:
        raise UserError(f"{root} has {len(tables)} tables, where one is read: name the file")
    images = [file for file in files if is_image(file.name)]
    entries = by_table(root, images, tables[0].path, dropped)
    return source_of("table", entries, lines, dropped=dropped, where=str(tables[0].path))


def _parquet(root: Path, files: list[File], dropped: list[Dropped], lines: Captions) -> Source:
    held = [(file.name, file.path) for file in files if file.name.lower().endswith(".parquet")]
    entries, classes = parquet.entries_of(held, dropped)
    return source_of("parquet", entries, lines, dropped=dropped, classes=classes, where="the column label")


def _tars(root: Path, files: list[File], dropped: list[Dropped], lines: Captions) -> Source:
    held = [(file.name, file.path) for file in files if file.name.lower().endswith(".tar")]
    return source_of("tars", Spilled(tars.entries_of(held, dropped)), lines, dropped=dropped)


_READERS: dict[LayoutName, Callable[[Path, list[File], list[Dropped], Captions], Source]] = {
    "imagefolder": _imagefolder,
    "classes": _class_folders,
    "kohya": _kohya,
    "coco": _coco,
    "table": _table,
    "parquet": _parquet,
    "tars": _tars,
}
