"""What a request may hold: the fields of OpenAI's chat and text completions, and one of our own, `abduce`.

Types are strict: "5" is no number. Fields that are not listed are for the engine's server and passed on.
"""

from typing import Annotated, Any, Literal, TypeAlias, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import ApiError, bad

MAX_N = 16
_MAX_TOKENS = 1_000_000
_MAX_DEPTH = 64  # json and orjson give up somewhere beyond, in the middle of a search


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


class ContentPart(_Part):
    """A part of a message. Only text is read."""

    type: str
    text: str | None = None


class FunctionCall(_Part):
    """What an assistant asked for; `arguments` is JSON text."""

    name: str = Field(min_length=1)
    arguments: str = "{}"


class Call(_Part):
    """A tool call of an earlier turn."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(_Part):
    """One message of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] | None = None
    tool_calls: list[Call] | None = None
    tool_call_id: str | None = None


class Function(_Part):
    """A tool's name, what it does, and the JSON schema of its arguments."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_.:-]{1,128}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None


class OfferedTool(_Part):
    """A tool that the model may ask for."""

    type: Literal["function"]
    function: Function


class FunctionName(_Part):
    """The tool that must be called."""

    name: str


class NamedChoice(_Part):
    """Demands a call of one tool."""

    type: Literal["function"]
    function: FunctionName


class NamedSchema(_Part):
    """A JSON schema with a name."""

    name: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")


class ResponseFormat(_Part):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None


class StreamOptions(_Part):
    """What a stream holds besides the answer."""

    include_usage: bool | None = None


class Extension(BaseModel):
    """Ours: `budget` as in recipes ("4k tokens, 30 s"), never above the recipe's own."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    budget: str | dict[str, float] | None = None


class Shared(BaseModel):
    """What both kinds of requests hold."""

    model_config = ConfigDict(strict=True, frozen=True, extra="allow")

    model: str
    n: Annotated[int, Field(ge=1, le=MAX_N)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=_MAX_TOKENS)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=_MAX_TOKENS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    abduce: Extension | None = None


class ChatRequest(Shared):
    """The body of POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: Annotated[int, Field(ge=1, le=_MAX_TOKENS)] | None = None
    tools: list[OfferedTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | None = None
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None


class CompletionRequest(Shared):
    """The body of POST /v1/completions."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=1)]
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: bool | None = None
    best_of: int | None = None
    suffix: str | None = None


Body: TypeAlias = ChatRequest | CompletionRequest
B = TypeVar("B", bound=Shared)


def read(kind: type[B], body: bytes) -> B:
    """The request of a body. Raises ApiError that says what is wrong with it, and where."""
    try:
        told = orjson.loads(body)
    except ValueError as error:
        raise bad(f"The body is no JSON: {error}.", code="invalid_json") from None
    if not isinstance(told, dict):
        raise bad("The body must be a JSON object.")
    if _deeper(told, _MAX_DEPTH):
        raise bad(f"The body is nested more than {_MAX_DEPTH} levels deep.")
    try:
        return kind.model_validate(told)
    except ValidationError as error:
        raise _fault(error) from None


def _deeper(value: Any, levels: int) -> bool:
    """Whether lists and objects are nested deeper than that."""
    if isinstance(value, dict):
        return levels == 0 or any(_deeper(part, levels - 1) for part in value.values())
    if isinstance(value, list):
        return levels == 0 or any(_deeper(part, levels - 1) for part in value)
    return False


def _fault(error: ValidationError) -> ApiError:
    """The first complaint. Of a union, which complains once for each member, the deepest: what the caller
    most likely meant."""
    found = max(error.errors(include_url=False, include_context=False), key=lambda each: len(each["loc"]))
    where = [str(part) for part in found["loc"] if not _names_a_member(part)]
    param = ".".join(where)
    if found["type"] == "missing":
        return bad(f"{param} is missing.", param, "missing_required_parameter")
    message = found["msg"].replace("Input should be", "must be").removeprefix("Value error, ")
    given = repr(found["input"])
    shown = given if len(given) <= 80 else given[:77] + "..."
    return bad(f"{param}: {message}, got {shown}.", param, "invalid_value")


def _names_a_member(part: int | str) -> bool:
    """Whether a part of a path is pydantic's name for a member of a union, not a key of the request."""
    text = str(part)
    return "[" in text or text in ("str", "NamedChoice") or text.startswith("literal")
