"""The one way from a `_target_` in a configuration to an object of a group.

A misspelt key inside a YAML file and a value of the wrong type pass Hydra. For the groups that
anyone may extend they are caught here, against the signature of the class that `_target_` names.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    ConfigDict,
    PydanticUserError,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import ErrorDetails

from medtransfer.errors import ConfigError

T = TypeVar("T")

Component = dict[str, Any]
"""A choice of an extensible group: `_target_` names its class, the other keys are its arguments."""


NAME = re.compile(r"(?!_)\w+(\.(?!__)\w+)*")  # importing `__main__` would run a program

RESERVED = frozenset({"_target_", "_args_", "_partial_", "_recursive_", "_convert_"})
"""Keys that Hydra acts on where it builds objects."""


def _with_target(node: Component) -> Component:
    if not isinstance(node.get("_target_"), str):
        msg = "needs a `_target_`: the class that it names is built from the other keys"
        raise ValueError(msg)
    for path in _reserved({key: value for key, value in node.items() if key != "_target_"}):
        msg = f"holds '{path}', and nothing inside of a choice is built or called"
        raise ValueError(msg)
    return node


def _reserved(values: Any, prefix: str = "") -> Iterator[str]:
    """Yield the places of keys that would be acted on, at any depth."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            if key in RESERVED:
                yield f"{prefix}{key}"
            yield from _reserved(value, f"{prefix}{key}.")
    elif isinstance(values, list | tuple):
        for i, value in enumerate(values):
            yield from _reserved(value, f"{prefix}{i}.")


ComponentField = Annotated[Component, AfterValidator(_with_target)]


def build(
    node: Component,
    base: type[T],
    *,
    trusted: Iterable[str] = (),
    extra: Iterable[str] = (),
    **injected: Any,
) -> T:
    """Build the object that a component describes.

    Args:
        node: The component: `_target_` and arguments.
        base: The class that the target must derive from; it decides what a group may hold.
        trusted: Modules, besides this package, that the user trusts on the command line.
        extra: Library modules whose classes the group may name directly.
        **injected: Arguments that come from the program and not from the configuration.

    Raises:
        ConfigError: If the target is not a `base`, or an argument is unknown, missing or mistyped.
    """
    cls = locate(node["_target_"], base, trusted=trusted, extra=extra)
    return cls(**check_arguments(cls, base, node, injected), **injected)


def locate(
    target: str, base: type[T], *, trusted: Iterable[str] = (), extra: Iterable[str] = ()
) -> type[T]:
    """Return the class that `target` names, provided that it is trusted and derives from `base`.

    Importing a module runs it, so the prefix is checked before the import; the class is checked
    after it, because a prefix alone would reach any function of the library.
    """
    module_name, _, name = target.rpartition(".")
    if not NAME.fullmatch(target):
        raise ConfigError(
            f"_target_ {target[:200]!r} names no class", remedy="write it as package.module.Class"
        )
    allowed = ("medtransfer", *trusted, *extra)
    if not any(module_name == prefix or module_name.startswith(prefix + ".") for prefix in allowed):
        raise ConfigError(
            f"_target_ '{target}' is outside of the modules that may be run",
            choices=allowed,
            remedy=f"if you trust it, add 'trusted_modules=[{module_name}]' to the command line",
        )
    try:
        found = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, SyntaxError) as error:
        raise ConfigError(
            f"_target_ '{target}' cannot be imported: {error}",
            remedy="check the spelling, and that its folder is on PYTHONPATH",
        ) from None
    if not (isinstance(found, type) and issubclass(found, base)) or inspect.isabstract(found):
        raise ConfigError(
            f"_target_ '{target}' is not a {base.__module__}.{base.__qualname__}",
            remedy="name a class that derives from it",
        )
    return found


def check_arguments(
    cls: type, base: type, node: Component, injected: Iterable[str] = ()
) -> dict[str, Any]:
    """Return the arguments in `node`, each converted to the type in the signature of `cls`.

    Args:
        cls: What is to be built.
        base: Its group's base class; the group is named after it.
        node: The component.
        injected: Arguments that come from the program.

    Raises:
        ConfigError: If an argument is unknown, missing or mistyped.
    """
    group = re.findall("[A-Z][a-z]*", base.__name__)[-1].lower()  # a MaskLoss is a choice of `loss`
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(cls).parameters.items()
        if name not in set(injected) and parameter.kind is not parameter.VAR_KEYWORD
    }
    given = {key: value for key, value in node.items() if key != "_target_"}
    for key in given:
        if key not in parameters:
            raise ConfigError(
                f"key '{group}.{key}' is unknown to {node['_target_']}",
                value=key,
                choices=sorted(parameters),
            )
    for name, parameter in parameters.items():
        if name not in given and parameter.default is parameter.empty:
            raise ConfigError(
                f"key '{group}.{name}' is missing for {node['_target_']}",
                remedy=f"add '{name}' to the YAML of this choice",
            )
    checked = {}
    for key, value in given.items():
        try:
            checked[key] = _adapter(cls, parameters[key]).validate_python(value)
        except ValidationError as error:
            raise config_error(error.errors()[0], f"{group}.{key}", value, ()) from None
    return checked


def _adapter(cls: type, parameter: inspect.Parameter) -> TypeAdapter[Any]:
    annotation = parameter.annotation
    if isinstance(annotation, str):
        # An inherited __init__ is annotated in the names of the module that defines it.
        owner = next(c for c in cls.__mro__ if parameter.name in _own_arguments(c))
        annotation = eval(annotation, vars(sys.modules[owner.__module__]))
    if annotation is inspect.Parameter.empty:
        annotation = Any
    try:
        return TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticUserError:  # dataclasses bring a configuration of their own
        return TypeAdapter(annotation)


def _own_arguments(cls: type) -> Iterable[str]:
    if "__dataclass_fields__" in vars(cls):
        return inspect.get_annotations(cls)
    init = vars(cls).get("__init__")
    return inspect.signature(init).parameters if init is not None else ()


def config_error(
    details: ErrorDetails, prefix: str, values: Any, known: Iterable[str]
) -> ConfigError:
    """Say a pydantic error about `values` in the words of the configuration."""
    missing = details["type"] in {"missing", "missing_argument"}
    path = [prefix] if prefix else []
    part: Any
    for part in details["loc"]:
        # pydantic also names the branches of a union, which are no keys
        if (isinstance(values, Mapping) and part in values) or (
            isinstance(values, Sequence) and isinstance(part, int)
        ):
            values = values[part]
        elif not missing:
            continue
        path.append(str(part))
    where = ".".join(path)
    if details["type"] in {"extra_forbidden", "unexpected_keyword_argument"}:
        key = str(details["loc"][-1])
        return ConfigError(
            f"key '{where}' is unknown",
            value=key,
            choices=known,
            remedy="medtransfer train --cfg job shows every key",
        )
    if missing:
        return ConfigError(f"key '{where}' is missing")
    message = details["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    return ConfigError(f"{where}={details['input']!r} does not fit: {message}")
