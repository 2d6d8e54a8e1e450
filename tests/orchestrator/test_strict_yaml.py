"""YAML read strictly: what surprises is refused with its line, what is written is read as it was."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abduce.orchestrator import strict_yaml
from abduce.serving.errors import UsageError


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: 1\nb: 2\na: 3\n", "x.yaml:3: the key 'a' stands twice (first on line 1)"),
        ("a: &x 1\nb: *x\n", "x.yaml:1: anchors and aliases"),
        ("a: !!python/object/apply:os.system [ls]\n", "x.yaml:1: the tag"),
        ("a: !mine 1\n", "x.yaml:1: "),
        ("- a\n", "x.yaml:1: a recipe is a mapping"),
        ("a: 1\n---\nb: 2\n", "x.yaml:"),
        ("1: 2\n", "x.yaml:1: the key '1' is not read as text"),
        ("true: 2\n", "x.yaml:1: the key 'true' is not read as text"),
        ("a: .nan\n", "x.yaml:1: '.nan' is not a finite number"),
        ("a: -1e999\n", "x.yaml:1: '-1e999' is not a finite number"),
        (f"a: {'9' * 5000}\n", "x.yaml:1: '9999"),
        ("a: !!int x\n", "x.yaml:1: 'x' cannot be read"),
        ("a: !!bool maybe\n", "x.yaml:1: 'maybe' cannot be read"),
        (f"a: [{'1,' * 5000}]\n", "x.yaml:1: more than 4000 values"),
        ("a:\n  - b\n - c\n", "x.yaml:3: "),
        ("a: [" * 100, "x.yaml:1: nested deeper than"),
        ("a: b\x00c\n", "x.yaml: "),
        ("<<: {a: 1}\n", "x.yaml:1: "),
        ("? [a]\n: 1\n", "x.yaml:1: "),
    ],
)
def test_surprising_yaml_is_refused_with_its_line(text, told):
    with pytest.raises(UsageError) as error:
        strict_yaml.parse(text, file="x.yaml")
    assert str(error.value).startswith(told)


def test_large_binary_and_missing_files_are_refused(tmp_path):
    (tmp_path / "large.yaml").write_text("a: " + "x" * 70_000)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for name, told in {"large": "larger than 64 KB", "binary": "not UTF-8", "none": "Cannot read"}.items():
        with pytest.raises(UsageError, match=told):
            strict_yaml.read(tmp_path / f"{name}.yaml")


def test_each_value_knows_its_line():
    found = strict_yaml.parse("a: 1\nb:\n  - x\n  - c: 2\n    d: 3\n", file="f")
    assert found.data == {"a": 1, "b": ["x", {"c": 2, "d": 3}]}
    assert found.where(("b", 1, "d")) == "f:5"
    assert found.where(("b", 1, "e")) == "f:4"
    assert found.where(("z",)) == "f:1"


@given(st.text(max_size=200))
def test_any_text_is_data_or_a_usage_error(text):
    with suppress(UsageError):
        assert isinstance(strict_yaml.parse(text).data, dict)


@pytest.mark.parametrize(
    "text", ["yes", "no", "on", "off", "1:30", "010", "0x1f", "1_000", "2020-01-01", "="]
)
def test_what_yaml_1_1_would_convert_is_text(text):
    assert strict_yaml.scalar(text) == text


SCALARS = st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.text(max_size=30)
SCALARS |= st.floats(allow_nan=False, allow_infinity=False)
KEYS = st.text(min_size=1, max_size=8)
DATA = st.recursive(
    SCALARS,
    lambda below: st.lists(below, max_size=4) | st.dictionaries(KEYS, below, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(KEYS, DATA, max_size=5))
def test_what_is_written_is_read_as_it_was(data):
    assert strict_yaml.parse(strict_yaml.write(data)).data == data
