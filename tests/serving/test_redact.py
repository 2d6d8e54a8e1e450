"""Redaction: what is registered is never left, in no spelling; what is no secret is left as it is."""

import json
import logging
import pickle
import traceback

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from abduce.serving import engine, redact, settings
from abduce.serving.errors import EngineError, UsageError
from abduce.serving.redact import MARK, SHORTEST

KEY = "kq7-violet-Heron_42/x"


@pytest.fixture(autouse=True)
def nothing_registered(monkeypatch):
    monkeypatch.setattr(redact, "_known", redact._Known())


secrets = st.text(min_size=SHORTEST, max_size=40).filter(
    lambda s: len(s.strip()) >= SHORTEST and not s.strip().isalpha() and MARK not in s
)


@given(secret=secrets, before=st.text(max_size=20), after=st.text(max_size=20))
def test_no_secret_is_left_in_text_or_json(secret, before, after):
    redact._known = redact._Known()  # the fixture is of the function, not of the example
    redact.register(secret)
    secret = secret.strip()
    said = before + secret + after
    assert secret not in redact.known(said)
    try:
        line = orjson.dumps({"text": said})
    except TypeError:  # lone surrogates, which orjson refuses
        return
    for written in (line, json.dumps({"text": said}).encode()):
        cleared = redact.line(written)
        assert secret not in json.loads(cleared)["text"]


@pytest.mark.parametrize("said", ["", "7 x 8 = 56", "[secret]", "sk", "a\nb", "⟨ä⟩"])
def test_what_holds_no_secret_is_the_same_object(said):
    redact.register(KEY)
    assert redact.known(said) is said
    line = orjson.dumps({"text": said})
    assert redact.line(line) is line


@pytest.mark.parametrize("secret", ['quo"te\\back', "ümlaut-pass", "line\nbreak-key", "pass word/1"])
def test_other_spellings_are_found(secret):
    redact.register(secret)
    for said in (
        json.dumps(secret),
        json.dumps({"arguments": json.dumps({"key": secret})}),
        json.dumps(secret, ensure_ascii=False),
        repr(secret),
        "https://me:"
        + "".join(
            f"%{byte:02X}" if byte > 127 or chr(byte) in ' "/\\\n' else chr(byte) for byte in secret.encode()
        )
        + "@host",
    ):
        assert MARK in redact.known(said)
        assert secret.split()[0] not in redact.known(said)


def test_a_secret_within_another_leaves_nothing_of_the_longer_one():
    redact.register("violet-heron")
    redact.register("violet-heron-42")
    assert redact.known("violet-heron-42") == MARK


@pytest.mark.parametrize(
    "word", ["none", "x1" * 3, "postgres", "correcthorsebat", "", None, 17, MARK, "${secret:KEY}"]
)
def test_words_are_no_secrets(word):
    redact.register(word)
    assert redact._known.texts == ()


def test_token_ids_of_a_text_with_a_secret_are_left_out():
    redact.register(KEY)
    row = {"reply": [{"text": f"it is {KEY}", "ids": [1, 2]}, {"text": "no", "ids": [3]}], "prefix_ids": [4]}
    row["prompt"] = {"prefix": KEY, "prefix_ids": [5], "n": 2.5}
    assert json.loads(redact.line(orjson.dumps(row))) == {
        "reply": [{"text": f"it is {MARK}", "ids": []}, {"text": "no", "ids": [3]}],
        "prefix_ids": [4],
        "prompt": {"prefix": MARK, "prefix_ids": [], "n": 2.5},
    }


# ---------------------------------------------------------------- what looks like a key


@pytest.mark.parametrize(
    ("said", "left"),
    [
        ("Incorrect API key provided: sk-proj-0123456789abcdefgh.", "Incorrect API key provided: [secret]."),
        ("Incorrect API key provided: sk-ab***********wxyz.", "Incorrect API key provided: [secret]."),
        ("gsk_0123456789abcdefgh", "[secret]"),
        ("ghp_0123456789abcdefghij0123456789abcdef", "[secret]"),
        ("hf_abcdefghijklmnopqrstuvwxyz012345", "[secret]"),
        ("AIzaSyA0123456789abcdefghijklmnopqrstuv", "[secret]"),
        ("Authorization: Bearer eyJhbGciOiJIUzI1NiJ9.e30", "Authorization: Bearer [secret]"),
        ("'Authorization': 'Basic bWU6cGFzcw=='", "'Authorization': 'Basic [secret]'"),
        ("postgresql://me:pass@db/runs", "postgresql://me:[secret]@db/runs"),
        ("postgresql://me:p@ss:w@db:5432/runs", "postgresql://me:[secret]@db:5432/runs"),
        ("redis://:hunter2@cache", "redis://:[secret]@cache"),
        ("GET /v1?api_key=abcdefghij&n=1", "GET /v1?api_key=[secret]&n=1"),
        ("got {'engine': 'x', 'api_key': 'abcdefghij'}", "got {'engine': 'x', 'api_key': '[secret]'}"),
    ],
)
def test_what_looks_like_a_key_goes_from_messages(said, left):
    assert redact.text(said) == left
    assert redact.text(left) == left


@pytest.mark.parametrize(
    "said",
    [
        "risk-averse task-oriented sk-learn-version-2 ask_me_anything_about_the_weather",
        "Bearer authentication required; Basic understanding suffices",
        "Send the header: Authorization: Bearer KEY.",
        "Set ABDUCE_API_KEYS=name:key,name:key, or api_key_env",
        "The recipe needs ${secret:OPENAI_API_KEY}, see http://127.0.0.1:8000/a@b and https://x.y/z?q=1",
        "max_tokens=256 password: must be text; keyboard=qwertyuiop",
        "f(x) = x:y@z for http://a.b/c:d@e",
    ],
)
def test_ordinary_words_stay(said):
    assert redact.text(said) == said


def test_text_of_models_is_not_searched_for_shapes():
    said = "Use an API key such as sk-0123456789abcdefghij."
    assert redact.known(said) == said
    assert redact.line(orjson.dumps(said)) == orjson.dumps(said)
    assert MARK in redact.text(said)


def test_settings_lose_what_is_named_like_a_key_and_keep_references():
    redact.register(KEY)
    words = {
        "model": {"engine": "sglang", "url": "http://me:pass@gpu:1", "api_key": "abcdefgh", "timeout_s": 3.0},
        "models": {"judge": {"api_key": "${secret:JUDGE_KEY}", "api_key_env": "JUDGE_KEY"}},
        "budget": {"tokens": 8000},
        "task": {"question": f"Is sk-0123456789abcdefghij or {KEY} a key?"},
    }
    assert redact.settings(words) == {
        "model": {
            "engine": "sglang",
            "url": "http://me:[secret]@gpu:1",
            "api_key": MARK,
            "timeout_s": 3.0,
        },
        "models": {"judge": {"api_key": "${secret:JUDGE_KEY}", "api_key_env": "JUDGE_KEY"}},
        "budget": {"tokens": 8000},
        "task": {"question": f"Is sk-0123456789abcdefghij or {MARK} a key?"},
    }


# ---------------------------------------------------------------- who registers


def test_secrets_of_the_environment_are_registered(monkeypatch):
    values = {
        "SOME_API_KEY": "key-one-1",
        "SOME_TOKEN": "token-two-2",
        "ABDUCE_API_KEYS": "ann:key-three-3,bob:key-four-4",
        "OTEL_EXPORTER_OTLP_HEADERS": "x-key=key-five-5,authorization=Basic%20a2V5LXNpeC02",
        "SOME_KEY_FILE": "/etc/keys/seven",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    settings.register_secrets()
    told = "key-one-1 token-two-2 key-three-3 key-four-4 key-five-5 a2V5LXNpeC02 /etc/keys/seven"
    assert redact.known(told) == " ".join([MARK] * 6) + " /etc/keys/seven"


def test_a_secret_that_is_read_is_registered_and_so_is_the_password_in_it(monkeypatch):
    monkeypatch.setenv("STORE", "postgresql://me:violet%20heron@db/runs")
    assert settings.secret("STORE") == "postgresql://me:violet%20heron@db/runs"
    assert redact.known("violet heron, violet%20heron") == f"{MARK}, {MARK}"
    assert settings.secret("NOT_SET_AT_ALL") is None


def test_of_a_store_only_the_password_is_a_secret(monkeypatch):
    monkeypatch.setenv("ABDUCE_STORE", "postgresql://me:violet-heron@db/runs")
    assert settings.store() == "postgresql://me:violet-heron@db/runs"
    assert redact.known("violet-heron at db/runs") == f"{MARK} at db/runs"
    monkeypatch.setenv("ABDUCE_STORE", "/home/me/all-my-runs")
    assert settings.store() == "/home/me/all-my-runs"
    assert redact.known("/home/me/all-my-runs") == "/home/me/all-my-runs"


def test_keys_and_headers_given_to_an_engine_are_registered():
    redact.register_named(
        {
            "api_key": "key-one-1",
            "url": "http://x/long",
            "headers": {"X-Auth": "Bearer token-two-2", "Accept": "application/json"},
        }
        | {"extra": {"password": "key-three-3", "max_tokens": "12345678"}}
    )
    said = "key-one-1 http://x/long Bearer token-two-2 token-two-2 key-three-3 12345678 application/json"
    assert redact.known(said) == f"{MARK} http://x/long {MARK} {MARK} {MARK} 12345678 application/json"
    engine({"engine": "sglang", "url": "http://127.0.0.1:1", "api_key": "key-of-sglang"})
    assert redact.known("key-of-sglang") == MARK


def test_an_engine_is_not_made_with_the_mark_for_a_key():
    with pytest.raises(UsageError, match=r"api_key .* environment variable"):
        engine({"engine": "sglang", "url": "http://127.0.0.1:1", "api_key": MARK})


# ---------------------------------------------------------------- where it must not come out


def test_secrets_are_not_told_by_what_keeps_them():
    redact.register(KEY)
    for told in (repr(redact._known), str(redact._known), f"{redact._known}"):
        assert KEY not in told
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(redact._known)
    assert not hasattr(redact._known, "__dict__")


def test_errors_of_ours_hold_no_secret():
    redact.register(KEY)
    for kind in (UsageError, EngineError):
        error = kind(f"refused {KEY}, at http://me:pass@host")
        assert str(error) == f"refused {MARK}, at http://me:{MARK}@host"
        assert KEY not in repr(error)
        assert KEY not in "".join(traceback.format_exception(error))


def test_a_mistake_in_an_engine_names_no_key():
    with pytest.raises(UsageError) as caught:
        engine({"engin": "sglang", "api_key": KEY})
    assert KEY not in str(caught.value)


def test_a_guarded_logger_tells_no_secret_whatever_handles_it(caplog):
    redact.register(KEY)
    log = redact.guard(redact.guard(logging.getLogger("abduce.test_redact")))
    assert len(log.filters) == 1
    with caplog.at_level(logging.DEBUG, log.name):
        log.info("asked %s with %r", "x", KEY)
        try:
            raise ValueError(KEY)
        except ValueError:
            log.exception("It failed")
    assert KEY not in caplog.text
    assert f"asked x with '{MARK}'" in caplog.text
    assert f"ValueError: {MARK}" in caplog.text
