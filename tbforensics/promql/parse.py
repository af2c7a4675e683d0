"""PromQL text -> a small tree of frozen nodes, or one error that lists what cannot be replayed.

The parser is promql-parser, a Rust one that keeps to Prometheus. It recurses, so text
that would exhaust its stack (thousands of nested parentheses) is turned away before it sees it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import promql_parser

from tbforensics.errors import EvidenceError

_LONGEST_TEXT = 20_000
_DEEPEST = 60  # brackets within brackets; rules that people write stay below ten
_MOST_WORDS = 400  # names, numbers and operators
_STRING = re.compile(r'"(?:[^"\\\n]|\\.)*"|\'(?:[^\'\\\n]|\\.)*\'|`[^`]*`|#[^\n]*')
_WORD = re.compile(r"[A-Za-z_0-9:.]+|[-+*/%^=!<>@]+?")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


RANGE_FUNCTIONS = _words(
    "rate increase delta irate idelta changes resets deriv predict_linear avg_over_time "
    "min_over_time max_over_time sum_over_time count_over_time last_over_time present_over_time "
    "stddev_over_time stdvar_over_time quantile_over_time absent_over_time"
)
VECTOR_FUNCTIONS = _words(
    "abs ceil floor round exp ln log2 log10 sqrt sgn clamp clamp_min clamp_max histogram_quantile "
    "absent vector scalar time timestamp sort sort_desc label_replace label_join hour minute "
    "day_of_week day_of_month month year"
)
AGGREGATIONS = _words("sum avg min max count group stddev stdvar quantile")
COMPARISONS = _words("== != > < >= <=")
ARITHMETIC = _words("+ - * / % ^")
SET_OPERATORS = _words("and or unless")


class Unsupported(EvidenceError):
    """An expression that is not replayed; `problems` lists every part of it that is in the way."""

    def __init__(self, *problems: str) -> None:
        super().__init__(
            "this expression cannot be replayed",
            problems=problems,
            next_step="ask the server that holds the data",
        )


@dataclass(frozen=True)
class Number:
    value: float


@dataclass(frozen=True)
class Text:
    value: str


@dataclass(frozen=True)
class Match:
    """One label matcher; `op` is one of = != =~ !~."""

    name: str
    op: str
    value: str


@dataclass(frozen=True)
class Select:
    """A selector; `range_ms` is 0 for an instant one. A name is a matcher of `__name__` too."""

    name: str
    matchers: tuple[Match, ...]
    offset_ms: int = 0
    range_ms: int = 0


@dataclass(frozen=True)
class Subquery:
    expr: Node
    range_ms: int
    step_ms: int
    offset_ms: int = 0


@dataclass(frozen=True)
class Call:
    name: str
    args: tuple[Node, ...]


@dataclass(frozen=True)
class Aggregate:
    """`by` is False for `without`; no labels and `by` is everything in one."""

    op: str
    expr: Node
    param: Node | None
    by: bool
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Matching:
    """How two vectors meet. on: the labels are those that must agree, else those ignored.

    many: "" for one to one, "left" or "right" for the side of `group_left`, `group_right`.
    """

    on: bool = False
    labels: tuple[str, ...] = ()
    many: str = ""
    include: tuple[str, ...] = ()


@dataclass(frozen=True)
class Binary:
    op: str
    left: Node
    right: Node
    returns_bool: bool = False
    matching: Matching = field(default_factory=Matching)


@dataclass(frozen=True)
class Negate:
    expr: Node


Node = Number | Text | Select | Subquery | Call | Aggregate | Binary | Negate


def read(text: str) -> Node:
    """The tree of an expression.

    Errors: Unsupported, listing all that cannot be replayed, or the parser's own complaint.
    """
    _bounded(text)
    try:
        parsed = promql_parser.parse(text)
    except ValueError as error:  # a lone surrogate is one too
        raise Unsupported(f"it is no PromQL that we know: {error}"[:300]) from None
    reader = _Reader()
    tree = reader.node(parsed)
    if reader.problems:
        raise Unsupported(*dict.fromkeys(reader.problems))
    return tree


def _bounded(text: str) -> None:
    bare = _STRING.sub(" ", text[: _LONGEST_TEXT + 1])
    depth = deepest = 0
    for character in bare:
        if character in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in ")]}":
            depth -= 1
    words = len(_WORD.findall(bare))
    for size, most, what in (
        (len(text), _LONGEST_TEXT, "characters"),
        (deepest, _DEEPEST, "brackets within brackets"),
        (words, _MOST_WORDS, "names, numbers and operators"),
    ):
        if size > most:
            raise Unsupported(f"more than {most} {what}")


def walk(tree: Node) -> Iterator[Node]:
    """Every node of a tree, outermost first."""
    yield tree
    match tree:
        case Call():
            inner: tuple[Node, ...] = tree.args
        case Binary():
            inner = (tree.left, tree.right)
        case Aggregate():
            inner = (tree.expr, *((tree.param,) if tree.param else ()))
        case Subquery() | Negate():
            inner = (tree.expr,)
        case _:
            inner = ()
    for node in inner:
        yield from walk(node)


def selectors(tree: Node) -> list[Select]:
    return [node for node in walk(tree) if isinstance(node, Select)]


def reach_ms(tree: Node) -> int:
    """How far before the moment of evaluation an expression looks, without the lookback."""
    match tree:
        case Select():
            return tree.range_ms + max(0, tree.offset_ms)
        case Subquery():
            return reach_ms(tree.expr) + tree.range_ms + tree.step_ms + max(0, tree.offset_ms)
        case _:
            below = [node for node in walk(tree) if node is not tree]
            return max((reach_ms(n) for n in below if isinstance(n, Select | Subquery)), default=0)


class _Reader:
    """Copies the parser's tree into ours and notes what it cannot copy."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def node(self, parsed: Any) -> Node:
        match type(parsed).__name__:
            case "ParenExpr":
                return self.node(parsed.expr)
            case "NumberLiteral":
                return Number(float(parsed.val))
            case "StringLiteral":
                return Text(parsed.val)
            case "VectorSelector":
                return self._select(parsed, None)
            case "MatrixSelector":
                return self._select(parsed.vector_selector, parsed.range)
            case "SubqueryExpr":
                return self._subquery(parsed)
            case "UnaryExpr":
                return Negate(self.node(parsed.expr))
            case "Call":
                return self._call(parsed)
            case "AggregateExpr":
                return self._aggregate(parsed)
            case "BinaryExpr":
                return self._binary(parsed)
            case other:
                self.problems.append(f"what the parser calls {other}")
                return Number(0.0)

    def _select(self, parsed: Any, span: timedelta | None) -> Select:
        if parsed.at is not None:
            self.problems.append("the @ modifier")
        if parsed.matchers.or_matchers:
            self.problems.append("`or` between label matchers")
        ops = {"Equal": "=", "NotEqual": "!=", "Re": "=~", "NotRe": "!~"}
        matchers = [
            Match(m.name, ops[str(m.op).rpartition(".")[2]], m.value)
            for m in parsed.matchers.matchers
        ]
        name = parsed.name or ""
        if not name:
            name = next((m.value for m in matchers if m.name == "__name__" and m.op == "="), "")
        return Select(name, tuple(matchers), _ms(parsed.offset), _ms(span))

    def _subquery(self, parsed: Any) -> Node:
        if parsed.at is not None:
            self.problems.append("the @ modifier")
        if not parsed.step:
            self.problems.append("a subquery without a step: the server's default is not recorded")
        return Subquery(
            self.node(parsed.expr), _ms(parsed.range), _ms(parsed.step), _ms(parsed.offset)
        )

    def _call(self, parsed: Any) -> Call:
        name = parsed.func.name
        if name not in RANGE_FUNCTIONS | VECTOR_FUNCTIONS:
            self.problems.append(f"the function {name}")
        return Call(name, tuple(self.node(arg) for arg in parsed.args))

    def _aggregate(self, parsed: Any) -> Aggregate:
        op = str(parsed.op)
        if op not in AGGREGATIONS:
            self.problems.append(f"the aggregation {op}")
        by, labels = True, ()
        if parsed.modifier is not None:
            by = str(parsed.modifier.type).endswith("By")
            labels = tuple(parsed.modifier.labels)
        param = None if parsed.param is None else self.node(parsed.param)
        return Aggregate(op, self.node(parsed.expr), param, by, labels)

    def _binary(self, parsed: Any) -> Binary:
        op, modifier = str(parsed.op), parsed.modifier
        if op not in COMPARISONS | ARITHMETIC | SET_OPERATORS:
            self.problems.append(f"the operator {op}")
        matching, returns_bool = Matching(), False
        if modifier is not None:
            returns_bool = bool(modifier.return_bool)
            sides = {"ManyToOne": "left", "OneToMany": "right"}
            many = sides.get(str(modifier.card).rpartition(".")[2], "")
            labels = modifier.matching
            matching = Matching(
                on=labels is not None and str(labels.type).endswith("Include"),
                labels=tuple(labels.labels) if labels is not None else (),
                many=many,
                include=tuple(modifier.group_labels or ()),
            )
            fill = modifier.fill_values
            if fill is not None and (fill.lhs is not None or fill.rhs is not None):
                self.problems.append("fill values between vectors")
        return Binary(op, self.node(parsed.lhs), self.node(parsed.rhs), returns_bool, matching)


def _ms(length: timedelta | None) -> int:
    return 0 if length is None else length // timedelta(milliseconds=1)
