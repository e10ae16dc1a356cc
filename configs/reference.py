"""The reference of every configuration field, made from the schema's own descriptions."""

from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from configs.schema import RunConfig

HEADER = """# Every configuration field

Made from `configs/schema.py` by `scripts/document_configuration`. A file names what differs from the defaults;
`--set section.field=value` overrides; `zerotir config CONFIG` prints the result. Unknown fields are errors.
"""


def configuration_reference() -> str:
    """docs/configuration.md."""
    return HEADER + "".join(_section(RunConfig, ""))


def _section(model: type[BaseModel], path: str) -> list[str]:
    title = f"`{path}`" if path else "Top level"
    table = "| field | type | default | meaning |\n| --- | --- | --- | --- |\n"
    lines = [f"\n## {title}\n\n{(model.__doc__ or '').strip()}\n\n{table}"]
    below: list[str] = []
    for name, field in model.model_fields.items():
        kind: Any = field.annotation
        where = f"{path}.{name}" if path else name
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            below += _section(kind, where)
            continue
        default = "required" if field.default is PydanticUndefined else f"`{field.default!r}`"
        meaning = " ".join((field.description or "").split()).replace("|", "\\|")
        lines.append(f"| `{where}` | {_type(kind)} | {default} | {meaning} |\n")
    return [*lines, *below] if len(lines) > 1 else below


def _type(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(f"`{value}`" for value in get_args(kind))
    if isinstance(kind, type):
        return kind.__name__
    return str(kind).replace("typing.", "").replace("|", "or")
