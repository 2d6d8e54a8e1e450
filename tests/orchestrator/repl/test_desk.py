"""Commands that look: what they show of the runs on the desk."""

import json

import networkx

from abduce.orchestrator.repl.completion import completions
from abduce.orchestrator.repl.language import COMMANDS
from abduce.orchestrator.trace import read


def test_show_tells_prompt_completion_log_probs_and_scores(talk):
    here = talk("a_star", policy={"preset": "cot", "logprobs": True})
    here.say("write abc")
    for number in range(1, len(here.sitting.current.view.nodes) + 1):
        told = here.say(f"show {number}")
        node = here.sitting.current.view.nodes[number - 1]
        assert f"score {node.score:.3f}" in told
        for part in ("prompt", "user: write abc", "completion", "log-probs", "scores"):
            assert part in told, number
    told = here.say("show 1")
    assert "total" in told
    assert "set policy.logprobs=true" not in told


def test_show_says_how_to_get_log_probs(talk):
    here = talk()
    assert "set policy.logprobs=true" in here.say("write abc", "show 1")
    here.say("set policy.logprobs=true", "write abc")
    assert "total" in here.say("show 1")


def test_looking_commands_show_what_there_is(talk, tmp_path):
    here = talk()
    assert "No run yet" in here.say("runs")
    here.say("write abc", "back", "run")
    assert "write abc" in here.say("tree A")
    assert here.say("calls 3").count("→") == 3
    assert "particle_filter" in here.say("show A")
    assert "▸  B" in here.say("runs")
    assert "tokens" in here.say("budget")
    assert "▸particle_filter" in here.say("strategy")
    assert "▸synthetic" in here.say("model")
    assert "calculator" in here.say("tools")
    here.say("tools calculator")
    assert "▸calculator" in here.say("tools")
    assert "▸" not in here.say("tools off")
    assert "numeric=5" in here.say("check numeric=5")
    assert "no checks" in here.say("check off")
    for suffix in ("json", "graphml", "jsonl"):
        here.say(f"export {tmp_path / 'tree'}.{suffix}")
    graph = networkx.node_link_graph(json.loads((tmp_path / "tree.json").read_text()), edges="edges")
    assert len(graph) == len(here.sitting.current.view.nodes)
    assert len(networkx.read_graphml(tmp_path / "tree.graphml")) == len(graph)
    assert read(tmp_path / "tree.jsonl") == here.sitting.current.rows()


def test_help_tells_every_command_with_an_example(talk):
    here = talk()
    whole = here.say("help")
    for name, each in COMMANDS.items():
        assert name in whole
        told = here.say(f"help {name}")
        assert each.example in told
        assert "{" not in told


def test_completion_knows_commands_runs_nodes_keys_and_conditions(talk):
    here = talk()
    here.say("write abc")

    def words(text):
        return [word for word, _ in completions(here.sitting, text)]

    assert words("") == list(COMMANDS)
    assert words("co") == ["compare"]
    assert words("compare ") == ["A"]
    assert words("goto 1")[-1] == "1"
    assert "particles=" in words("fork ")
    assert words("set budget.to") == ["budget.tokens="]
    assert words("break ") == ["on", "off"]
    assert words("break on resa") == ["resample"]
    assert words("strategy a_") == ["a_star"]
    assert words("help for") == ["fork"]
    assert words("write abc ") == []


def test_model_text_is_shown_as_text(talk):
    here = talk(model={"engine": "synthetic", "alphabet": "[/]", "depth": 3})
    here.say("write [red]abc[/red]\x1b[31m")
    assert "[red]abc[/red]" in here.say("tree")
    assert "\x1b" not in here.say("show 1")
