"""Reads the docstrings below the fields of a class, which Python itself does not keep.

Editors and documentation tools know the form, an attribute docstring (PEP 257); at run time it is in the source only.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Mapping
from functools import lru_cache
from itertools import pairwise


def field_docs(cls: type) -> dict[str, str]:
    """Return the docstring of each field of a class that has one, inherited fields included.

    A class without source, such as one typed into an interpreter, has none.
    """
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        docs |= _docs_of_module(base.__module__).get(base.__qualname__, {})
    return docs


@lru_cache(maxsize=64)
def _docs_of_module(name: str) -> Mapping[str, dict[str, str]]:
    """Field docstrings by the qualified name of their class."""
    try:
        tree = ast.parse(inspect.getsource(sys.modules[name]))
    except (KeyError, OSError, TypeError, SyntaxError):  # no source, or another one than was imported
        return {}
    found: dict[str, dict[str, str]] = {}
    _search(tree, "", found)
    return found


def _search(node: ast.AST, prefix: str, found: dict[str, dict[str, str]]) -> None:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            name = prefix + child.name
            found[name] = _docs_of_body(child.body)
            _search(child, f"{name}.", found)
        elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            _search(child, f"{prefix}{child.name}.<locals>.", found)
        else:
            _search(child, prefix, found)


def _docs_of_body(body: list[ast.stmt]) -> dict[str, str]:
    docs = {}
    for pair in pairwise(body):
        match pair:
            case ast.AnnAssign(target=ast.Name(id=field)), ast.Expr(value=ast.Constant(value=str(doc))):
                docs[field] = inspect.cleandoc(doc)
    return docs
