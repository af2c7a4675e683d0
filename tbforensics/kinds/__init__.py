"""Families of incidents. One file each, named as the kind is named everywhere."""

import ast
import pkgutil
from pathlib import Path


def questions() -> dict[str, str]:
    """The question of every kind, read from the text of its file: a list needs no arithmetic."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return {name: _question(Path(__path__[0], f"{name}.py")) for name in names}


def _question(file: Path) -> str:
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "Kind"
        ):
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            return str(ast.literal_eval(given["question"]))
    return ""
