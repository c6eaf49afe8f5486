# SPDX-License-Identifier: Apache-2.0
"""Read, check, print and compare the settings of a run: defaults < preset < file < options < overrides."""

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from rzero.engine.errors import InputError
from rzero.settings import Section, Settings, Threshold

Config = Settings

PRESET_FOLDER = Path(__file__).parent / "presets"
# What may differ when a run goes on: where it lies, how often it saves, whether a comparison run follows.
FREE_KEYS = ("output", "checkpoint_every", "ablation")
# Settings that are, or can be, a file or a folder.
PATH_KEYS = ("model", "task", "anchors", "data")


def preset_names() -> list[str]:
    """The presets of the package, by name."""
    return sorted(path.stem for path in PRESET_FOLDER.glob("*.yaml"))


def load_config(
    preset: str | None = None,
    file: str | Path | None = None,
    overrides: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
) -> Settings:
    """The settings of a run.

    `overrides` are texts "name.of.field=value" with a YAML value, `options` maps dotted names to values.
    Relative paths in them count from the current folder, those in a config file from its own.
    Raises InputError for an unknown preset, an unreadable file, an unknown field or a bad value.
    """
    # A section that a source names in part keeps the defaults of the rest, also where this place of the
    # section has defaults of its own (voting.top_k, pool.sampling.top_p).
    values = to_dict(Settings())
    if preset is not None:
        _merge(values, _read_preset(preset))
    if file is not None:
        _merge(values, located(_read_file(Path(file)), Path(file).parent))
    for name, value in (options or {}).items():
        _merge(values, located(_nest(name, value)))
    for text in overrides:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise InputError(f"override {text!r} is not of the form name.of.field=value")
        try:
            _merge(values, located(_nest(name.strip(), yaml.safe_load(value))))
        except yaml.YAMLError:
            raise InputError(f"override {text!r}: {value!r} is not a YAML value") from None
    return from_dict(values)


def from_dict(values: Mapping[str, Any]) -> Settings:
    """Settings from nested plain values; raises InputError on the first mistake."""
    try:
        return Settings.model_validate(dict(values))
    except ValidationError as error:
        raise InputError(_sentence(error)) from None


def to_dict(config: Settings) -> dict[str, Any]:
    """Nested plain values, as JSON and YAML know them."""
    return config.model_dump(mode="json")


def to_yaml(config: Settings, texts: bool = False) -> str:
    """YAML that load_config reads back; with `texts` each field's description stands above it."""
    if not texts:
        return yaml.safe_dump(to_dict(config), sort_keys=False, width=110, allow_unicode=True)
    return "\n".join(_yaml_lines(config, "")) + "\n"


def flatten(config: Settings) -> dict[str, Any]:
    """Dotted name -> value of every field."""
    return dict(_flat(to_dict(config), ""))


def differences(one: Settings, other: Settings) -> dict[str, tuple[Any, Any]]:
    """The fields on which two configs differ, by dotted name."""
    a, b = flatten(one), flatten(other)
    # Free-form mappings (engine.kernels) may hold a key on one side only.
    return {name: (a.get(name), b.get(name)) for name in {**a, **b} if a.get(name) != b.get(name)}


def located(values: Mapping[str, Any], folder: Path = Path()) -> dict[str, Any]:
    """Nested plain settings with absolute paths, so that they mean the same in any current folder.

    A relative path counts from `folder`. A model that is no folder there is a hub name, a task that is no
    file "name.py:factory" the name of one that is installed.
    """
    found = dict(values)
    for name in PATH_KEYS:
        value = values.get(name)
        if not isinstance(value, str):
            continue
        path = folder / value
        is_path = {"model": value != "tiny" and path.is_dir(), "task": ".py:" in value}.get(name, True)
        if is_path:
            found[name] = str(path.absolute())
    return found


def absolute(config: Settings) -> Settings:
    """The same settings with absolute paths; relative ones count from the current folder."""
    return from_dict(located(to_dict(config)))


def fingerprint(config: Settings) -> str:
    """A hash of every field that changes what a run computes."""
    values = {name: value for name, value in flatten(config).items() if name not in FREE_KEYS}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def model_path(model: str) -> str:
    """Where the weights lie: the package's own model for "tiny", else what was given."""
    return str(Path(__file__).parent / "models" / "tiny") if model == "tiny" else model


def nearest(name: str, known: Sequence[str]) -> str:
    """The end of a sentence about an unknown name: the known name nearest to it, else all of them."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known))}"


def _read_preset(name: str) -> dict[str, Any]:
    if name not in preset_names():
        raise InputError(f"unknown preset {name!r}; {nearest(name, preset_names())}")
    return _read_file(PRESET_FOLDER / f"{name}.yaml")


def _read_file(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read config file {path}: {error}") from None
    except yaml.YAMLError as error:
        raise InputError(f"config file {path} is not YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(f"config file {path} must hold a mapping of fields, not {type(values).__name__}")
    return values


def _merge(into: dict[str, Any], delta: Mapping[str, Any]) -> None:
    for name, value in delta.items():
        if isinstance(value, Mapping) and isinstance(into.get(name), dict):
            _merge(into[name], value)
        else:
            into[name] = value


def _nest(dotted: str, value: Any) -> dict[str, Any]:
    for part in reversed(dotted.split(".")):
        value = {part: value}
    return dict(value)


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = _known_names([str(part) for part in first["loc"][:-1]])
        return f"unknown setting {place!r}; {nearest(str(first['loc'][-1]), known)}"
    text = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return text
    text = text.replace("Input should be a valid dictionary or instance", "it must be a mapping, a section")
    return f"{place} = {first['input']!r} is not allowed: {text.replace('Input should be', 'it must be')}"


def _known_names(path: Sequence[str]) -> list[str]:
    section: type[Section] = Settings
    for part in path:
        section = type(section.model_fields[part].get_default(call_default_factory=True))
    return list(section.model_fields)


def _flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _yaml_lines(section: Section, indent: str) -> Iterator[str]:
    for name, field in type(section).model_fields.items():
        value = section.__dict__[name]
        yield f"{indent}# {field.description}"
        if isinstance(value, Section) and not isinstance(value, Threshold):
            yield f"{indent}{name}:"
            yield from _yaml_lines(value, indent + "  ")
        else:
            plain = section.model_dump(mode="json", include={name})[name]
            text = yaml.safe_dump(plain, default_flow_style=True, width=10**6).split("\n")[0]
            yield f"{indent}{name}: {text}"
