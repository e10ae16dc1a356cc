"""Loads a YAML file, or a shipped one by name, with `--set` overrides into a validated `RunConfig`.

Whatever is wrong (no file, no YAML, an unknown field, a bad value) gives one `ConfigError` whose text names the field and,
where there is one, the nearest valid name.
"""

from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from configs.errors import UserError, nearest
from configs.schema import RunConfig

SHIPPED = Path(__file__).parent


class ConfigError(UserError, ValueError):
    """The configuration cannot be used; the text is one clear sentence for the user."""


def shipped_names(folder: Path = SHIPPED) -> list[str]:
    """Returns the names of the configurations, or other documents, that come with the project."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def load_config(name: str, overrides: list[str] | None = None) -> RunConfig:
    """Loads a shipped configuration by name, or a YAML file by path, and applies `field.path=value` overrides."""
    values = read_document(name)
    for override in overrides or []:
        _apply(values, override)
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{name}: {explain(error, RunConfig)}") from error


def dump_config(config: RunConfig) -> str:
    """Returns the whole configuration as YAML, defaults included; `load_config` reads it back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def parse_config(text: str) -> RunConfig:
    """Reads `dump_config` back. Raises ConfigError, also for what another version of this project wrote."""
    try:
        return RunConfig.model_validate(yaml.safe_load(text))
    except (yaml.YAMLError, ValidationError) as error:
        raise ConfigError(f"not a configuration of this version: {' '.join(str(error).split())[:300]}") from error


def read_document(name: str, folder: Path = SHIPPED) -> dict[str, Any]:
    """Returns what a YAML file, or the document shipped in `folder` under that name, says. Raises ConfigError."""
    path = Path(name)
    if not path.suffix:
        path = folder / f"{name}.yaml"
        if not path.exists():
            raise ConfigError(f"no configuration named {name!r}{nearest(name, shipped_names(folder))}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no configuration: its top level must be a mapping")
    return values


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
        target[leaf] = _number(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: the value is not YAML") from error


def _number(value: Any) -> Any:
    """Returns as a number what YAML reads as a string, 1e-6 for one."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def explain(error: ValidationError, root: type[BaseModel]) -> str:
    """Returns one sentence about the first error of a document whose schema is `root`."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        *parents, last = first["loc"]
        text = f"unknown field {field}{nearest(str(last), _fields_at(root, tuple(parents)))}"
    else:
        said = first["msg"].removeprefix("Value error, ")
        # Our own checks name the field themselves where it is not the section's as a whole.
        text = said if said.startswith(field) else f"{field}: {said}"
        if first["type"] not in ("missing", "value_error"):
            text += f" (got {first['input']!r})"
    more = error.error_count() - 1
    return text + (f" (and {more} more)" if more else "")


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
