"""Reads the text of JSON Lines and JSON files as rows, with every number exact.

Readers of tables give a column one type: integers beside a fraction, or above 2^53, become floats that are other numbers,
and texts that look like dates become dates. A gold answer must stay what it is in the file.
"""

import json
from decimal import Decimal
from typing import Any

Row = dict[str, Any]
MAX_DIGITS = 400


def parse_json_rows(text: str) -> list[Row]:
    """Returns the objects of a text: one a line, or all in one array. Numbers are texts of their digits, without exponents.

    Raises ValueError, which names the line, for what is no JSON or no object.
    """
    if text.lstrip().startswith("["):
        rows = [(f"entry {number}", entry) for number, entry in enumerate(_parse(text, "the array"))]
    else:
        lines = enumerate(text.split("\n"), start=1)
        rows = [(f"line {number}", _parse(line, f"line {number}")) for number, line in lines if line.strip()]
    for where, row in rows:
        if not isinstance(row, dict):
            raise ValueError(f"{where} is no object: one object a line is expected, or one array of objects")
    return [row for _, row in rows]


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(
            text, parse_int=str, parse_float=positional, parse_constant=_refuse, object_pairs_hook=_without_repeats
        )
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{where} is not JSON ({error}): one object a line is expected, or one array of objects"
        ) from error


def positional(number: str) -> str:
    """Returns a decimal number without an exponent: graders take the e of 1e-05 for Euler's number.

    Raises ValueError for one of more than `MAX_DIGITS` digits.
    """
    if "e" not in number.lower():
        return number
    exact = Decimal(number)
    if abs(exact.adjusted()) > MAX_DIGITS:
        raise ValueError(f"the number {number} has more than {MAX_DIGITS} digits")
    return format(exact, "f")


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no number")


def _without_repeats(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the field {next(name for name in names if names.count(name) > 1)!r} is there twice")
    return row
