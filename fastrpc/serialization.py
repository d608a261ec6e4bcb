"""Encodes and decodes with kombu's registry, or with orjson where both have the same result.

`encode` and `decode` return the same value as kombu, or raise the same type of exception. The bytes
of JSON may differ (no spaces, no ``\\u`` escapes for characters that UTF-8 has), but any JSON
reader reads them. `fastrpc._json` decides which values and texts orjson may handle. kombu handles
all others, all other serializers, and a ``json`` that the application has registered itself.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from kombu.serialization import dumps as _registry_dumps
from kombu.serialization import loads as _registry_loads
from kombu.utils import json as _kombu_json

from ._borrowed import codecs, replace_codec
from ._json import MISS as _MISS
from ._json import dumps as _plain_dumps
from ._json import loads as _plain_loads

__all__ = ["decode", "encode", "means_kombu_json", "register_json"]

_JSON = "application/json"

# kombu's own functions, to recognise whether `json` is still kombu's JSON. If they were replaced
# before this import, orjson must not stand in for the replacement.
_kombu_dumps: Any = _kombu_json.dumps
_kombu_loads: Any = _kombu_json.loads
if getattr(_kombu_dumps, "__globals__", None) is not vars(_kombu_json):
    _kombu_dumps = object()
if getattr(_kombu_loads, "__globals__", None) is not vars(_kombu_json):
    _kombu_loads = object()

# The registry's own objects: it changes them in place, and `dumps` and `loads` are bound to it.
_encoders, _decoders, _disabled = codecs()


def _json_dumps(value: Any) -> Any:
    # Text, as from kombu: code that stores a payload may accept nothing else.
    payload = _plain_dumps(value)
    return _kombu_dumps(value) if payload is None else payload.decode()


def _json_loads(data: Any) -> Any:
    value = _plain_loads(data)
    return _kombu_loads(data) if value is _MISS else value


_KOMBU_DUMPS = (_kombu_dumps, _json_dumps)
_KOMBU_LOADS = (_kombu_loads, _json_loads)


def register_json() -> bool:
    """Make ``json`` in kombu's registry use orjson where the result is the same.

    Task bodies, events and remote control then use it too. Returns False, and changes nothing, if
    the application has registered a ``json`` of its own.
    """
    codec = _encoders.get("json")
    if codec is None or codec[2] not in _KOMBU_DUMPS or _decoders.get(_JSON) not in _KOMBU_LOADS:
        return False
    replace_codec("json", _json_dumps, _json_loads)
    return True


def encode(value: Any, serializer: str | None) -> tuple[str, str, Any]:
    """Encode `value` as ``kombu.serialization.dumps(value, serializer=serializer)`` does.

    Returns the content type, the content encoding and the payload. For ``json`` the payload is
    bytes, where kombu returns str; any other payload is what the registered encoder returns.

    Raises `kombu.exceptions.EncodeError` if `value` cannot be encoded, and
    `kombu.exceptions.SerializerNotInstalled` if there is no such serializer.
    """
    if serializer == "json":
        codec = _encoders.get("json")
        if codec is not None and codec[2] in _KOMBU_DUMPS:
            payload = _plain_dumps(value)
            if payload is not None:
                return codec[0], codec[1], payload
            content_type, content_encoding, text = _registry_dumps(value, serializer)
            return content_type, content_encoding, _to_bytes(text)
    result: tuple[str, str, Any] = _registry_dumps(value, serializer)
    return result


def decode(
    body: Any, content_type: Any, content_encoding: Any, accept: Container[str] | None
) -> Any:
    """Decode `body` as ``kombu.serialization.loads`` does with the same arguments.

    `accept` holds the content types that may be decoded, and is checked first; None accepts those
    that are enabled in kombu's registry. An empty body is returned unchanged.

    Raises `kombu.exceptions.ContentDisallowed` if the content type is not accepted, and
    `kombu.exceptions.DecodeError` if the body cannot be decoded.
    """
    if (
        content_type == _JSON
        and (content_encoding == "utf-8" or not content_encoding or type(content_encoding) is str)
        and _decoders.get(_JSON) in _KOMBU_LOADS
        and (_JSON in accept if accept is not None else _JSON not in _disabled)
    ):
        value = _plain_loads(body)
        if value is not _MISS:
            return value
        if accept is not None:
            accept = (_JSON,)  # checked above; some containers can be asked only once
    return _registry_loads(body, content_type, content_encoding, accept=accept)


def means_kombu_json(accept: Container[str] | None) -> bool:
    """Whether ``application/json`` may be decoded, and ``json`` is kombu's own."""
    return _decoders.get(_JSON) in _KOMBU_LOADS and (
        _JSON in accept if accept is not None else _JSON not in _disabled
    )


def _to_bytes(payload: Any) -> Any:
    # Usually a str of kombu's JSON; another thread may have registered a `json` meanwhile.
    return payload.encode("utf-8") if isinstance(payload, str) else payload
