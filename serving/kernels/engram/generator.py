"""NumPy's `default_rng(seed).integers`, in Python's own integers.

A model's addresses are drawn from it, so they must be the same everywhere and always: with any release of
NumPy, whose generators may change, and without it. Source: PCG64 (XSL-RR 128/64), O'Neill 2014, seeded by
NumPy's SeedSequence; bounded by Lemire's multiplication, arXiv 1805.10941.
"""

_32, _64, _128 = 2**32 - 1, 2**64 - 1, 2**128 - 1


def integers(seed: int, bound: int, n: int) -> list[int]:
    """n integers, uniform in [0, bound); 2³² < bound ≤ 2⁶³, for which NumPy draws 64 bits at a time."""
    assert 2**32 < bound <= 2**63 and seed >= 0
    high, low, more, inc = _words(seed)
    inc = ((more << 64 | inc) << 1 | 1) & _128
    state = _step((inc + (high << 64 | low)) & _128, inc)
    drawn: list[int] = []
    while len(drawn) < n:
        state = _step(state, inc)
        product = _output(state) * bound
        if product & _64 >= 2**64 % bound:  # below it some numbers would come up once more than others
            drawn.append(product >> 64)
    return drawn


def _step(state: int, inc: int) -> int:
    return (state * 0x2360ED051FC65DA44385DF649FCCF645 + inc) & _128


def _output(state: int) -> int:
    word, turn = (state >> 64) ^ (state & _64), state >> 122
    return (word >> turn | word << (64 - turn)) & _64


def _words(seed: int) -> list[int]:
    """Four words of 64 bits from a seed of at most 128."""
    constant = 0x43B0D7E5

    def hashed(value: int) -> int:
        nonlocal constant
        value ^= constant
        constant = constant * 0x931E8875 & _32
        value = value * constant & _32
        return value ^ value >> 16

    pool = [hashed(seed >> 32 * i & _32) for i in range(4)]
    for source in range(4):
        for target in range(4):
            if source != target:
                mixed = (0xCA01F9DD * pool[target] - 0x4973F715 * hashed(pool[source])) & _32
                pool[target] = mixed ^ mixed >> 16
    constant, halves = 0x8B51F9DD, []
    for i in range(8):
        value = pool[i % 4] ^ constant
        constant = constant * 0x58F38DED & _32
        value = value * constant & _32
        halves.append(value ^ value >> 16)
    return [halves[i] | halves[i + 1] << 32 for i in range(0, 8, 2)]
