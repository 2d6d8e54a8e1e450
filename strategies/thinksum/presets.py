"""The programs that come with the package: direct scoring, and one for each kind of task of the paper.

| program                   | think                              | sum                       |
|---------------------------|------------------------------------|---------------------------|
| `direct`                  | choices after the question         | ratio                     |
| `odd_one_out`             | each word after each other         | product, both directions  |
| `odd_one_out_facts`       | facts, true or not of each word    | latent variable           |
| `phrase_relatedness`      | option after phrase and reverse    | ratios, added             |
| `codenames`               | word after clue and reverse        | ratios, added; the best k |
| `invented_words`          | words for two definitions, put in  | ratio of mixture          |
| `invented_word`           | statements after the definition    | ratio                     |
| `concepts`                | facts; statements after them       | ratio of mixture          |
| `emoji_movie`             | descriptions; titles after them    | ratio of mixture          |
| `logical_deduction`       | clues, answers as statements       | over all arrangements     |
| `misconceptions_russian`  | statements after "true", "false"   | ratio                     |
| `parsinlu_qa`             | translations; choices after them   | majority                  |
| `language_identification` | text after the language's name     | ratio                     |
| `sports_understanding`    | sports after athlete and action    | Σ_s p p, above chance     |
| `known_unknowns`          | answers drawn, how likely each is  | entropy, above ½          |
| `penguins_in_a_table`     | question, choices after each row   | ratio of mixture, by row  |
| `novel_concepts`          | each property of each object       | product of ratios         |
| `code_line_description`   | description after line and reverse | ratios, added             |

The formulas are reconstructed from the paper's descriptions. Where a program reads a question by a pattern,
it is the wording of the BIG-bench task of that name. What is compared differs only in what is asked about, so
that lengths and frequencies cancel.
"""

from typing import Any

_CHOICES = {"options": "choices"}


def _score(name: str, over: Any, context: str, continuation: str, **more: Any) -> dict[str, Any]:
    return {"op": "score", "as": name, "over": over, "context": context, "continuation": continuation, **more}


def _ratio(one: Any, other: Any) -> dict[str, Any]:
    return {"op": "ratio", "of": [one, other]}


def _plus(one: Any, other: Any) -> dict[str, Any]:
    return {"op": "plus", "of": [one, other]}


def _over(op: str, of: Any, *axes: str) -> dict[str, Any]:
    return {"op": op, "of": of, "over": list(axes)}


def _two_ways(read: dict[str, Any], there: str, back: str, item: str, decide: Any) -> dict[str, Any]:
    """l(o | q) − l(o) + l(q | o) − l(q), the second erased premise being the same for all o."""
    options = ["options"]
    return {
        "read": read,
        "think": [
            _score("forth", options, there.replace("{it}", f"{{{item}}}"), " {options}"),
            _score("forth_alone", options, there.replace("{it}", "something"), " {options}"),
            _score("back", options, back.replace("{it}", "{options}"), f" {{{item}}}"),
            _score("back_alone", [], back.replace("{it}", "something"), f" {{{item}}}"),
        ],
        "sum": _plus(_ratio("forth", "forth_alone"), _ratio("back", "back_alone")),
        "decide": decide,
    }


_LIST = "List of similar words: {it},"
_ORDERS = """\
The A is to the left of the B. => <
The A is to the right of the B. => >
A finished below B. => >
A finished above B. => <
The A is newer than the B. => >
The A is older than the B. => <
The A are less expensive than the B. => <
The A are more expensive than the B. => >
The A is the leftmost. => 1
The A is the rightmost. => -1
The A is the second from the right. => -2
The A is the second from the left. => 2
The A is the third from the left. => 3
A finished last. => -1
A finished first. => 1
A finished second. => 2
A finished third. => 3
A finished second-to-last. => -2
The A is the oldest. => 1
The A is the newest. => -1
The A is the second-newest. => -2
The A is the second-oldest. => 2
The A is the third-newest. => -3
The A are the cheapest. => 1
The A are the most expensive. => -1
The A are the second-cheapest. => 2
The A are the second-most expensive. => -2
The A are the third-cheapest. => 3
{it} =>"""
_AGAIN = """\
A finished above B. => <
The A is the leftmost. => 1
The A are more expensive than the B. => >
A finished second. => 2
The A is the second from the right. => -2
The A is to the left of the B. => <
The A is the newest. => -1
The A is to the right of the B. => >
The A are the second-cheapest. => 2
A finished below B. => >
The A are the most expensive. => -1
The A is older than the B. => <
A finished last. => -1
The A is the second-newest. => -2
The A is the third from the left. => 3
The A are less expensive than the B. => <
A finished first. => 1
The A are the second-most expensive. => -2
The A is the rightmost. => -1
The A is newer than the B. => >
The A is the second-oldest. => 2
The A are the cheapest. => 1
The A is the second from the left. => 2
A finished second-to-last. => -2
A finished third. => 3
The A is the oldest. => 1
The A is the third-newest. => -3
{it} =>"""
_ERASED = [  # one of each kind, so that their mean says nothing of any
    "The A is to the left of the B.",
    "The A is to the right of the B.",
    "The A is older than the B.",
    "The A is newer than the B.",
    "The A is the leftmost.",
    "The A is the second from the left.",
    "The A is the third from the left.",
    "The A is the second from the right.",
    "The A is the rightmost.",
]


def _readings(name: str, of: str) -> dict[str, Any]:
    contexts = [_ORDERS, _AGAIN]
    return {
        "op": "readings",
        "as": name,
        "of": of,
        "objects": "objects",
        "context": contexts,
        "against": _ERASED,
    }


PRESETS: dict[str, dict[str, Any]] = {
    "direct": {
        "read": {"question": "question", "options": "choices"},
        "think": [
            _score("asked", ["options"], "Question: {question}\nAnswer:", " {options}"),
            _score("unasked", ["options"], "Answer:", " {options}"),
        ],
        "sum": _ratio("asked", "unasked"),
        "decide": "argmax",
    },
    "odd_one_out": {
        "read": {"words": {"pattern": r"[^:]*:\s*(.+?)[.?]?$", "split": ",", "unless": "choices"}},
        "think": [_score("after", {"i": "words", "j": "words"}, "List of words: {j},", " {i}")],
        "sum": _over("product", {"op": "both", "of": "after"}, "j"),
        "decide": "argmin",
    },
    "odd_one_out_facts": {
        "read": {"words": {"pattern": r"[^:]*:\s*(.+?)[.?]?$", "split": ",", "unless": "choices"}},
        "think": [
            {"op": "facts", "as": "facts", "over": ["words"], "k": 2, "prompt": "Fact: a {words} is"},
            {
                "op": "label",
                "as": "truth",
                "over": ["facts", "words"],
                "context": "Is this true? A {words} is {facts}.\nAnswer Yes or No:",
            },
        ],
        "sum": _over("latent", "truth", "facts"),
        "decide": "argmax",
    },
    "phrase_relatedness": _two_ways(
        {"phrase": "question", "options": "choices"}, _LIST, _LIST, "phrase", "argmax"
    ),
    "codenames": _two_ways(
        {
            "clue": {"pattern": r"associated with the word (.+?) from"},
            "k": {"pattern": r"the (\d+) words? best"},
            "options": {"pattern": r"following list: (.+?)\.", "split": ","},
        },
        _LIST,
        _LIST,
        "clue",
        {"by": "top_k", "k": "k"},
    ),
    "invented_words": {
        "read": {
            "first": {"pattern": r"The word '(\w+)'"},
            "second": {"pattern": r"and the word '(\w+)'"},
            "what": {"pattern": r"The word '\w+' means (.+?), and the word"},
            "else": {"pattern": r"and the word '\w+' means (.+?)\. Question"},
            "statements": "choices",
        },
        "think": [
            {"op": "examples", "as": "ones", "k": 6, "prompt": "One example of {what} is a"},
            {"op": "examples", "as": "twos", "k": 6, "prompt": "One example of {else} is a"},
            {
                "op": "substitute",
                "as": "filled",
                "over": ["statements", "ones", "twos"],
                "template": "{statements}",
                "replace": {"first": "ones", "second": "twos"},
            },
            _score("real", ["statements", "ones", "twos"], "It is a fact:", " {filled}"),
            _score("invented", ["statements"], "It is a fact:", " {statements}"),
        ],
        "sum": _ratio(_over("mixture", "real", "ones", "twos"), "invented"),
        "decide": "argmax",
    },
    "invented_word": {
        "read": {
            "noun": {"pattern": r"characterizes \w+ (.+?)\?"},
            "what": {"pattern": r"is an adjective for \w+ (.+?)\. Question"},
            "statements": "choices",
        },
        "think": [
            _score("defined", ["statements"], "About {noun} {what}:", " {statements}"),
            _score("undefined", ["statements"], "About {noun}:", " {statements}"),
        ],
        "sum": _ratio("defined", "undefined"),
        "decide": "argmax",
    },
    "concepts": {
        "read": {"concept": {"pattern": r"Concept: (.+?)\. Question"}, "statements": "choices"},
        "think": [
            {"op": "facts", "as": "facts", "k": 6, "prompt": "What is special about {concept}? They"},
            _score("known", ["statements", "facts"], "About {concept}: they {facts}", " {statements}"),
            _score("unknown", ["statements"], "About something:", " {statements}"),
        ],
        "sum": _ratio(_over("mixture", "known", "facts"), "unknown"),
        "decide": "argmax",
    },
    "emoji_movie": {
        "read": {"emoji": {"pattern": r"describe\? (.+)"}, "titles": "choices"},
        "think": [
            {
                "op": "translate",
                "as": "plots",
                "k": 5,
                "max_tokens": 24,
                "prompt": "The emoji {emoji} in words, separated by commas:",
            },
            _score("told", ["titles", "plots"], "A movie about {plots}. The movie is called", " {titles}"),
            _score("untold", ["titles"], "A movie about something. The movie is called", " {titles}"),
        ],
        "sum": _ratio(_over("mixture", "told", "plots"), "untold"),
        "decide": "argmax",
    },
    "logical_deduction": {
        "read": {
            "objects": {"pattern": r":\s*(.+?)\.", "split": r",\s*and\s+|,\s*|\s+and\s+|\b(?:an?|the)\s+"},
            "clues": {"pattern": r":.+?\.\s*(.+)", "split": r"(?<=\.)\s+"},
            "answers": "choices",
        },
        "think": [
            _readings("read", "clues"),
            _readings("asked", "answers"),
        ],
        "sum": {"op": "marginalise", "clues": "read", "answers": "asked"},
        "decide": "argmax",
    },
    "misconceptions_russian": {
        "read": {"statements": "choices"},
        "think": [
            _score("held", ["statements"], "Это правда:", " {statements}"),
            _score("alone", ["statements"], "Это неправда:", " {statements}"),
        ],
        "sum": _ratio("held", "alone"),
        "decide": "argmax",
    },
    "parsinlu_qa": {
        "read": {"question": "question", "options": "choices"},
        "think": [
            {
                "op": "translate",
                "as": "english",
                "prompt": "Persian: {question}\nEnglish translation:",
            },
            _score("asked", ["options", "english"], "Question: {english}\nAnswer in Persian:", " {options}"),
            _score("unasked", ["options"], "Answer in Persian:", " {options}"),
        ],
        "sum": _over("majority", _ratio("asked", "unasked"), "english"),
        "decide": "argmax",
    },
    "language_identification": {
        "read": {"text": {"pattern": r"(?:.*?:\s*)?(.+)"}, "languages": "choices"},
        "think": [
            _score("named", ["languages"], "The following is in {languages}:", " {text}"),
            _score("unnamed", [], "The following is in a language:", " {text}"),
        ],
        "sum": _ratio("named", "unnamed"),
        "decide": "argmax",
    },
    "sports_understanding": {
        "read": {
            "athlete": {"pattern": r"^((?:[A-Z][\w'.\-]*\s)+)"},
            "action": {"pattern": r"^(?:[A-Z][\w'.\-]*\s)+(.+)"},
            "sports": ["basketball", "soccer", "football", "baseball", "hockey"],
        },
        "think": [
            _score("of_athlete", ["sports"], "{athlete} is a famous player of", " {sports}"),
            _score("of_anyone", ["sports"], "Someone is a famous player of", " {sports}"),
            _score("of_action", ["sports"], 'The phrase "{action}" is from the sport of', " {sports}"),
            _score("of_anything", ["sports"], "The phrase is from the sport of", " {sports}"),
        ],
        "sum": _over(
            "mixture",
            _plus(
                _over("normalise", _ratio("of_athlete", "of_anyone"), "sports"),
                _over("normalise", _ratio("of_action", "of_anything"), "sports"),
            ),
            "sports",
        ),
        # The mean of p·q over n sports is 1/n² where the two say nothing of each other: ln 1/25.
        "decide": {"by": "threshold", "at": -3.2189, "above": "plausible", "below": "implausible"},
    },
    "known_unknowns": {
        "read": {"question": "question", "options": "choices"},
        "think": [
            {"op": "translate", "as": "drawn", "k": 8, "max_tokens": 12, "prompt": "Q: {question}\nA:"},
            _score("sure", ["drawn"], "Q: {question}\nA:", " {drawn}", per="token"),
        ],
        "sum": _over("entropy", "sure", "drawn"),
        "decide": {"by": "threshold", "at": 0.5, "above": "Unknown", "among": "options"},
    },
    # Σ_r p(r | question) p(choice | r, question): looks up one row. It cannot count rows nor compare them.
    "penguins_in_a_table": {
        "read": {
            "header": {"pattern": r"\n\n([^\n]+)\n"},
            "rows": {
                "pattern": r"\n\n[^\n]+\n(.+)\n[^\n]+$",
                "split": r"\n(?:[^\n]*:[^\n]*(?:\n|$)|\n)*",  # a line with a colon is no row
            },
            "question": {"pattern": r"([^\n]+)$"},
            "options": "choices",
        },
        "think": [
            _score("asked", ["rows"], "{header}\n{rows}\nQuestion:", " {question}"),
            _score(
                "told", ["options", "rows"], "{header}\n{rows}\nQuestion: {question}\nAnswer:", " {options}"
            ),
            _score("untold", ["options"], "{header}\nQuestion: {question}\nAnswer:", " {options}"),
        ],
        "sum": {"op": "mixture", "of": _ratio("told", "untold"), "over": ["rows"], "weights": "asked"},
        "decide": "argmax",
    },
    "novel_concepts": {
        "read": {"objects": {"pattern": r"[^:]*:\s*(.+?)[.?]?$", "split": ","}, "properties": "choices"},
        "think": [
            _score("of_each", ["properties", "objects"], "About {objects}:", " {properties}"),
            _score("of_nothing", ["properties"], "About something:", " {properties}"),
        ],
        "sum": _over("product", _ratio("of_each", "of_nothing"), "objects"),
        "decide": "argmax",
    },
    "code_line_description": _two_ways(
        {"line": "question", "options": "choices"},
        "Python code: {it}\nWhat it does:",
        "What it does: {it}\nPython code:",
        "line",
        "argmax",
    ),
}
"""Name → program; `docs/strategies/thinksum.md` says what each was measured at."""
