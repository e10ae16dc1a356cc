"""From a YAML file, or the name of a shipped one, and `--set` overrides to a validated `RunConfig`.

Whatever is wrong (no file, no YAML, an unknown field, a bad value) gives one `ConfigError` whose text names the field and,
where there is one, the nearest valid name.
"""

import difflib
import hashlib
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from configs.schema import RunConfig

SHIPPED = Path(__file__).parent


class ConfigError(ValueError):
    """The configuration cannot be used; the text is one clear sentence for the user."""


def shipped_names() -> list[str]:
    """Names of the configurations that come with the project."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def load_config(name: str, overrides: list[str] | None = None) -> RunConfig:
    """Loads a shipped configuration by name, or a YAML file by path, and applies `field.path=value` overrides."""
    values = _read(name)
    for override in overrides or []:
        _apply(values, override)
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{name}: {_explain(error)}") from error


def dump_config(config: RunConfig) -> str:
    """The whole configuration as YAML, defaults included; `load_config` reads it back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def fingerprint(config: RunConfig) -> str:
    """Hash over the parts that every role of a run must agree on: model, tasks and rollout."""
    shared = config.model_dump_json(include={"model", "tasks", "rollout"})
    return hashlib.sha256(shared.encode()).hexdigest()[:16]


def _read(name: str) -> dict[str, Any]:
    path = Path(name)
    if not path.suffix:
        path = SHIPPED / f"{name}.yaml"
        if not path.exists():
            raise ConfigError(f"no configuration named {name!r}{_nearest(name, shipped_names())}")
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
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
    """YAML reads 1e-6 as a string; people mean a number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        *parents, last = first["loc"]
        text = f"unknown field {field}{_nearest(str(last), _fields_at(tuple(parents)))}"
    else:
        text = f"{field}: {first['msg']}" if field else first["msg"]
        if first["type"] not in ("missing", "value_error"):
            text += f" (got {first['input']!r})"
    more = error.error_count() - 1
    return text + (f" (and {more} more)" if more else "")


def _fields_at(location: tuple[Any, ...]) -> list[str]:
    model: type[BaseModel] = RunConfig
    for part in location:
        info = model.model_fields.get(str(part))
        annotation: Any = info.annotation if info else None
        candidates = get_args(annotation) if get_origin(annotation) else (annotation,)
        models = [kind for kind in candidates if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not models:
            return []
        model = models[0]
    return list(model.model_fields)


def _nearest(name: str, valid: list[str]) -> str:
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    if close:
        return f": did you mean {close[0]}?"
    return f": valid are {', '.join(valid)}" if valid else ""
