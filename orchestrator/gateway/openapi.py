"""The description of the API (OpenAPI 3.1), made from the models that check requests."""

from typing import Any

from pydantic.json_schema import models_json_schema

from ... import __version__
from .wire import ChatRequest, CompletionRequest

_WRONG = {
    "400": "The request asks for what is not there; `param` names the field.",
    "401": "No API key, or an unknown one.",
    "404": "No such model.",
    "408": "The body did not arrive in time.",
    "413": "The body is too large.",
    "415": "The body is not declared as JSON.",
    "429": "The key's budget is used up, or reserved by running requests.",
    "500": "A fault of ours.",
    "502": "The engine failed.",
    "503": "Too many requests run and wait, or the server is shutting down.",
}
_OPEN = {"type": "object", "additionalProperties": True}


def document(with_keys: bool) -> dict[str, Any]:
    """The whole description; `with_keys` says that requests need one."""
    kinds: Any = [(ChatRequest, "validation"), (CompletionRequest, "validation")]
    _, schemas = models_json_schema(kinds, ref_template="#/components/schemas/{model}")
    components: dict[str, Any] = {"schemas": {**schemas["$defs"], **_REPLIES}}
    whole: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "abduce", "version": __version__, "description": "Each recipe is a model."},
        "paths": {
            "/v1/chat/completions": {"post": _post("ChatRequest", "ChatReply", "Answer a conversation")},
            "/v1/completions": {"post": _post("CompletionRequest", "TextReply", "Go on with a text")},
            "/v1/models": {"get": _get("The models", "ModelList", "401")},
            "/v1/models/{name}": {"get": _get("One model", "Model", "401", "404", name="name")},
            "/health": {"get": _get("Whether the server takes requests", "Health", "503", of="Health")},
        },
        "components": components,
    }
    if with_keys:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        whole["security"] = [{"key": []}]
    return whole


def _post(body: str, reply: str, summary: str) -> dict[str, Any]:
    found = {
        "description": "The answer.",
        "content": {
            "application/json": {"schema": _ref(reply)},
            "text/event-stream": {"schema": {"type": "string"}},
        },
    }
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": {"application/json": {"schema": _ref(body)}}},
        "responses": {"200": found, **{status: _wrong(status) for status in _WRONG}},
    }


def _get(summary: str, reply: str, *wrong: str, name: str | None = None, of: str = "Error") -> dict[str, Any]:
    told: dict[str, Any] = {
        "summary": summary,
        "responses": {
            "200": {"description": summary, "content": {"application/json": {"schema": _ref(reply)}}},
            **{status: _wrong(status, of) for status in wrong},
        },
    }
    if name is not None:
        told["parameters"] = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}}]
    return told


def _wrong(status: str, schema: str = "Error") -> dict[str, Any]:
    return {"description": _WRONG[status], "content": {"application/json": {"schema": _ref(schema)}}}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": required, "properties": properties}


_TEXT, _COUNT = {"type": "string"}, {"type": "integer", "minimum": 0}
_USAGE = _object(
    ["prompt_tokens", "completion_tokens", "total_tokens"],
    prompt_tokens=_COUNT,
    completion_tokens=_COUNT,
    total_tokens=_COUNT,
)
_HEAD = {"id": _TEXT, "object": _TEXT, "created": _COUNT, "model": _TEXT, "usage": _USAGE, "abduce": _OPEN}
_CHAT_CHOICE = _object(
    ["index", "message", "finish_reason"], index=_COUNT, message=_OPEN, finish_reason=_TEXT
)
_TEXT_CHOICE = _object(["index", "text", "finish_reason"], index=_COUNT, text=_TEXT, finish_reason=_TEXT)
_REPLIES: dict[str, Any] = {
    "ChatReply": _object(
        [*_HEAD, "choices"], **_HEAD, choices={"type": "array", "minItems": 1, "items": _CHAT_CHOICE}
    ),
    "TextReply": _object(
        [*_HEAD, "choices"], **_HEAD, choices={"type": "array", "minItems": 1, "items": _TEXT_CHOICE}
    ),
    "Model": _object(["id", "object", "created", "owned_by"], id=_TEXT, object=_TEXT, created=_COUNT),
    "ModelList": _object(["object", "data"], object=_TEXT, data={"type": "array", "items": _ref("Model")}),
    "Health": _object(["status"], status={"enum": ["ok", "draining"]}, running=_COUNT, waiting=_COUNT),
    "Error": _object(
        ["error"],
        error=_object(["message", "type"], message=_TEXT, type=_TEXT, param={"type": ["string", "null"]}),
    ),
}
