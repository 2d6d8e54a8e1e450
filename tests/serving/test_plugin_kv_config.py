"""How a KV method is written, and what a server is told of it."""

import pytest

from abduce.serving.sglang.plugin.kv_config import METHODS, DeltaLLM, Ems, backend_of, parse, text_of


@pytest.mark.parametrize("name", METHODS)
def test_a_name_alone_is_the_defaults(name: str) -> None:
    assert parse(name) == METHODS[name]()
    assert backend_of(parse(name)) == f"abduce_{name}"


@pytest.mark.parametrize(
    "text", [*METHODS, "ems:budget=99,tau=0.25,mass_bias=true,unrotated=true", "actqkv:page=16"]
)
def test_what_is_written_out_is_read_back(text: str) -> None:
    assert text_of(parse(text)) == text
    assert parse(text_of(parse(text))) == parse(text)


def test_sizes_are_read_by_their_kind() -> None:
    config = parse(" ems:budget=1024, tau=0.25,merge_keys=false ")
    assert config == Ems(budget=1024, tau=0.25, merge_keys=False)
    assert parse("deltallm:theta=1") == DeltaLLM(theta=1.0)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("h2o:budget=5", "no KV method 'h2o'. Write one of ems, actqkv, deltallm"),
        ("", "no KV method ''"),
        ("ems:size=5", "ems has no 'size=5'. Write ems:KEY=VALUE,… with budget, window"),
        ("ems:budget", "ems has no 'budget'"),
        ("ems:budget=many", "ems:budget is a whole number, not 'many'"),
        ("ems:merge_keys=1", "true or false"),
        ("ems:merge_keys=false,unrotated=true", "for merged keys"),
        ("deltallm:theta=x", "a number"),
        ("ems:budget=16", "0 < window < budget"),
        ("ems:pool=4", "odd pool"),
        ("actqkv:prefill=-1", "prefill >= 0"),
        ("actqkv:budget=8", "budget >= page"),
        ("actqkv:page=0", "page, last"),
        ("deltallm:block=0", "block >= 1"),
    ],
)
def test_mistakes_say_what_to_write(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told.replace("(", r"\(")):
        parse(text)
