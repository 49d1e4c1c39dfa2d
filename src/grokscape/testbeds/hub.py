"""Data sets of the Hugging Face hub or of a local folder, read by `datasets`.

A local folder may hold images in one folder per class (under `train/` and `test/`, or `validation/`), or CSV, JSON
lines or Parquet files; which split a file belongs to follows from its name. `datasets` is an optional dependency.
"""

import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch import Tensor

_HELD_OUT = ("test", "validation", "valid", "val", "dev")
_EXTRA = "pip install 'grokscape[hf]'"


class DataNotHere(FileNotFoundError):
    """Data, a model or a tokenizer, neither on this machine nor within reach; the message says how to get it."""


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ImportError(f"data sets of the hub or of a folder need the package `datasets`: {_EXTRA}") from error
    return datasets


def load_tables(source: str, config: str | None = None) -> tuple[Any, Any]:
    """Train and held-out table of a data set.

    Args:
        source: a folder, or a name on the hub such as "uoft-cs/cifar10".
        config: which of the hub's configurations; of a folder, the folder in it.

    Returns:
        Two `datasets.Dataset`s.

    Raises:
        DataNotHere: it is no folder, not in the cache, and the hub cannot be reached or does not have it.
        ValueError: there is no training split, no held-out split, or no data in the folder.
        ImportError: `datasets` is not installed.
    """
    datasets = _datasets()
    folder = Path(source).expanduser()
    if folder.is_dir():
        folder = folder / (config or "")
        if not folder.is_dir():
            raise ValueError(f"{source} holds no folder {config}, which config asks for; leave it out or name another")
        found = _from_folder(datasets, folder)
    elif _names_a_folder(source):
        raise DataNotHere(f"the folder {source} does not exist; give a folder with data, or a name on the hub")
    else:
        found = _from_hub(datasets, source, config)
    names = list(found)
    held_out = next((name for name in _HELD_OUT if name in names), None)
    if "train" not in names or held_out is None:
        raise ValueError(
            f"expected a train split and one of {', '.join(_HELD_OUT)} in {source}, found {', '.join(names) or 'none'}"
        )
    return found["train"], found[held_out]


def _from_folder(datasets: Any, folder: Path) -> Any:
    partly: dict[str, list[str]] = {}
    progress = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        for kind, suffix in (("parquet", ".parquet"), ("csv", ".csv"), ("json", ".jsonl")):
            splits = _by_split(folder, sorted(folder.rglob(f"*{suffix}")))
            if "train" in splits and len(splits) > 1:  # else files that happen to lie there
                return _from_files(datasets, folder, kind, splits)
            partly |= splits
    finally:
        if progress:
            datasets.enable_progress_bars()
    if pictures := _pictures(folder):
        return _tables_of(datasets, folder, pictures)
    if partly:
        return partly
    raise ValueError(
        f"{folder} holds no data that is understood here: expected folders train/ and test/ with one folder of images "
        f"per class, or CSV, JSON lines or Parquet files with train and test in their names"
    )


def _from_files(datasets: Any, folder: Path, kind: str, splits: dict[str, list[str]]) -> Any:
    """Tables of files of one kind; a ValueError that says why they cannot be read."""
    if kind != "parquet":
        _check_encoding([file for files in splits.values() for file in files])
    exact = {"keep_default_na": False} if kind == "csv" else {}  # "null" is a word, too
    try:
        return datasets.load_dataset(kind, data_files=splits, **exact)
    except (datasets.exceptions.DatasetsError, ValueError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise ValueError(
            f"the {kind} files of {folder} cannot be read together ({reason}); expected the same columns, of the same "
            f"types, in all of them, and at least one row in each"
        ) from None


def _check_encoding(files: list[str]) -> None:
    for file in files:
        try:
            with open(file, encoding="utf-8") as lines:
                for _ in lines:
                    pass
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{file} is not UTF-8 ({error.reason}: byte 0x{error.object[error.start]:02x}); convert it, with "
                f"iconv for instance"
            ) from None


def _pictures(folder: Path) -> dict[str, dict[str, list[Path]]]:
    """Split → class → images, of folders train/CLASS/ and the like, as deep as they lie; hidden files are left out."""
    from PIL import Image

    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}

    def wanted(file: Path) -> bool:
        """Whether it is an image, and not hidden."""
        return file.suffix.lower() in endings and not any(p.startswith(".") for p in file.relative_to(folder).parts)

    found: dict[str, dict[str, list[Path]]] = {}
    for split in [name for name in ("train", *_HELD_OUT) if (folder / name).is_dir()]:
        for place in sorted((folder / split).iterdir()):
            if place.is_dir():
                files = [Path(parent) / name for parent, _, names in os.walk(place) for name in names]
                if images := sorted(filter(wanted, files)):
                    found.setdefault(split, {})[place.name] = images
            elif wanted(place):
                raise ValueError(f"{place} is an image beside the folders of classes; put it into the one of its class")
    return found


def _tables_of(datasets: Any, folder: Path, pictures: dict[str, dict[str, list[Path]]]) -> Any:
    """Tables with columns image and label; classes are those of the training set, in alphabetical order."""
    if "train" not in pictures:
        return pictures
    classes = sorted(pictures["train"])
    if len(classes) == 1:
        raise ValueError(f"expected folders of two or more classes in {folder / 'train'}, got {classes[0]} alone")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=classes)})
    tables = {}
    for split, by_class in pictures.items():
        if unknown := sorted(set(by_class) - set(classes)):
            raise ValueError(
                f"expected folders of {folder / split} to be classes of {folder / 'train'} ({', '.join(classes)}), "
                f"got {', '.join(unknown)} too; rename them, or leave them out"
            )
        rows = [(str(file), classes.index(name)) for name, files in by_class.items() for file in files]
        columns = {"image": [file for file, _ in rows], "label": [label for _, label in rows]}
        tables[split] = datasets.Dataset.from_dict(columns, features=features)
    return tables


def _by_split(folder: Path, files: list[Path]) -> dict[str, list[str]]:
    """Files by the split that their path names; a word that begins so counts before one that merely contains it."""
    splits: dict[str, list[str]] = {}
    for file in files:
        path = str(file.relative_to(folder)).lower()
        ways = ((begin, name) for begin in ("(?<![a-z])", "") for name in ("train", *_HELD_OUT))
        name = next((name for begin, name in ways if re.search(begin + name, path)), None)
        if name is not None:
            splits.setdefault(name, []).append(str(file))
    return splits


def _from_hub(datasets: Any, source: str, config: str | None) -> Any:
    try:
        with _without_waiting(datasets.config):
            return datasets.load_dataset(source, config)
    except (OSError, ValueError) as error:
        raise DataNotHere(_how_to_get(source, error)) from None


def pretrained(load: Callable[[str], Any], name: str, what: str) -> Any:
    """A model or a tokenizer of transformers, by its name on the hub or from a folder.

    Args:
        load: a `from_pretrained`.
        name: as people give it.
        what: what it is, for messages.

    Raises:
        DataNotHere: it is no folder, not in the cache, and the hub cannot be reached or does not have it.
        ValueError: the folder holds nothing of the kind.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        try:
            return load(str(folder))
        except (OSError, ValueError) as error:
            raise ValueError(
                f"the folder {name} holds no {what} that transformers can read ({first_line(error)}); expected what "
                f"its save_pretrained writes"
            ) from error
    if _names_a_folder(name):
        raise DataNotHere(f"the folder {name} does not exist; give a folder with a {what}, or a name on the hub")
    try:
        with _without_waiting():
            return load(name)
    except (OSError, ValueError) as error:
        raise DataNotHere(
            f"the {what} {name!r} is not on this machine, and the hub did not give it ({first_line(error)}). Where "
            f"there is a connection: `hf download {name} --local-dir models/{name.split('/')[-1]}`; then bring the "
            f"folder here and give it as the {what}'s name"
        ) from error


def _names_a_folder(source: str) -> bool:
    return source.startswith((".", "/", "~")) or source.count("/") > 1


def first_line(error: Exception) -> str:
    """What an error says first, for a message of one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextmanager
def _without_waiting(*settings: Any) -> Iterator[None]:
    """Ask the cache alone while the hub cannot be reached; `settings` are other modules with a switch for that."""
    import huggingface_hub.constants as hub

    before = [(place, place.HF_HUB_OFFLINE) for place in (hub, *settings)]
    if not _reachable(hub.ENDPOINT):
        for place, _ in before:
            place.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for place, offline in before:
            place.HF_HUB_OFFLINE = offline


def _reachable(endpoint: str) -> bool:
    if os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        return True
    address = urlparse(endpoint)
    try:
        socket.create_connection((address.hostname or "", address.port or 443), timeout=5).close()
    except OSError:
        return False
    return True


def _how_to_get(source: str, error: Exception) -> str:
    place = f"data/{source.split('/')[-1]}"
    return (
        f"the data set {source!r} is not on this machine, and the hub did not give it ({first_line(error)}). Where "
        f"there is a connection: `hf download {source} --repo-type dataset --local-dir {place}`; then bring the folder "
        f"here and add `--data {place}` to the command. Or run the same design on data that ships: `--scale small`"
    )


def column_of(table: Any, wanted: str | None, usual: tuple[str, ...], what: str) -> str:
    """A column by name, or the first of the usual names that is there.

    Raises:
        ValueError: there is none.
    """
    names = list(table.column_names)
    found = wanted if wanted in names else None if wanted else next((name for name in usual if name in names), None)
    if found is None:
        expected = repr(wanted or " or ".join(usual))
        raise ValueError(f"found no column {expected} for {what}; the columns are {', '.join(names)}")
    return found


def labels_of(table: Any, column: str) -> Tensor:
    """A column of class indices, int64 (N).

    Raises:
        ValueError: something else is in it, or samples without a label.
    """
    labels = []
    for value in table[column]:
        try:
            whole = float(value) % 1 == 0
        except (TypeError, ValueError):
            whole = False
        if not whole:
            raise ValueError(
                f"column {column!r} must hold a class index for each sample, whole numbers from 0, got {value!r}; "
                f"number the classes, and leave out samples without one"
            )
        labels.append(int(float(value)))
    if min(labels, default=0) < 0:
        raise ValueError(f"column {column!r} has samples without a label (−1); use a split with labels")
    return torch.tensor(labels, dtype=torch.int64)
