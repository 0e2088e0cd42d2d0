"""The one converter between JSON bytes and attrs values.

Reading is lenient where the protocol is (spec 01 §0): unknown keys are ignored, keys match
without regard to case, `null` leaves the default, only the first JSON value of a body is read.
It is strict about types: a string where a number belongs is an error, never a conversion.
Every failure is one flat DecodeError; cattrs' exception groups never leave this module, because
a group that meets a nursery is taken apart by `except*`.

Writing puts every field, except those declared with `omitted()`: they are left out while they
hold their default.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, get_origin

import attrs
from cattrs import BaseValidationError, Converter, transform_error
from cattrs.cols import is_mapping, is_sequence, list_structure_factory, mapping_structure_factory
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn, override

from shared import depth
from shared.text import json_text

T = TypeVar("T")

_OMIT = "bullpen_omit_default"


class DecodeError(ValueError):
    """The bytes are not the JSON value that was expected; the text says why."""


class TooDeep(DecodeError):
    """The value is nested deeper than anything here can take apart."""

    def __init__(self) -> None:
        super().__init__(f"nested deeper than {depth.DEEPEST} levels")


def omitted(default: Any = attrs.NOTHING, *, factory: Callable[[], Any] | None = None) -> Any:
    """Declare a field whose key is absent on the wire while it holds its default."""
    if factory is not None:
        return attrs.field(factory=factory, metadata={_OMIT: True})
    return attrs.field(default=default, metadata={_OMIT: True})


def loads(data: bytes | str, *, cut: bool = False) -> Any:
    """Read the first JSON value of `data` into plain Python values. Raises DecodeError.

    What is nested deeper than `depth.DEEPEST` is refused, or with `cut` replaced by a mark.
    Its text is clean (`shared.text`): whatever reads it can store and send it.
    """
    try:
        value, _ = json.JSONDecoder().raw_decode(json_text(data).lstrip("\ufeff").lstrip())
    except RecursionError:
        raise TooDeep from None
    except ValueError as error:
        raise DecodeError(f"not JSON: {error}") from error
    if cut:
        return depth.cut(value)
    if depth.is_deeper(value):
        raise TooDeep
    return value


def decode(data: bytes | str, kind: type[T], *, cut: bool = False) -> T:
    """Read the first JSON value of `data` as a `kind`; `cut` as for `loads`. Raises DecodeError."""
    return structure(loads(data, cut=cut), kind)


def structure(value: Any, kind: type[T]) -> T:
    """Turn plain values into a `kind`. Raises DecodeError."""
    try:
        return _converter.structure(value, kind)
    except BaseValidationError as error:
        raise DecodeError("; ".join(transform_error(error))) from None
    except (TypeError, ValueError, KeyError, RecursionError) as error:
        raise DecodeError(str(error)) from None


def unstructure(value: Any) -> Any:
    """Turn attrs values into plain ones, ready for `json`."""
    return _converter.unstructure(value)


def encode(value: Any) -> bytes:
    """Write a value as compact UTF-8 JSON. Lone surrogates are replaced, NUL is kept escaped."""
    text = json.dumps(_converter.unstructure(value), ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")


def _exactly(*kinds: type) -> Callable[[Any, Any], Any]:
    names = " or ".join(kind.__name__ for kind in kinds)

    def check(value: Any, _: Any) -> Any:
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise TypeError(f"expected {names}, got {type(value).__name__}")
        return value

    return check


def _structure_array(kind: Any) -> Callable[[Any, Any], Any]:
    inner: Any = list_structure_factory(kind, _converter)

    def build(value: Any, _: Any) -> Any:
        if not isinstance(value, list):
            raise TypeError(f"expected an array, got {type(value).__name__}")
        items = inner(value, kind)
        return tuple(items) if get_origin(kind) is tuple else items

    return build


def _structure_object(kind: Any) -> Callable[[Any, Any], Any]:
    inner: Any = mapping_structure_factory(kind, _converter)

    def build(value: Any, _: Any) -> Any:
        if not isinstance(value, Mapping):
            raise TypeError(f"expected an object, got {type(value).__name__}")
        return inner(value, kind)

    return build


def _structure_attrs(kind: type) -> Callable[[Any, Any], Any]:
    inner: Any = make_dict_structure_fn(kind, _converter)
    fields = {field.name.lower(): field.name for field in attrs.fields(kind)}

    def build(value: Any, _: Any) -> Any:
        if not isinstance(value, Mapping):
            raise TypeError(f"expected an object, got {type(value).__name__}")
        known: dict[str, Any] = {}
        for key, member in value.items():
            name = fields.get(key.lower())
            if name is not None and member is not None:
                known[name] = member
        return inner(known, kind)

    return build


def _unstructure_attrs(kind: type) -> Callable[[Any], Any]:
    rules: dict[str, Any] = {
        field.name: override(omit_if_default=True)
        for field in attrs.fields(kind)
        if field.metadata.get(_OMIT)
    }
    return make_dict_unstructure_fn(kind, _converter, **rules)


def _make() -> Converter:
    converter = Converter(detailed_validation=True)
    converter.register_structure_hook(str, _exactly(str))
    converter.register_structure_hook(bool, _exactly(bool))
    converter.register_structure_hook(int, _exactly(int))
    converter.register_structure_hook(float, _exactly(float, int))
    converter.register_structure_hook_factory(is_sequence, _structure_array)
    converter.register_structure_hook_factory(is_mapping, _structure_object)
    converter.register_structure_hook_factory(attrs.has, _structure_attrs)
    converter.register_unstructure_hook_factory(attrs.has, _unstructure_attrs)
    return converter


_converter = _make()
