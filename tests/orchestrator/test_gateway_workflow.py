"""Recipes of several steps behind the gateway."""

import pytest
from gateways import ASKED, listening, openai

from abduce.orchestrator.gateway.served import Served, from_recipe
from abduce.serving.errors import UsageError

STEPS = """name: checked
model: {engine: scripted, replies: {"": ["6 x 7 = 41. The answer is 41.", "6 x 7 = 42. The answer is 42."]}}
tools: [calculator]
pipeline:
  - solve: {strategy: self_consistency, n: 2}
  - verify: {by: calculator, retries: 1}
"""


@pytest.fixture
def served(tmp_path) -> Served:
    (tmp_path / "checked.yaml").write_text(STEPS)
    return from_recipe(str(tmp_path / "checked.yaml"), limit_s=20)


async def test_a_chat_counts_every_step(served):
    async with listening(served) as gateway, gateway.client() as client:
        reply = await client.chat.completions.create(model="checked", **ASKED)
        assert "The answer is 41." in reply.choices[0].message.content
        assert reply.abduce["calls"] == 2  # solved, found wrong, solved again


async def test_a_stream_tells_the_steps_and_ends_with_the_answer(served):
    async with listening(served) as gateway, gateway.client() as client:
        stream = await client.chat.completions.create(model="checked", stream=True, **ASKED)
        text = "".join([c.choices[0].delta.content or "" async for c in stream if c.choices])
        assert text.endswith("The answer is 41.")


async def test_sampling_reaches_every_search(served):
    async with listening(served) as gateway, gateway.client() as client:
        reply = await client.chat.completions.create(model="checked", temperature=0, **ASKED)
        assert reply.choices[0].finish_reason == "stop"
        with pytest.raises(openai.BadRequestError, match="its answer is no single sample"):
            await client.chat.completions.create(model="checked", logprobs=True, **ASKED)


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ('ask: {question: "Is {answer} right?"}', "asks a human"),
        ("verify: {by: checks}", "works with checks"),
    ],
)
def test_what_a_chat_cannot_bring_is_refused(tmp_path, step, said):
    file = tmp_path / "x.yaml"
    head = (
        "name: x\nmodel: {engine: scripted, replies: x}\npipeline:\n  - solve: {strategy: chain_of_thought}\n"
    )
    file.write_text(f"{head}  - {step}\n")
    with pytest.raises(UsageError, match=said):
        from_recipe(str(file), limit_s=20)
