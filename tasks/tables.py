"""Reads tables of problems: JSON Lines, JSON, CSV and Parquet files, Hugging Face data sets, and folders that hold one.

Everything raises OSError or ValueError, whose text says what is wrong in words of a configuration.
"""

import csv
import gzip
import io
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs.errors import nearest
from runtime.hub import look_for_hub
from tasks.json_rows import Row, parse_json_rows

KINDS = (".jsonl", ".json", ".csv", ".parquet")
PACKED = ".gz"
"""Ends the name of a packed file, which is of one of the first three kinds."""
LONGEST_FIELD = 2**27
"""Characters of a field of a CSV file."""
SAVED = ("dataset_dict.json", "state.json")
"""Files of a folder that `save_to_disk` of the `datasets` library wrote: of one with splits, of one without."""


def kind_of(path: Path) -> str | None:
    """Returns which of `KINDS` a file is by its name, `.gz` left out; None where it is no such file's."""
    packed = path.suffix == PACKED
    kind = path.with_suffix("").suffix if packed else path.suffix
    return kind if kind in KINDS and not (packed and kind == ".parquet") else None


def stem_of(path: Path) -> str:
    """Returns a file's name without its kind."""
    return path.with_suffix("").stem if path.suffix == PACKED else path.stem


def read_file(path: Path) -> Any:
    """Returns the rows of a file: mappings of fields to values. In JSON and CSV files every value is as it is written."""
    kind = kind_of(path)
    if not path.is_file():
        raise ValueError(f"there is no such file here ({Path.cwd()})")
    if kind is None:
        raise ValueError(
            f"it is of no known kind: expected one of {', '.join(KINDS)}, all but the last also with {PACKED}"
        )
    if path.stat().st_size == 0:
        raise ValueError("it is empty")
    if kind == ".parquet":
        from datasets import Dataset, disable_progress_bars
        from datasets.exceptions import DatasetGenerationError

        disable_progress_bars()
        try:
            return Dataset.from_parquet(str(path))
        except DatasetGenerationError as error:
            raise ValueError(f"it can't be read: {error.__cause__ or error}") from error
    text = _text(path)
    return parse_csv_rows(text) if kind == ".csv" else parse_json_rows(text)


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
        if path.suffix == PACKED:
            data = gzip.decompress(data)
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"it is not UTF-8 text (byte {error.start}): if it is Latin-1, `iconv -f LATIN1 -t UTF-8` converts it"
        ) from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"it is not a whole gzip file: {error}") from error


def parse_csv_rows(text: str) -> list[Row]:
    """Returns the rows of a CSV file as mappings of texts; its first line names the fields.

    Raises ValueError, which names the line, for a line of more or fewer fields and for a name that is there twice.
    """
    csv.field_size_limit(LONGEST_FIELD)
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows = []
    try:
        # Blank lines count nowhere.
        names = [name.strip() for name in next((values for values in lines if values), [])]
        if len(set(names)) < len(names):
            raise ValueError(f"the field {next(name for name in names if names.count(name) > 1)!r} is there twice")
        for values in lines:
            if values and len(values) != len(names):
                raise ValueError(
                    f"line {lines.line_num} ends a row of {len(values)} fields, the first has {len(names)}"
                )
            if values:
                rows.append(dict(zip(names, values, strict=True)))
    except csv.Error as error:
        raise ValueError(f"line {lines.line_num} is not CSV: {error}") from error
    return rows


def read_dataset(name: str, subset: str | None, split: str | None) -> Any:
    """Returns the rows of a data set: one of the hub, a folder of files, or a folder that a data set was saved to."""
    if not Path(name).is_dir():
        look_for_hub()
    from datasets import disable_progress_bars, load_dataset
    from datasets.exceptions import DatasetsError

    disable_progress_bars()
    if any(Path(name, file).is_file() for file in SAVED) and not Path(name, "README.md").exists():
        return _read_saved(name, subset, split)
    if tables := sorted(Path(name).rglob("*.csv*")):
        # The library gives columns types: 007 becomes 7, and a column too many moves all others.
        raise ValueError(
            f"it holds CSV files, whose values would not stay as they are: name one as a file, as {tables[0]}"
        )
    try:
        return load_dataset(name, subset, split=split or "train")
    # A missing set or host is an OSError, an unknown subset or split a ValueError.
    except (DatasetsError, OSError, ValueError) as error:
        raise ValueError(_in_our_words(str(error.__cause__ or error), subset)) from error


def _in_our_words(text: str, subset: str | None) -> str:
    """Returns what the library says, without the calls that it advises."""
    names = re.search(r"(?:among the available configs|Available): \[(.*?)\]", text)
    if names:
        known = re.findall(r"'([^']*)'", names[1])
        return f"no subset {subset!r}{nearest(subset, known)}" if subset else _subsets(known)
    if "OfflineModeIsEnabled" in text:
        return "the hub cannot be reached from here, and this host has not loaded it before: check the name and the network"
    return text.strip().splitlines()[0] if text.strip() else "it cannot be read"


def _subsets(names: Sequence[str]) -> str:
    return f"it has the subsets {', '.join(names)}: name one (`subset`, or NAME:SUBSET:SPLIT on a command line)"


def _read_saved(name: str, subset: str | None, split: str | None) -> Any:
    from datasets import DatasetDict, load_from_disk

    if subset is not None:
        raise ValueError(f"a data set that was saved to a folder has no subsets, and {subset!r} is asked for")
    try:
        saved = load_from_disk(name)
    except (KeyError, TypeError, AttributeError, OSError, ValueError) as error:
        raise ValueError(f"the data set that was saved there is damaged ({type(error).__name__}: {error})") from error
    if isinstance(saved, DatasetDict):
        wanted = split or "train"
        if wanted not in saved:
            raise ValueError(f"no split {wanted!r}{nearest(wanted, list(saved))}")
        return saved[wanted]
    if split is not None:
        raise ValueError(f"the data set in this folder has no splits, and {split!r} is asked for")
    return saved
