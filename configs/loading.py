"""Loads a YAML file, or a shipped one by name, with `--set` overrides into a validated `RunConfig`.

Whatever is wrong (no file, no YAML, unknown fields, bad values) gives one `ConfigError` whose text names each field and,
where there is one, the nearest valid name.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from configs.errors import UserError, closest, nearest
from configs.names import to_name
from configs.schema import RunConfig
from configs.tasks import ProblemsConfig

SHIPPED = Path(__file__).parent
NO_YAML = (yaml.YAMLError, ValueError, RecursionError, KeyError, TypeError, AttributeError)
"""Errors of PyYAML; those of Python come where a tag says what the value is not."""


class ConfigError(UserError, ValueError):
    """The configuration cannot be used; the text says what is wrong with it, in a line for each of several errors."""


def shipped_names(folder: Path = SHIPPED) -> list[str]:
    """Returns the names of the configurations, or other documents, that come with the project."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def load_config(name: str, overrides: list[str] | None = None) -> RunConfig:
    """Loads a shipped configuration by name, or a YAML file by path, and applies `field.path=value` overrides.

    A document with a `base` holds what differs from that configuration: see `_on_base`. Raises ConfigError.
    """
    values = _on_base(name, ())
    for override in overrides or []:
        _apply(values, override)
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{name}: {explain(error, RunConfig)}") from error


def _on_base(name: str, above: tuple[Path, ...]) -> dict[str, Any]:
    """Returns what a document says, on top of what its `base` says, another document, and so on.

    Sections are merged field by field. `tasks.problems` and fields that hold mappings are replaced whole. A document with a
    base has its own name, by default its file's. `above`: the documents that led here.
    """
    values = read_document(name)
    base = values.pop("base", None)
    if base is None:
        return values
    path = Path(name)
    if not isinstance(base, str):
        raise ConfigError(f"{name}: base is {base!r}: name a shipped configuration or a YAML file")
    if path.resolve() in above:
        raise ConfigError(f"{name} is its own base, by way of {above[-1]}")
    values.setdefault("name", to_name(path.stem))
    # A file is beside the document that names it.
    found = str(path.parent / base) if Path(base).suffix else base
    return _merged(_on_base(found, (*above, path.resolve())), values, RunConfig)


def _merged(base: dict[str, Any], values: dict[str, Any], section: type[BaseModel]) -> dict[str, Any]:
    merged = dict(base)
    for field, value in values.items():
        info = section.model_fields.get(field)
        kind: Any = info.annotation if info else None
        below = merged.get(field)
        if _is_section(kind) and kind is not ProblemsConfig and isinstance(value, dict) and isinstance(below, dict):
            merged[field] = _merged(below, value, kind)
        else:
            merged[field] = value
    return merged


def dump_config(config: RunConfig) -> str:
    """Returns the whole configuration as YAML, defaults included; `load_config` reads it back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def parse_config(text: str) -> RunConfig:
    """Reads `dump_config` back. Raises ConfigError, also for what another version of this project wrote."""
    try:
        return RunConfig.model_validate(yaml.safe_load(text))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"not a configuration of this version: {' '.join(str(error).split())[:300]}") from error


def read_document(name: str, folder: Path = SHIPPED) -> dict[str, Any]:
    """Returns what a YAML file, or the document shipped in `folder` under that name, says. Raises ConfigError."""
    path = Path(name)
    if not path.suffix:
        path = folder / f"{name}.yaml"
        if not path.exists():
            raise ConfigError(f"no configuration named {name!r}{nearest(name, shipped_names(folder))}")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 (a safe one)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except yaml.MarkedYAMLError as error:
        where = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ConfigError(f"{path} is not YAML that can be used: {where}{error.problem}") from error
    # A date that is none, digits that are no number, brackets without end, a tag that the value is not of.
    except NO_YAML as error:
        raise ConfigError(f"{path} is not YAML that can be used: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no configuration: its top level must be a mapping")
    return values


class _Loader(yaml.SafeLoader):
    """Refuses what YAML reads as nobody means it: of a key that is there twice the last, 010 as 8, 1:30 as 90."""

    def construct_number(self, node: yaml.Node) -> int | float:
        """Raises ConstructorError where the number is of base 8 or 60 by the way it is written."""
        if not isinstance(node, yaml.ScalarNode):
            raise yaml.constructor.ConstructorError(None, None, "that is no number", node.start_mark)
        read = self.construct_yaml_int if node.tag.endswith(":int") else self.construct_yaml_float
        text = node.value.replace("_", "").lstrip("+-")
        if not text:
            raise yaml.constructor.ConstructorError(None, None, "an empty text is no number", node.start_mark)
        number = read(node)
        if ":" in text or (isinstance(number, int) and text[0] == "0" and text.isdecimal() and len(text) > 1):
            raise yaml.constructor.ConstructorError(
                None,
                None,
                f"{node.value} is the number {number} in YAML: write that, or the one that is meant, or quotes for text",
                node.start_mark,
            )
        return number

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Raises ConstructorError, which names the key and its line."""
        if not isinstance(node, yaml.MappingNode):
            raise yaml.constructor.ConstructorError(None, None, "that is no mapping", node.start_mark)
        seen = set()
        for key, _ in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else None
            if name is not None and name != "<<" and name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {name!r} is there twice", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_number)


def _apply(values: dict[str, Any], override: str) -> None:
    field, equals, text = override.partition("=")
    if not equals or not field:
        raise ConfigError(f"--set {override}: write it as field.name=value")
    *parents, leaf = field.split(".")
    target = values
    for parent in parents:
        target = target.setdefault(parent, {})
        if not isinstance(target, dict):
            raise ConfigError(f"--set {override}: {parent} is a value, not a section")
    try:
        # YAML reads a string where a number has an exponent and no point.
        exponent = re.fullmatch(r"\s*[-+]?\d+[eE][-+]?\d+\s*", text)
        target[leaf] = float(text) if exponent else yaml.load(text, _Loader)  # noqa: S506 (a safe one)
    except yaml.constructor.ConstructorError as error:
        raise ConfigError(f"--set {override}: {error.problem}") from error
    except NO_YAML as error:
        raise ConfigError(f"--set {override}: the value is not YAML") from error


def explain(error: ValidationError, root: type[BaseModel]) -> str:
    """Returns everything that is wrong with a document whose schema is `root`: a sentence, or a line for each error.

    A field that is missing because its name is misspelt is not named twice.
    """
    misspelt = {(*parents, near) for *parents, near in _near_names(error, root)}
    found = [
        _explain(each, root)
        for each in sorted(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
        if each["type"] != "missing" or tuple(each["loc"]) not in misspelt
    ]
    return found[0] if len(found) == 1 else f"{len(found)} errors" + "".join(f"\n  {line}" for line in found)


def _near_names(error: ValidationError, root: type[BaseModel]) -> Iterator[tuple[Any, ...]]:
    """Yields, for each unknown field that is near to a valid one, where that one would be."""
    for each in error.errors():
        if each["type"] == "extra_forbidden":
            *parents, last = each["loc"]
            if close := closest(str(last), _fields_at(root, tuple(parents))):
                yield (*parents, close)


def _explain(each: ErrorDetails, root: type[BaseModel]) -> str:
    field = ".".join(str(part) for part in each["loc"])
    if each["type"] == "extra_forbidden":
        *parents, last = each["loc"]
        return f"unknown field {field}{nearest(str(last), _fields_at(root, tuple(parents)))}"
    if each["type"] == "missing":
        return f"{field} is missing"
    said = each["msg"].removeprefix("Value error, ")
    # Our own checks name the field themselves where it is not the section's as a whole.
    text = said if said.startswith(field) else f"{field}: {said}"
    return text if each["type"] == "value_error" else f"{text} (got {each['input']!r})"


def _fields_at(root: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """Returns the names of the fields of the section at a location; none where that is no section."""
    kind: Any = root
    for part in location:
        if _is_section(kind):
            info = kind.model_fields.get(str(part))
            kind = info.annotation if info else None
            if get_origin(kind) not in (None, dict, tuple):
                kind = next((option for option in get_args(kind) if _is_section(option)), None)
        elif get_origin(kind) in (dict, tuple):
            # The part is a key or a number: on to the type of the values.
            kind = next(option for option in reversed(get_args(kind)) if option is not ...)
    return list(kind.model_fields) if _is_section(kind) else []


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
