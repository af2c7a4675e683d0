"""YAML as plain data, whoever wrote it: the only reader of YAML.

Aliases can multiply without end, a key that stands twice says two things, and the time to read
nested brackets grows with the square of their depth. None of them is in a file that people write
for this program, so all are refused.
"""

from __future__ import annotations

from typing import Any

import yaml

MOST_NESTED = 64


class NotPlain(ValueError):
    """Why a text is not used, with the line where the parser stood."""


def read(text: str | bytes) -> Any:
    """The value of a YAML text: dicts, lists, words, numbers, times. Errors: NotPlain."""
    try:
        return yaml.load(text, _Loader)  # noqa: S506 (a SafeLoader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise NotPlain(str(error) or type(error).__name__) from None


class _Loader(yaml.SafeLoader):
    def fetch_flow_collection_start(self, token: Any) -> None:
        if self.flow_level >= MOST_NESTED:
            raise yaml.MarkedYAMLError(
                problem=f"brackets are nested deeper than {MOST_NESTED}",
                problem_mark=self.get_mark(),
            )
        super().fetch_flow_collection_start(token)

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not allowed")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(
                    problem="a key is a list or a map, not a word", problem_mark=key.start_mark
                )
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"{key.value!r} stands twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)
