"""The reference of every configuration field, made from the schema's own descriptions."""

from collections.abc import Sequence
from inspect import cleandoc
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from configs.agreement import EFFECTS
from configs.schema import RunConfig

HEADER = """# Every configuration field

Made from the schema (`configs/schema.py`) by `scripts/document_configuration`. A file names what differs from the defaults;
`--set section.field=value` overrides; `zerotir config CONFIG` prints the result. Unknown fields are errors.

A file with a `base`, a shipped configuration or another file beside it, holds what differs from that one:

```yaml
base: quickstart
learner: {steps: 40, optimizer: {lr: 1.0e-5}}
tasks:
  problems: {file: mine.jsonl, problem_field: question}
```

Sections are merged field by field. The source of problems (`tasks.problems`) and fields that hold names of the user's
(`mix`, `options`, `evaluation.data`) are replaced whole. The file's own name is the configuration's, unless it has a `name`.
"""


CHANGES = """
## What may change

What comes of another value than the run has, by field or section; where two rows fit, the more specific one applies.
On resume: `zerotir up --resume RUN --set ...`, and `zerotir bus` on the run's folder. In a replay: `zerotir replay RUN
--set ...`.
A role that is started by hand refuses another value of what makes up a run, and ignores what has no meaning for it.

| field | on resume | in a replay |
| --- | --- | --- |
"""


def configuration_reference() -> str:
    """Returns the text of docs/configuration.md."""
    rows = [f"| `{field}` | {effect['resume']} | {effect['replay']} |\n" for field, effect in EFFECTS.items()]
    return HEADER + "".join(_section(RunConfig, "")) + CHANGES + "".join(rows)


def _section(model: type[BaseModel], path: str) -> list[str]:
    title = f"`{path}`" if path else "Top level"
    table = "| field | type | default | meaning |\n| --- | --- | --- | --- |\n"
    lines = [f"\n## {title}\n\n{cleandoc(model.__doc__ or '')}\n\n{table}"]
    below: list[str] = []
    for name, field in model.model_fields.items():
        kind: Any = field.annotation
        where = f"{path}.{name}" if path else name
        if _is_section(kind):
            below += _section(kind, where)
            continue
        if named := _named_section(kind):
            below += _section(named, f"{where}.NAME")
        default = "required" if field.default is PydanticUndefined else f"`{field.default!r}`"
        meaning = " ".join((field.description or "").split()).replace("|", "\\|")
        lines.append(f"| `{where}` | {_type(kind, field.metadata)} | {default} | {meaning} |\n")
    return [*lines, *below] if len(lines) > 1 else below


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _named_section(kind: Any) -> type[BaseModel] | None:
    """Returns the section that a mapping gives to each name."""
    return get_args(kind)[1] if get_origin(kind) is dict and _is_section(get_args(kind)[1]) else None


def _type(kind: Any, limits: Sequence[Any]) -> str:
    """Returns `kind` in words, with `limits`, pydantic's or those of an `Annotated`."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _type(inner[0], inner[1:])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in inner)
    if _named_section(kind):
        return "a section for each name, see below"
    if origin in (Union, UnionType):
        return " or ".join(_type(each, ()) for each in inner)
    if origin is tuple:
        name = f"({', '.join('...' if each is Ellipsis else _type(each, ()) for each in inner)})"
    elif origin is dict:
        name = f"{_type(inner[0], ())} to {_type(inner[1], ())} by name"
    else:
        name = "null" if kind is NoneType else kind.__name__
    return " ".join([name, *_bounds(limits)])


def _bounds(limits: Sequence[Any]) -> list[str]:
    words = {"gt": "above", "ge": "from", "lt": "below", "le": "up to", "min_length": "of at least"}
    found = []
    for limit in limits:
        # A `Field` inside an `Annotated` holds its limits in a list of its own.
        found += _bounds(getattr(limit, "metadata", ()))
        values = {word: getattr(limit, name, None) for name, word in words.items()}
        found += [f"{word} {value:.10g}" for word, value in values.items() if value is not None]
    return found
