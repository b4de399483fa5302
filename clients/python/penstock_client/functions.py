"""The decorator `tool`: a function with type hints becomes a tool, described and checked by pydantic."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, ParamSpec, TypeVar, get_args, get_origin, get_type_hints, overload

from penstock_client.tools import Tool

P = ParamSpec("P")
R = TypeVar("R")


class ToolError(Exception):
    """Raise this in a tool: the call failed, and the text is for the model. The text of other exceptions stays here."""


class InvalidArguments(Exception):
    """The model's arguments do not fit the function; the text says where, for the model."""


def pydantic_for(what: str) -> Any:
    """Import pydantic. Raises ImportError that names the extra."""
    try:
        import pydantic
    except ImportError:
        raise ImportError(f"{what} needs pydantic: pip install 'penstock-client[tools]'") from None
    return pydantic


@dataclass(frozen=True)
class FunctionTool(Tool, Generic[P, R]):
    """A tool with its function, as the decorator `tool` makes it. Calling it calls the function.

    Attributes:
        name: Name of the tool; the function's by default.
        description: The function's docstring without its section of arguments, by default.
        parameters: JSON schema of the arguments, made from the type hints by default.
        strict: Whether a grammar holds the arguments to the schema.
        function: The function, which may be async.
    """

    function: Callable[P, R] = field(kw_only=True)
    _adapter: Any = field(kw_only=True, default=None, repr=False, compare=False)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:  # noqa: D102 - the class says it
        return self.function(*args, **kwargs)

    @property
    def is_async(self) -> bool:
        """Whether the function is a coroutine function, which only `AsyncClient.run` executes."""
        function = self.function.func if isinstance(self.function, functools.partial) else self.function
        return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
            getattr(function, "__call__", None)  # noqa: B004 - an object with an async __call__
        )

    def arguments_of(self, arguments_json: str) -> dict[str, Any]:
        """Return the function's keyword arguments for a call's `arguments_json`.

        Raises:
            InvalidArguments: The arguments do not fit the type hints.
        """
        if self._adapter is None:
            try:
                made = json.loads(arguments_json or "{}")
            except (ValueError, RecursionError) as error:
                raise InvalidArguments(f"the arguments are no JSON: {error}") from None
            if not isinstance(made, dict):
                raise InvalidArguments("the arguments are no JSON object")
            return made
        try:
            checked = self._adapter.validate_json(arguments_json or "{}")
        except pydantic_for("a tool").ValidationError as error:
            raise InvalidArguments(_words(error)) from None
        return {one.name: getattr(checked, one.name) for one in dataclasses.fields(checked)}


def _words(error: Any) -> str:
    found = error.errors(include_url=False, include_context=False, include_input=False)
    return "; ".join(f"{'.'.join(map(str, one['loc'])) or 'arguments'}: {one['msg']}" for one in found)


@overload
def tool(function: Callable[P, R], /) -> FunctionTool[P, R]: ...
@overload
def tool(
    *,
    name: str | None = None,
    description: str | None = None,
    strict: bool = False,
    parameters: Mapping[str, Any] | None = None,
) -> Callable[[Callable[P, R]], FunctionTool[P, R]]: ...
# One parameter for each option.
def tool(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    strict: bool = False,
    parameters: Mapping[str, Any] | None = None,
) -> Any:
    """Make a tool of a function, for the option `tools` and for `run`.

    >>> @tool
    ... def weather(city: str, days: int = 1) -> str:
    ...     '''Return the forecast.
    ...
    ...     Args:
    ...         city: Name of the city.
    ...         days: Length of the forecast, in days.
    ...     '''

    The type hints become the JSON schema, and the docstring the descriptions. The model's arguments are checked, and
    converted, before the function is called. Types may be all that pydantic knows: models, enums, `Literal`,
    `Annotated` with `Field`. The function may be async.

    Args:
        function: The function; absent where the decorator is used with options.
        name: Name of the tool. Default: the function's.
        description: Description for the model. Default: the docstring without its section of arguments.
        strict: Whether a grammar holds the arguments to the schema while the model writes them.
        parameters: JSON schema to use instead of the type hints, for instance of a tool that is only known at run time.
            The arguments are then passed unchecked, as keywords.

    Raises:
        ImportError: pydantic is not installed, and `parameters` is not given.
        TypeError: A parameter has no type hint, or cannot be given by name.
    """

    def make(function: Callable[..., Any]) -> FunctionTool[..., Any]:
        about = _docstring(function)
        adapter, schema = (None, parameters) if parameters is not None else _checked(function, about.parameters)
        return FunctionTool(
            name or str(getattr(function, "__name__", type(function).__name__)),
            about.summary if description is None else description,
            schema or "",
            strict,
            function=function,
            _adapter=adapter,
        )

    return make if function is None else make(function)


@dataclass(frozen=True, slots=True)
class _About:
    summary: str
    parameters: Mapping[str, str]


def _docstring(function: Callable[..., Any]) -> _About:
    text = inspect.getdoc(function) if inspect.isroutine(function) else None
    if not text:
        return _About("", {})
    try:
        import docstring_parser
    except ImportError:
        return _About(text, {})
    read = docstring_parser.parse(text)
    summary = "\n\n".join(filter(None, (read.short_description, read.long_description)))
    return _About(summary, {one.arg_name: one.description or "" for one in read.params})


def _checked(function: Callable[..., Any], described: Mapping[str, str]) -> tuple[Any, Mapping[str, Any] | None]:
    """Return what checks the arguments, and their JSON schema; None for a function without parameters."""
    pydantic = pydantic_for("a tool")
    fields = [_field(function, one, described) for one in _parameters(function)]
    # A dataclass, and no model: a parameter may have a name that a model needs, such as `copy` or `json`.
    plain = dataclasses.make_dataclass("Arguments", fields, kw_only=True)
    config = pydantic.ConfigDict(extra="forbid", arbitrary_types_allowed=False)
    adapter = pydantic.TypeAdapter(pydantic.dataclasses.dataclass(plain, config=config))
    return adapter, schema_of(adapter) if fields else None


def _parameters(function: Callable[..., Any]) -> list[tuple[inspect.Parameter, Any]]:
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    called = function if inspect.isroutine(function) else type(function).__call__
    inner = function.func if isinstance(function, functools.partial) else called
    hints = get_type_hints(inner, include_extras=True)
    found = []
    for one in inspect.signature(function).parameters.values():
        if one.kind not in by_name:
            raise TypeError(f"a tool's parameters must be given by name: {one} cannot; pass parameters= with a schema")
        if one.name not in hints:
            raise TypeError(f"parameter {one.name!r} needs a type hint, from which its JSON schema is made")
        found.append((one, hints[one.name]))
    return found


def _field(
    function: Callable[..., Any], given: tuple[inspect.Parameter, Any], described: Mapping[str, str]
) -> tuple[str, Any, Any]:
    parameter, hint = given
    texts = [one for one in get_args(hint)[1:] if isinstance(one, str)] if get_origin(hint) is Annotated else []
    description = described.get(parameter.name) or next(iter(texts), None)
    if description:
        hint = Annotated[hint, pydantic_for("a tool").Field(description=description)]
    default = parameter.default
    if default is inspect.Parameter.empty:
        return parameter.name, hint, field()
    if type(default).__hash__ is None:
        return parameter.name, hint, field(default_factory=lambda: default)
    return parameter.name, hint, field(default=default)


def schema_of(adapter: Any) -> dict[str, Any]:
    """Return the JSON schema of a pydantic `TypeAdapter`, without the titles that only repeat names."""
    from pydantic.json_schema import GenerateJsonSchema

    class Untitled(GenerateJsonSchema):
        def field_title_should_be_set(self, schema: Any) -> bool:
            return False

    made: dict[str, Any] = adapter.json_schema(schema_generator=Untitled)
    made.pop("title", None)
    return made


def text_of(value: object) -> str:
    """Return what the model is given for a tool's value: a str as it is, other values as JSON.

    Raises:
        ValueError: The value cannot be written as JSON.
    """
    if isinstance(value, str):
        return value
    try:
        from pydantic_core import to_json
    except ImportError:
        return json.dumps(value, ensure_ascii=False)
    return to_json(value).decode()
