"""What a ThinkSum program is, and everything that can be wrong with one, found before any call.

    read:   {words: choices}
    think:  [{op: score, as: l, over: {i: words, j: words}, context: "{j},", continuation: " {i}"}]
    sum:    {op: product, of: {op: both, of: l}, over: [j]}
    decide: argmin

`read` takes texts and lists out of the task; `think` asks for tables, texts and lists, each with a name that
later ones may use; `sum` is an expression over the tables whose value has one axis, the list of answers;
`decide` takes an answer from it. An index stands for one list in the whole program.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...serving.errors import UnknownName, UsageError
from ..base import Task
from .table import OPERATORS

JOINS = ("ratio", "plus", "both")
ODD = ("minority", "latent")
LISTS = ("examples", "extend", "facts", "translate")
_THINK: dict[str, tuple[set[str], set[str]]] = {  # op → keys it must have, keys it may have
    "score": ({"context", "continuation"}, {"over", "per"}),
    "label": ({"context"}, {"over", "yes", "no"}),
    "substitute": ({"template", "replace"}, {"over"}),
    "readings": ({"of", "objects", "context"}, {"by", "k", "against"}),
    **dict.fromkeys(LISTS, ({"prompt"}, {"over", "k", "temperature", "max_tokens"})),
}
_DECIDE: dict[str, set[str]] = {
    "argmax": set(),
    "argmin": set(),
    "top_k": {"k"},
    "threshold": {"at", "above", "below", "among"},
}
_READ = {"pattern", "of", "split", "unless"}
PLACE = re.compile(r"\{(\w+)\}")


class Unanswerable(Exception):
    """A program cannot be carried out for this task, and why."""


@dataclass
class Program:
    """A program that has been checked. `indices` maps each index to its list, `axes` each table and text to
    its indices, `answers` names the list that is chosen from."""

    read: Mapping[str, Any]
    think: Sequence[Mapping[str, Any]]
    sum: Any
    decide: Mapping[str, Any]
    indices: dict[str, str] = field(default_factory=dict)
    axes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    lists: set[str] = field(default_factory=set)
    kinds: dict[str, str] = field(default_factory=dict)  # of what `think` names: the op
    answers: str = ""

    @classmethod
    def checked(cls, words: Mapping[str, Any]) -> "Program":
        """Raises UsageError, which says where, for whatever can be told from the words alone."""
        _keys("a program", words, {"think", "sum", "decide"}, {"read"})
        decide = words["decide"]
        decide = {"by": decide} if isinstance(decide, str) else decide
        read, think = words.get("read", {}), words["think"]
        if not isinstance(read, Mapping) or not isinstance(decide, Mapping):
            raise UsageError("In a program, read and decide are mappings.")
        if not isinstance(think, Sequence) or isinstance(think, str) or not think:
            raise UsageError("In a program, think is a list of queries, at least one.")
        made = cls(read, think, words["sum"], decide)
        made._check()
        return made

    @property
    def scores(self) -> bool:
        """Whether any query asks for the likelihood of a given text."""
        return any(q["op"] in ("score", "label") or _weighed(q) for q in self.think)

    # ------------------------------------------------------------ checks

    def _check(self) -> None:
        for name, spec in self.read.items():
            self._check_read(name, spec)
        for query in self.think:
            self._check_query(query)
        axes = self._shape(self.sum)
        by = self.decide.get("by", "")
        if by not in _DECIDE:
            raise UnknownName("way to decide", by, _DECIDE)
        either = {"below", "among"} & _DECIDE[by]
        _keys(f"decide by {by}", self.decide, {"by", *_DECIDE[by]} - either, either)
        if either:
            if len(either & set(self.decide)) != 1:
                raise UsageError(
                    "decide by threshold: give below, or among, the list that the other answer is in."
                )
            self._list(self.decide.get("among", next(iter(self.lists), "")))
        if by == "threshold" and not isinstance(self.decide["at"], (int, float)):
            raise UsageError(f"decide by threshold: at is a number, got {self.decide['at']!r}.")
        if by == "top_k" and not self._is_count(self.decide["k"]):
            raise UsageError(f"decide by top_k: k is a number or a text's name, got {self.decide['k']!r}.")
        if len(axes) != (0 if by == "threshold" else 1):
            wanted = "no axis left" if by == "threshold" else "one axis left, that of the answers"
            raise UsageError(f"decide: {by} needs {wanted}; the sum has {list(axes) or 'none'}.")
        self.answers = self.indices[axes[0]] if axes else ""

    def _is_count(self, k: Any) -> bool:
        """Whether it is a number of answers, or the name of a text that holds one."""
        if isinstance(k, str):
            return self.axes.get(k) == () and k not in self.lists
        return isinstance(k, int) and k >= 1

    def _check_read(self, name: str, spec: Any) -> None:
        self._new(name)
        if isinstance(spec, Mapping) and "list" in spec:
            _keys(f"read.{name}", spec, {"list"}, set())
            self.lists.add(name)
        elif isinstance(spec, Mapping):
            _keys(f"read.{name}", spec, {"pattern"}, _READ)
            try:
                groups = re.compile(spec["pattern"]).groups
            except (re.error, TypeError) as error:
                raise UsageError(f"read.{name}: {spec['pattern']!r} is no pattern: {error}.") from None
            if groups != 1:
                raise UsageError(f"read.{name}: the pattern has {groups} groups. Write exactly one (…).")
            if "split" in spec:
                self.lists.add(name)
        elif (isinstance(spec, Sequence) and not isinstance(spec, str)) or spec == "choices":
            self.lists.add(name)
        elif not isinstance(spec, str):
            raise UsageError(
                f"read.{name} is 'choices', 'question', the name of a text in the task's metadata, "
                f"{{list: name}} of one there, {{pattern: …}} or a list, got {spec!r}."
            )
        self.axes.setdefault(name, ())

    def _check_query(self, query: Any) -> None:
        op = str(query.get("op", "")) if isinstance(query, Mapping) else repr(query)
        if op not in _THINK:
            raise UnknownName("think operation", op, _THINK)
        must, may = _THINK[op]
        name = str(query.get("as", ""))
        _keys(f"think.{name or op}", query, {"op", "as", *must}, may)
        for key, kind in (("k", int), ("max_tokens", int), ("temperature", (int, float))):
            if not isinstance(query.get(key, 1), kind) or query.get(key, 1) < (key != "temperature"):
                raise UsageError(f"think.{name}: {key} must be a positive number, got {query[key]!r}.")
        if query.get("per", "sum") not in ("sum", "token", "byte"):
            raise UsageError(f"think.{name}: per is 'sum', 'token' or 'byte', got {query['per']!r}.")
        over = self._readings(name, query) if op == "readings" else self._texts(name, query)
        self._new(name)
        self.kinds[name] = op
        if op in LISTS:
            self.lists.add(name)
        self.axes[name] = over

    def _readings(self, name: str, query: Mapping[str, Any]) -> tuple[str, ...]:
        for key in ("of", "objects"):
            self._list(query[key])
        contexts = query["context"] if isinstance(query["context"], (list, tuple)) else [query["context"]]
        for context in contexts:
            self._places(context, {"it"})
        if query.get("by", "likelihood") not in ("likelihood", "samples"):
            raise UsageError(f"think.{name}: by is 'likelihood' or 'samples', got {query['by']!r}.")
        return (query["of"],)

    def _texts(self, name: str, query: Mapping[str, Any]) -> tuple[str, ...]:
        over = self._over(query.get("over", ()))
        for key in ("context", "continuation", "prompt", "template"):
            if key in query:
                self._places(query[key], set(over))
        replace = query.get("replace", {})
        if not isinstance(replace, Mapping) or any(
            self.axes.get(w) != () or w in self.lists for w in replace
        ):
            raise UsageError(f"think.{name}: replace maps names of texts to indices, got {replace!r}.")
        for by in replace.values():
            self._places("{" + str(by) + "}", set(over))
        return over

    def _over(self, over: Any) -> tuple[str, ...]:
        """The indices of a query; a bare list is an index of its own name."""
        if isinstance(over, str) or not isinstance(over, (Mapping, Sequence)):
            raise UsageError(f"over is a list of lists' names or {{index: list}}, got {over!r}.")
        pairs = over.items() if isinstance(over, Mapping) else [(name, name) for name in over]
        for index, of in pairs:
            self._list(of)
            if self.indices.setdefault(index, of) != of:
                raise UsageError(f"The index {index!r} is over {self.indices[index]!r} and over {of!r}.")
        return tuple(index for index, _ in pairs)

    def _places(self, template: Any, beside: set[str]) -> None:
        if not isinstance(template, str):
            raise UsageError(f"A template is a text, got {template!r}.")
        texts = {name for name in self.axes if name not in self.lists}
        for name in PLACE.findall(template):
            if name not in texts | beside:
                raise UnknownName("text in a template", name, texts | beside)
            if missing := set(self.axes.get(name, ())) - beside:
                raise UsageError(f"{{{name}}} needs the index {sorted(missing)[0]!r} in over.")

    def _list(self, name: Any) -> None:
        if name not in self.lists:
            raise UnknownName("list", name, self.lists)

    def _new(self, name: Any) -> None:
        if not isinstance(name, str) or not name.isidentifier():
            raise UsageError(f"A name is a word such as likelihoods, got {name!r}.")
        if name in self.axes:
            raise UsageError(f"The name {name!r} is given twice.")

    # ------------------------------------------------------------ shapes

    def _shape(self, node: Any) -> tuple[str, ...]:
        """The axes of an expression's value."""
        if isinstance(node, str):
            tables = [name for name, op in self.kinds.items() if op in ("score", "label")]
            if node not in tables:
                raise UnknownName("table", node, tables)
            return self.axes[node]
        if not isinstance(node, Mapping):
            raise UsageError(f"A sum is the name of a table or {{op: …, of: …}}, got {node!r}.")
        op = node.get("op")
        known = (*OPERATORS, *JOINS, *ODD, "marginalise")
        if op not in known:
            raise UnknownName("sum operation", op, known)
        if op == "marginalise":
            return self._shape_of_deduction(node)
        if op in JOINS:
            return self._shape_of_join(op, node)
        odd = {"threshold"} if op == "minority" else set()
        _keys(f"sum.{op}", node, {"op", "of", "over"}, odd if op in ODD else {"weights"})
        axes, over = self._shape(node["of"]), node["over"]
        if isinstance(over, str) or not set(over) <= set(axes):
            raise UsageError(f"sum.{op}: over is a list out of {list(axes)}, got {over!r}.")
        if op in ODD and (len(axes) != 2 or len(over) != 1):
            raise UsageError(f"sum.{op} needs a table of two axes and is over one of them, got {list(axes)}.")
        if "weights" in node and not set(self._shape(node["weights"])) <= set(over):
            raise UsageError(f"sum.{op}: weights have the axes of over, {list(over)}.")
        return axes if op == "normalise" else tuple(axis for axis in axes if axis not in over)

    def _shape_of_join(self, op: str, node: Mapping[str, Any]) -> tuple[str, ...]:
        _keys(f"sum.{op}", node, {"op", "of"}, set())
        if op == "both":
            axes = self._shape(node["of"])
            if len(axes) != 2 or self.indices[axes[0]] != self.indices[axes[1]]:
                raise UsageError(f"sum.both needs a table over one list twice, got the axes {list(axes)}.")
            return axes
        parts = node["of"]
        if isinstance(parts, (str, Mapping)) or len(parts) != 2:
            raise UsageError(f"sum.{op} is of two tables, got {parts!r}.")
        one, other = map(self._shape, parts)
        if not set(other) <= set(one):
            raise UsageError(f"sum.{op}: the second has axes {list(other)}, the first only {list(one)}.")
        return one

    def _shape_of_deduction(self, node: Mapping[str, Any]) -> tuple[str, ...]:
        _keys("sum.marginalise", node, {"op", "clues", "answers"}, {"epsilon"})
        for key in ("clues", "answers"):
            if self.kinds.get(node[key]) != "readings":
                known = [name for name, op in self.kinds.items() if op == "readings"]
                raise UnknownName("readings", node[key], known)
        if not 0 < float(node.get("epsilon", 0.05)) < 0.5:
            raise UsageError(f"epsilon must be between 0 and 0.5, got {node['epsilon']!r}.")
        [of] = self.axes[node["answers"]]
        self.indices.setdefault(of, of)
        return (of,)

    # ------------------------------------------------------------ reading a task

    def items(self, task: Task) -> dict[str, str | list[str]]:
        """The texts and lists of `read`. Raises Unanswerable, which says what the task lacks."""
        found: dict[str, str | list[str]] = {}
        for name, spec in self.read.items():
            value = _item(task, spec, found)
            if not value:
                raise Unanswerable(f"the task has nothing to read as {name!r}")
            found[name] = value
        return found


def _weighed(query: Mapping[str, Any]) -> bool:
    return bool(query["op"] == "readings" and query.get("by", "likelihood") == "likelihood")


def _item(task: Task, spec: Any, found: Mapping[str, str | list[str]]) -> str | list[str]:
    if spec == "choices":
        return list(task.choices)
    if spec == "question":
        return task.question.strip()
    if isinstance(spec, str):
        return str(task.metadata.get(spec, ""))
    if not isinstance(spec, Mapping):
        return [str(each) for each in spec]
    if "list" in spec:
        value = task.metadata.get(spec["list"], ())
        return [str(each) for each in value] if isinstance(value, (list, tuple)) else []
    if spec.get("unless") == "choices" and task.choices:
        return list(task.choices)
    source = found.get(spec.get("of", ""), task.question)
    match = re.search(spec["pattern"], source if isinstance(source, str) else "\n".join(source), re.DOTALL)
    if match is None:
        return ""
    if "split" not in spec:
        return match[1].strip()
    return [part for each in re.split(spec["split"], match[1]) if (part := each.strip())]


def _keys(where: str, given: Any, must: set[str], may: set[str]) -> None:
    if not isinstance(given, Mapping):
        raise UsageError(f"{where} is a mapping with {', '.join(sorted(must))}, got {given!r:.100}.")
    for key in given:
        if key not in must | may:
            raise UnknownName(f"key of {where}", key, must | may)
    if missing := sorted(must - set(given)):
        raise UsageError(f"{where} lacks {missing[0]!r}.")


def names(node: Any) -> Iterator[str]:
    """Every name that an expression uses."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, Mapping):
        for key in ("of", "weights", "clues", "answers"):
            yield from names(node.get(key))
    elif isinstance(node, Sequence):
        for part in node:
            yield from names(part)
