"""Writes files of problems."""

import json
from pathlib import Path


def write_jsonl(path: Path, rows: list[dict]) -> str:
    """Writes rows as JSON Lines; returns the path as a configuration has it."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)
