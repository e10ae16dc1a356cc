"""Reads JSON Lines and JSON files as rows, with every number as it is written.

Readers of tables give a column one type: integers beside a fraction, or above 2^53, become floats that are other numbers,
and texts that look like dates become dates. A gold answer must stay what it is in the file.
"""

import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def read_json_rows(path: Path) -> list[Row]:
    """Returns the objects of a file: one a line, or all in one array. Numbers are their text.

    Raises ValueError, which names the line, for what is no JSON or no object, and OSError.
    """
    text = path.read_text(encoding="utf-8")
    if text.lstrip().startswith("["):
        rows = [(f"entry {number}", entry) for number, entry in enumerate(_parse(text, "the array"))]
    else:
        lines = enumerate(text.split("\n"), start=1)
        rows = [(f"line {number}", _parse(line, f"line {number}")) for number, line in lines if line.strip()]
    for where, row in rows:
        if not isinstance(row, dict):
            raise ValueError(f"{where} is no object with fields")
    return [row for _, row in rows]


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text, parse_int=str, parse_float=str, parse_constant=str)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON: {error}") from error
