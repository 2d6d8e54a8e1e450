"""Query-only test-time training on a retrieval task, with a reader that is built by hand.

    python benchmarks/query_ttt.py [--contexts 60] [--rate 0.01] [--growth 1 4 16 64] [--sweep]
    python benchmarks/query_ttt.py --cost

A context holds facts, one token each (a key and its value), and behind each a question about a fact so far,
two tokens (the key, then its value). The last question, about a random fact, is to be answered. So the
context itself teaches to look up a key; about half of the facts it asks nothing about.

The reader is a Llama of one layer and one head whose weights are written down here: a question attends to
what shares its key with a logit of 1.5 or so, and the values attended to are the answer. That is enough for
4 facts and not for 256: attention spreads over all facts. It was never trained, and says nothing of how a
trained model would fare; what is shown is that steps on the context's own questions raise the logit, and
the needle with it.

Printed for 4 facts and for 4, 16 and 64 times as many, on the same contexts: accuracy of the reader as it
is, of its queries scaled by 1 + ln(T / T0) / 2 (which costs nothing), and with its queries trained on the
context; the paired difference and its 95 % bootstrap interval; how many are right whose fact the context
asked nothing about; attention on the needle; seconds. `--sweep`: accuracy on the longest, other contexts,
by learning rate. `--cost`: what a step of 128 tokens takes on a Llama of random weights in the sizes of
SmolLM2-135M, six layers of it: multiplications over the paper's count, and CPU seconds. In one layer the
two readings of a span are the same. The reader cannot think: thinking at equal cost is not measured. Needs
torch and transformers.
"""

import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers
from arguments import command
from intervals import paired, told
from printing import table_head, table_row
from torch.utils.flop_counter import FlopCounterMode

from abduce.serving.transformers import query_weights
from abduce.serving.transformers.batching import Batcher
from abduce.serving.transformers.query_ttt import QueryTTT, adapt, prefill
from abduce.serving.transformers.slots import Slots

KEYS, VALUES = 256, 8
FEWEST = 4
GROWTH = (1, 4, 16, 64)
LONGEST = 4 * FEWEST * GROWTH[-1]
FACT, QUESTION, VALUE = 0, KEYS * VALUES, KEYS * VALUES + KEYS  # where these tokens begin
SIZE = VALUE + VALUES
RATES = (3e-6, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)


@dataclass(frozen=True)
class Context:
    """`ids` end with the question; `needle` is where its fact stands; `asked`: the context asks it too."""

    ids: list[int]
    needle: int
    answer: int
    asked: bool


def context_of(n_facts: int, rng: random.Random) -> Context:
    """Behind each fact a question about a random one so far, and at the end one about a random one."""
    facts = [(key, rng.randrange(VALUES)) for key in rng.sample(range(KEYS), n_facts)]
    needle, at, asked, ids = rng.randrange(n_facts), 0, set[int](), list[int]()
    for i, (key, value) in enumerate(facts):
        at = len(ids) if i == needle else at
        about = rng.randrange(i + 1)
        asked.add(about)
        ids += [FACT + key * VALUES + value, QUESTION + facts[about][0], VALUE + facts[about][1]]
    key, value = facts[needle]
    return Context([*ids, QUESTION + key], at, VALUE + value, needle in asked)


# ---------------------------------------------------------------- the reader

CODE, OF_VALUE, KIND, SAID = slice(0, 32), slice(32, 40), slice(40, 43), slice(43, 51)  # parts of a state
WIDTH = 64


def reader(sharpness: float = 1.5) -> Any:
    """A question's logit for what shares its key is about `sharpness`, that for other facts about 0."""
    config = transformers.LlamaConfig(
        vocab_size=SIZE,
        hidden_size=WIDTH,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=WIDTH,
        max_position_embeddings=LONGEST,
        rope_parameters={"rope_type": "default", "rope_theta": 1e9},
        bos_token_id=None,
        eos_token_id=None,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    made = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 2, (KEYS, 32), generator=made) * 2.0 - 1
    for weight in model.parameters():
        torch.nn.init.constant_(weight, float(weight.ndim == 1))  # norms of 1
    with torch.no_grad():
        tokens, out = model.get_input_embeddings().weight, model.lm_head.weight
        facts = tokens[FACT:QUESTION].view(KEYS, VALUES, WIDTH)
        facts[:, :, CODE] = codes[:, None]
        facts[:, :, OF_VALUE] = 4 * torch.eye(VALUES)
        tokens[QUESTION:VALUE, CODE] = codes
        kinds = [slice(FACT, QUESTION), slice(QUESTION, VALUE), slice(VALUE, SIZE)]
        for kind, here in enumerate(kinds):  # behind a fact comes a question, then its value, then a fact
            tokens[here, KIND.start + kind] = 4
            out[kinds[(kind + 1) % 3], KIND.start + kind] = 3
        out[VALUE:, SAID] = torch.eye(VALUES)
        attention = model.model.layers[0].self_attn
        slow = torch.cat([torch.arange(16, 32), torch.arange(48, 64)])  # that RoPE hardly turns
        for weight in (attention.q_proj.weight, attention.k_proj.weight):
            weight[slow, CODE] = torch.eye(32) * (sharpness * WIDTH**0.5 / 32) ** 0.5
        attention.v_proj.weight[:VALUES, OF_VALUE] = torch.eye(VALUES)
        attention.o_proj.weight[SAID, :VALUES] = 4 * torch.eye(VALUES)
    return model


# ---------------------------------------------------------------- what is measured


@dataclass(frozen=True)
class Read:
    """Whether the answer is right, attention on the needle's fact, and seconds."""

    right: bool
    mass: float
    seconds: float


def read(model: Any, context: Context, *, config: QueryTTT | None = None, scale: float = 1.0) -> Read:
    """Prefill, then train or scale the queries, then answer."""
    own, ids = query_weights.twin(model), torch.tensor(context.ids)
    memory = Slots(own, 1)
    batcher = Batcher(memory, 1)
    batcher.submit(prefill(context.ids[:-1]), 1).result()
    batcher.close()
    kept = memory.ordinary(0)
    began = time.perf_counter()
    if config is not None:
        adapt(own, kept, ids, config, seed=context.needle)
    seconds = time.perf_counter() - began
    last = len(ids) - 1
    masses: list[float] = []

    def watched(module: Any, query: Any, key: Any, value: Any, mask: Any, *, scaling: float, **_: Any) -> Any:
        p = (scale * scaling * query @ key.transpose(2, 3)).softmax(-1)
        masses.append(float(p[0, :, 0, context.needle].mean()))
        return (p @ value).transpose(1, 2), None

    transformers.AttentionInterface.register("watched", watched)
    own.config._attn_implementation = "watched"
    with torch.no_grad():  # reading "recomputed": the question's own key and value are fresh, as in an answer
        logits = query_weights.span_logits(own, kept, ids, last, 1, "recomputed")
    return Read(int(logits[0].argmax()) == context.answer, sum(masses) / len(masses), seconds)


def compare(model: Any, n_contexts: int, config: QueryTTT, growths: Sequence[int]) -> None:
    columns = ("facts", "tokens", "way", "accuracy", "difference", "not asked before", "attention")
    table_head(*columns, "seconds")
    for growth in growths:
        rng = random.Random(growth)
        contexts = [context_of(FEWEST * growth, rng) for _ in range(n_contexts)]
        scale = 1 + math.log(growth) / 2
        ways: dict[str, dict[str, Any]] = {
            "as it is": {},
            "queries scaled": {"scale": scale},
            "queries trained": {"config": config},
        }
        plain: list[Read] = []
        for way, words in ways.items():
            done = [read(model, context, **words) for context in contexts]
            plain = plain or done
            mean = [sum(column) / n_contexts for column in zip(*map(_numbers, done), strict=True)]
            gain = paired([each.right for each in done], [each.right for each in plain])
            fresh = [each.right for each, context in zip(done, contexts, strict=True) if not context.asked]
            unasked = f"{sum(fresh)} of {len(fresh)}"
            shown = [
                f"{mean[0]:.2f}",
                told(gain, "+.2f") if plain is not done else "",
                unasked,
                f"{mean[1]:.3f}",
                f"{mean[2]:.2f}",
            ]
            table_row(FEWEST * growth, len(contexts[0].ids), way, *shown)


def _numbers(done: Read) -> tuple[float, float, float]:
    return float(done.right), done.mass, done.seconds


def sweep(model: Any, n_contexts: int, config: QueryTTT) -> None:
    table_head("learning rate", "accuracy", "attention on the needle")
    rng = random.Random(1000)  # other contexts than those of `compare`
    contexts = [context_of(FEWEST * GROWTH[-1], rng) for _ in range(n_contexts)]
    for rate in (0.0, *RATES):
        done = [read(model, each, config=replace(config, learning_rate=rate)) for each in contexts]
        right, mass = (
            sum(column) / n_contexts for column in list(zip(*map(_numbers, done), strict=True))[:2]
        )
        table_row(f"{rate:g}", f"{right:.2f}", f"{mass:.3f}")


# ---------------------------------------------------------------- what it costs


def cost(
    config: QueryTTT, hidden: int = 576, layers: int = 6, wide: int = 1536, vocabulary: int = 1024
) -> None:
    """The paper counts 2 (2 d L k T + (2 + 3 r) d² L k) multiplications: nothing for the head."""
    sizes = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=wide,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
    )
    model = transformers.LlamaForCausalLM(sizes).eval()
    table_head("keys that the span sees", "multiplications over the count", "CPU seconds, median of 7")
    for n in (300, 1500, 4000):
        ids = torch.randint(0, vocabulary, (n,), generator=torch.Generator().manual_seed(n))
        own, k = query_weights.twin(model), config.span
        memory = Slots(own, 1)
        batcher = Batcher(memory, 1)
        batcher.submit(prefill(ids[:-1].tolist()), 1).result()
        batcher.close()
        kept, weights, start = memory.ordinary(0), query_weights.own_queries(own), n - k - 1
        with FlopCounterMode(display=False) as counter:
            torch.autograd.grad(query_weights.span_loss(own, kept, ids, start, k), weights)
        seconds = []
        for _ in range(7):
            began = time.process_time()
            torch.autograd.grad(query_weights.span_loss(own, kept, ids, start, k), weights)
            seconds.append(time.process_time() - began)
        told = 2 * layers * k * (2 * hidden * (start + k) + (2 + 3 * wide / hidden) * hidden**2)
        ratio = counter.get_total_flops() / 2 / told
        table_row(start + k, f"{ratio:.3f}", f"{sorted(seconds)[3]:.3f}")


def main() -> None:
    parser = command(__doc__)
    parser.add_argument("--contexts", type=int, default=60)
    parser.add_argument("--sharpness", type=float, default=1.5)
    parser.add_argument("--rate", type=float, default=0.01)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--span", type=int, default=128)
    parser.add_argument("--growth", type=int, nargs="*", default=GROWTH)
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--cost", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = QueryTTT(n_steps=options.steps, span=options.span, learning_rate=options.rate)
    if options.cost:
        cost(config)
        return
    model = reader(options.sharpness)
    print(f"{options.contexts} contexts, sharpness {options.sharpness:g}, {config}\n")
    if options.sweep:
        sweep(model, options.contexts, config)
    else:
        compare(model, options.contexts, config, options.growth)


if __name__ == "__main__":
    main()
