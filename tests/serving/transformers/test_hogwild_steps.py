"""Hogwild's rules on a model that says what each worker is told to say, a character a token."""

import numpy as np
import pytest

from abduce.serving.errors import UsageError
from abduce.serving.flow import Sampling
from abduce.serving.transformers.decoding import Turn
from abduce.serving.transformers.hogwild_steps import Group, ends_step
from abduce.serving.workers import UNFINISHED, Workers

TOKENS = [bytes([i]) for i in range(256)]


class Told:
    """Blocks of a model that writes each worker's script; keeps what was fed, and what was merged when."""

    def __init__(self, *scripts):
        self.scripts = [list(script.encode()) for script in scripts]
        self.written = [0] * len(scripts)
        self.fed = [b""] * len(scripts)
        self.block = [b""] * len(scripts)
        self.common = b""
        self.calls = 0
        self.merges = []

    def feed(self, rows):
        self.calls += 1
        told = []
        for w, row in enumerate(rows):
            assert row, "a worker without a new token"
            self.fed[w] += bytes(row)
            self.block[w] += bytes(row)
            log_p = np.full(256, -np.inf)
            script, at = self.scripts[w], self.written[w]
            log_p[script[at] if at < len(script) else ord("z")] = 0.0
            self.written[w] += 1
            told.append(log_p)
        return told

    def merge(self, worker):
        self.merges.append((self.calls, worker))
        self.common += self.block[worker]
        self.block[worker] = b""


def write(workers, *scripts, max_tokens=400, banned=(), room=10_000, **options):
    turn = Turn((1,), TOKENS, (0,), Sampling(temperature=0.0, max_tokens=max_tokens))
    told = Told(*scripts)
    group = Group(workers, turn, lambda text: tuple(text.encode()), banned, **options)
    return group.write(told, 0, room=room), told


def two(**options):
    return Workers(names=("Alice", "Bob"), **options)


def test_a_step_that_ends_is_merged_and_its_last_token_begins_the_next_one_with_its_mark():
    written, told = write(two(), " One.\n\n Two", " Longer than that.\n\n", max_tokens=2 * 12)
    assert told.merges == [(7, 0)]
    assert told.common == b"**Alice [1]:** One.\n"
    assert told.block[0] == b"\n**Alice [2]:** Two"
    assert written.completion.text == (
        f"**Alice [1]:** One.\n\n**Alice [2]:** Twoz{UNFINISHED}\n\n**Bob [1]:** Longer than{UNFINISHED}"
    )
    assert written.completion.finish == "length"


def test_every_call_feeds_one_drawn_token_of_each_and_all_are_counted():
    written, told = write(two(), " A.\n\n B.\n\n", " C.\n\n", max_tokens=2 * 9)
    assert (written.n_calls, told.calls, written.completion.n_tokens) == (9, 9, 18)
    given = len("**Alice [1]:**" + "**Alice [2]:**" + "**Bob [1]:**" + "**Bob [2]:**")
    assert written.n_given == given
    assert sum(map(len, told.fed)) == given + 18 - 2  # the last two tokens drawn are fed to nobody


def test_two_that_end_in_one_call_are_merged_in_their_order():
    _, told = write(two(), " Ab.\n\n", " Cd.\n\n", max_tokens=2 * 8)
    assert told.merges == [(6, 0), (6, 1)]
    assert told.common == b"**Alice [1]:** Ab.\n**Bob [1]:** Cd.\n"


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ("So x = 4.\n\n", True),
        ("Is it?\n\n", True),
        ("这样。\n\n", True),
        ("We get:\n\n", False),
        ("x = 4\n\n", False),
        ("```\nprint(1).\n\n", False),
        ("```\nprint(1)\n```\nThat is it.\n\n", True),
        ("\\[ x = 1.\n\n", False),
        ("\\[ x = 1. \\] Yes.\n\n", True),
        ("$$ 1.\n\n", False),
        ("\n\n", False),
        ("The answer is \\boxed{4}\n\n", True),
    ],
)
def test_a_step_ends_behind_a_whole_sentence_with_nothing_open(text, ends):
    assert ends_step(text, ("\\boxed{",)) == ends


def test_a_separator_may_come_in_one_token_in_two_or_with_text():
    tokens = [*TOKENS, b".\n\n", b"\n\nNext"]
    for script in ([65, 46, 10, 10], [65, 256], [65, 46, 257]):
        told = Told("")
        told.scripts = [script]

        def feed(rows, told=told, script=script):
            log_p = np.full(258, -np.inf)
            log_p[script[told.calls] if told.calls < len(script) else 122] = 0.0
            told.calls += 1
            return [log_p]

        told.feed = feed
        turn = Turn((1,), tokens, (0,), Sampling(temperature=0.0, max_tokens=len(script) + 1))
        Group(Workers(names=("A",)), turn, lambda text: tuple(text.encode())).write(told, 0, room=99)
        assert told.merges == [(len(script), 0)]


def test_the_hint_is_given_to_the_next_step_once_all_have_written_enough():
    steps = " Aaaaa.\n\n" * 6
    hinted = two(hint=" Redundant?", hint_every=29)
    _, told = write(hinted, steps, " Bbbbbbb.\n\n" * 6, max_tokens=2 * 54)
    hints = [told.fed[w].count(b"Redundant?") for w in (0, 1)]
    # After call 16 there are 32 tokens: the step that begins next is Alice's third, at call 18 (36 tokens).
    assert b"**Alice [3]:** Redundant?" in told.fed[0]
    assert b"[2]:** Redundant?" not in told.fed[0] + told.fed[1]
    # 30 more are there at call 33; Bob's third step ends then, Alice's only at call 36.
    assert b"**Bob [4]:** Redundant?" in told.fed[1]
    assert hints == [1, 1]
    assert b"Redundant" not in write(two(hint_every=1), steps, steps)[1].fed[0]


def test_a_finished_step_with_the_answer_ends_it_all():
    workers = two(until=("\\boxed{",))
    written, told = write(workers, " Think.\n\n \\boxed{4}\n\n", " I am at it still")
    assert written.completion.finish == "stop"
    assert written.completion.text == "**Alice [1]:** Think.\n\n**Alice [2]:** \\boxed{4}\n\n"
    assert told.calls == len(" Think.\n\n \\boxed{4}\n\n")


def test_an_answer_in_an_unfinished_step_ends_nothing():
    written, _ = write(two(until=("\\boxed{",)), " \\boxed{4} or", " so", max_tokens=40)
    assert written.completion.finish == "length"


def test_banned_tokens_are_never_drawn():
    written, _ = write(two(), "###", "###", max_tokens=10, banned=(ord("#"),))
    assert "#" not in written.completion.text


def test_contiguous_workers_have_one_block_each_for_ever():
    _, told = write(two(layout="contiguous"), " One.\n\n Two.\n\n", " Bob.\n\n", max_tokens=40)
    assert told.merges == [] and told.common == b""
    assert told.fed[0].count(b"**Alice") == 1
    ended, _ = write(two(layout="contiguous", until=("is",)), " One.\n\n It is 4.\n\n", " Bob.\n\n x")
    assert ended.completion.text == "**Alice [1]:** One.\n\n It is 4.\n\n"


def test_headers_stand_once_in_what_is_told():
    workers = two(others="\n\n### Others\n\n")
    text = write(workers, " One.\n\n Two", " B", max_tokens=2 * 10)[0].completion.text
    assert text.startswith("**Alice [1]:** One.\n\n### Others\n\n**Alice [2]:** Tw")


def test_characters_of_several_tokens_come_out_whole():
    written, _ = write(Workers(names=("A",)), " naïve 数。\n\n Next", max_tokens=24)
    assert written.completion.text.startswith("**A [1]:** naïve 数。\n\n**A [2]:** Next")


def test_no_more_than_there_is_room_for_and_nothing_after_it_was_stopped():
    written, told = write(two(), "a" * 99, "b" * 99, room=60)
    assert sum(map(len, told.fed)) <= 60
    assert written.completion.finish == "length"
    stopped, told = write(two(), "a" * 99, "b" * 99, stopped=lambda: True)
    assert (stopped.n_calls, told.calls) == (0, 0)


def test_a_worker_without_a_mark_begins_behind_the_prompts_last_token():
    alone = Workers(names=("",), openings=("So",), layout="interleaved")
    written, told = write(alone, " it is.\n\nEnd", max_tokens=12, first=(7,))
    assert told.fed[0].startswith(b"\x07So it")
    assert told.merges == [(9, 0)] and told.block[0] == b"\nEn"
    assert written.completion.text == f"So it is.\n\nEnd{UNFINISHED}"


def test_a_limit_below_a_token_each_is_kept():
    written, told = write(two(), "a", "b", max_tokens=1)
    assert (told.calls, written.completion.n_tokens, written.completion.finish) == (0, 0, "length")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"names": ()}, "names"),
        ({"names": ("A", "A")}, "names"),
        ({"names": ("A", "")}, "names"),
        ({"names": ("",), "own": "x"}, "names"),
        ({"names": ("A",), "layout": "mixed"}, "layout"),
        ({"names": ("A", "B"), "openings": ("x",)}, "openings"),
        ({"names": ("A",), "hint_every": 0}, "hint_every"),
        ({"names": ("A",), "until": ("",)}, "until"),
    ],
)
def test_what_makes_no_group_is_refused_with_what_to_write(wrong, told):
    with pytest.raises(UsageError, match=rf"{told}.* cannot be .*: (write|give)|{told} cannot be"):
        Workers(**wrong)
