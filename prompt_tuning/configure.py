"""gin files and T5X's flags: found from a checkout or a wheel, in any order, the nearest name for a wrong one."""

import ast
import inspect
import logging
import re
import tokenize
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import gin

from prompt_tuning import t5x_names
from prompt_tuning.errors import UserError, nearest

DEFAULTS = "defaults.gin"
_REFERENCE = re.compile(r"\s*([@%]|[\[({].*[\[({,:]\s*[@%])", re.DOTALL)  # where gin has one, and no path or text has
_HERE = Path(__file__).parent
_OWN = (
    " What there is stands in gin/defaults.gin. Functions of your own come with a line `import MODULE` in a gin file,"
    " where MODULE says @gin.register before them, or gin.external_configurable(optax.adamw, 'adamw')."
)


def gin_folder() -> Path:
    """The project's gin files: beside the package in a checkout, inside it in a wheel."""
    inside = _HERE / "gin"
    return inside if (inside / DEFAULTS).is_file() else _HERE.parent / "gin"


def parse(
    files: Sequence[str] = (), bindings: Sequence[str] = (), search_paths: Sequence[str] = (),
    values: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """Reads defaults.gin, then `files`, then `bindings` ("NAME = VALUE"), over whatever was configured before.

    A file is looked for where the caller is, in `search_paths`, and among the project's own. `values` are names, or
    FUNCTION.PARAMETER, and what a caller in Python has for them, of any type. Raises UserError for a file that is not
    there, a line gin cannot read, and a name that nothing has or uses.
    """
    gin.clear_config()
    folders = ["", *search_paths, str(gin_folder())]
    files = [_find(file, folders) for file in files]
    quiet = lambda record: not record.getMessage().startswith("Path not found")
    logging.getLogger().addFilter(quiet)  # gin's word on every folder an included file is not in
    for folder in folders[1:]:
        gin.add_config_file_search_path(folder)  # for include statements
    try:
        gin.parse_config_files_and_bindings(
            [str(gin_folder() / DEFAULTS), *files], list(bindings), print_includes_and_imports=False
        )
    except (ValueError, LookupError, TypeError, SyntaxError, OSError, AttributeError, ImportError, RecursionError,
            MemoryError, tokenize.TokenError) as error:  # fmt: skip
        raise UserError(_explain(error)) from error
    finally:
        logging.getLogger().removeFilter(quiet)
        for folder in folders[1:]:
            gin.config._LOCATION_PREFIXES.remove(folder)  # else what is configured next would include from there too
    with gin.unlock_config():
        for name, value in (values or {}).items():
            try:
                gin.bind_parameter(name if "." in name else f"{name}/gin.macro.value", value)
            except (ValueError, SyntaxError) as error:
                raise UserError(_explain(error)) from error
    _refuse_unused_macros()


def _find(file: str, folders: Sequence[str]) -> str:
    file = str(Path(file).expanduser())
    found = next((Path(folder) / file for folder in folders if (Path(folder) / file).is_file()), None)
    if found is None:
        raise UserError(f"There is no gin file {file}.{nearest(file, _shipped())} Shipped: {', '.join(_shipped())}.")
    return str(found)


def binding(flag: str) -> str:
    """`NAME=VALUE` as gin reads it; a bare word that is no Python literal is taken as a string, paths as they are."""
    name, equals, value = flag.partition("=")
    if not equals or not name.strip():
        raise UserError(f"--gin.{flag} has no value. Type --gin.NAME=VALUE, such as --gin.BATCH_SIZE=16.")
    value = value.strip()
    if not _REFERENCE.match(value):
        try:
            ast.literal_eval(value)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            value = repr(value)
    return f"{name.strip()} = {value}"


def refers(value: Any) -> bool:
    """Whether a value refers to something as in a gin file: `"@sampled_vocabulary"`, in a list or a table too."""
    if isinstance(value, Mapping):
        return any(map(refers, value.values()))
    if isinstance(value, list | tuple):
        return any(map(refers, value))
    return isinstance(value, str) and value.startswith("@")


def written(value: Any) -> str:
    """How a gin file writes a value that `refers` to something."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {written(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(written, value))}]"
    return str(value) if refers(value) else repr(value)


def _shipped() -> list[str]:
    folder = gin_folder()
    return sorted(str(f.relative_to(folder)) for f in folder.rglob("*.gin") if f.name != DEFAULTS)


def _explain(error: Exception) -> str:
    """gin's own message in one line, with the nearest name where it did not know one."""
    message = " ".join(str(error).split())
    names = [selector.split(".")[-1] for selector, _ in _configurables()]
    if found := re.search(r"No configurable matching (?:reference )?'?@?([\w./]+)'?", message):
        near = nearest(found[1].split(".")[-1], names)
        return t5x_names.here(found[1]) or f"Nothing configurable is called {found[1]!r}.{near or _OWN}"
    if found := re.search(r"No bindings specified for '(\w+)/gin.macro'", message):
        return f"The name {found[1]} is used and never set. Type --gin.{found[1]}=VALUE."
    if found := re.search(r"Configurable '?([\w.]+)'? doesn't have a parameter (?:named )?'?(\w+)'?", message):
        known = _parameters(found[1].split(".")[-1])
        return f"{found[1]} has no parameter {found[2]!r}.{nearest(found[2], known)} It has: {', '.join(known)}."
    return f"The gin configuration cannot be read: {message}"


def _configurables() -> list[tuple[str, Any]]:
    return list(gin.config._REGISTRY.items())


def _parameters(name: str) -> list[str]:
    for selector, configurable in _configurables():
        if selector.split(".")[-1] == name:
            return [p for p in inspect.signature(configurable.wrapped).parameters if p != "rng"]
    return []


def _refuse_unused_macros() -> None:
    """A macro that is set and never referred to is a misspelt name: gin itself would pass over it.

    One of defaults.gin is none, also where a parameter that it stands for was set itself.
    """
    config = gin.config._CONFIG
    used = set(re.findall(r"%([A-Z][A-Z0-9_]*)", repr([list(values.values()) for values in config.values()])))
    used |= _set_in(DEFAULTS)
    unused = {scope for scope, selector in config if selector == "gin.macro"} - used
    for name in sorted(unused):
        if name in _set_in("spot.gin"):
            raise UserError(f"{name} is a name of `prompt-tuning spot` alone. Type that, or leave {name} out.")
        raise UserError(
            t5x_names.here(name)
            or f"Nothing uses the name {name}.{nearest(name, used)} Known names: {', '.join(sorted(used))}."
        )


def _set_in(file: str, of: str | None = None) -> set[str]:
    """The names that one of the project's gin files sets, or the parameters of a function that it does."""
    name = rf"{of}\.(\w+)" if of else "([A-Z][A-Z0-9_]*)"
    return set(re.findall(rf"^{name} =", (gin_folder() / file).read_text("utf-8"), re.MULTILINE))


def is_configured(name: str, besides: Collection[str] = ()) -> bool:
    """Whether any file or flag binds a parameter of the configurable `name`, `besides` those."""
    config = gin.config._CONFIG
    return any(selector.split(".")[-1] == name and values.keys() - besides for (_, selector), values in config.items())


def word(value: Any) -> str:
    """What a gin file calls a function, with its scope where it has one (`short/linear_warmup`); else the value."""
    if not hasattr(value, "__name__"):
        return str(value)
    known = _registered(value)
    return "/".join([*_scopes(value), known.name if known else value.__name__])


def _registered(function: Any) -> Any:
    """What gin knows of a function, or of what it wraps: the `name` and the full `selector` it is registered under."""
    return gin.config._inverse_lookup(function, allow_decorators=True)


def bound(function: Any) -> dict[str, Any]:
    """The parameters that gin gives to a configurable function, as plain values; none if gin knows it not.

    Among them are functions that it calls by default, where gin gives something to these; and those alone that
    defaults.gin sets or that are given another value than by default, as the config.gin of a run spells all of them.
    """
    if not hasattr(function, "__name__"):
        return {}
    own = {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}
    called = {name: plain(default) for name, default in own.items() if callable(default) and bound(default)}
    if not (known := _registered(function)):
        return called
    kept = _set_in(DEFAULTS, known.name)
    by_default = {name: plain(default) for name, default in own.items() if name not in kept}
    with gin.config_scope(_scopes(function) or None):
        given = {name: plain(value) for name, value in gin.get_bindings(known.selector).items()}
    return called | {name: value for name, value in given.items() if value != by_default.get(name, ...)}


def plain(value: Any) -> Any:
    """A value, or of a function its word, and what gin gives to it; also those inside a list or a table."""
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if not callable(value) or not hasattr(value, "__name__"):
        return value
    given = bound(value)
    return {word(value): given} if given else word(value)


def _scopes(function: Any) -> list[str]:
    """Of `@short/linear_warmup`, which gin wraps in a function that enters the scope: ["short"]."""
    held = inspect.getclosurevars(function).nonlocals if inspect.isfunction(function) else {}
    return list(held.get("scope_components", ()))
