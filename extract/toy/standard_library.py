"""The toy's text: what every Python installation carries about itself.

Documents come from the interpreter that runs this module: the language reference that `help()`
prints, module docstrings, and the source of top-level functions and classes. Nothing is shipped and
nothing is downloaded; figures therefore differ a little between Python versions.

Leaves out: installed packages, IDLE, generated tables, and (unless asked for) the test suite.
"""

import ast
import hashlib
import math
import os
import re
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator
from pathlib import Path

SHORTEST = 300
"""Characters; a document shorter than this joins its neighbour or is dropped."""

COMFORTABLE = 1_000
"""Characters; small neighbours of one module are joined until they are this long."""

LONGEST = 6_000
"""Characters; a longer document is cut at the shallowest blank lines near equal shares."""

NOT_LIBRARY = frozenset(
    {
        "site-packages",
        "dist-packages",
        "__pycache__",
        "idlelib",  # an application, and its own tests
        "turtledemo",
        "lib2to3",  # gone in 3.13, test data that does not parse
        "encodings",  # a hundred generated tables around one and the same class
        "pydoc_data",  # read as topics
    }
)
TEST_FOLDERS = frozenset({"test", "tests"})

_BLANK_LINES = re.compile(r"\n(?:[ \t]*\n)+")


def iterate_documents(include_tests: bool = False) -> Iterator[str]:
    """Give the standard library as distinct documents of 300 to 6,000 characters.

    The order is that of a hash of the text, so any prefix is a representative mix and the order is
    the same on every machine with the same Python. The hash is salted: nothing else that hashes a
    document (a split, a held-out share) falls together with its place in the order.

    Args:
        include_tests: Read the test suite as well, where it is installed: about three times the
            text, for benchmarks. Linux distributions often leave it out.
    """
    documents = {*_topic_documents(), *_module_documents(include_tests)}
    yield from sorted(documents, key=_place_in_order)


def _place_in_order(document: str) -> bytes:
    return hashlib.sha256(b"toy order\0" + document.encode()).digest()


def _topic_documents() -> Iterator[str]:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions leave the language reference out
        return
    for name in sorted(topics):
        yield from _into_documents([topics[name]])


def _module_paths(include_tests: bool) -> Iterator[Path]:
    skipped = NOT_LIBRARY if include_tests else NOT_LIBRARY | TEST_FOLDERS
    for folder, subfolders, names in os.walk(sysconfig.get_path("stdlib")):
        subfolders[:] = set(subfolders) - skipped
        yield from (Path(folder, name) for name in names if name.endswith(".py"))


def _module_documents(include_tests: bool) -> Iterator[str]:
    for path in _module_paths(include_tests):
        try:
            with tokenize.open(path) as file:
                source = file.read()
            yield from _into_documents(_described_parts(source))
        except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
            continue  # undecodable, unparsable on purpose (test data), or removed meanwhile


def _described_parts(source: str) -> list[str]:
    """Give a module's docstring and the source of its top-level functions and classes, in order."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in test data
        module = ast.parse(source)
    lines = source.split("\n")  # not splitlines: a form feed is no line end to ast
    docstring = ast.get_docstring(module) or ""
    parts = [docstring.encode(errors="ignore").decode()]  # an escape can spell half a surrogate
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            parts.append("\n".join(lines[first - 1 : node.end_lineno]))
    return parts


def _into_documents(parts: list[str]) -> Iterator[str]:
    """Join small neighbours, cut what is too long, drop what stays too short."""
    waiting = ""
    for part in filter(None, (part.strip("\n").rstrip() for part in parts)):
        if waiting and (len(waiting) >= COMFORTABLE or len(waiting) + len(part) + 2 > LONGEST):
            yield from _cut(waiting)
            waiting = ""
        waiting = f"{waiting}\n\n{part}" if waiting else part
    yield from _cut(waiting)


def _cut(text: str) -> Iterator[str]:
    """Cut a text into near equal shares of at most LONGEST characters, shorter ones dropped."""
    while len(text) > LONGEST:
        share = math.ceil(len(text) / math.ceil(len(text) / LONGEST))
        end = _shallowest_break(text, share // 2, share)
        head, text = text[:end].rstrip(), text[end:].lstrip("\n")
        yield head
    if len(text) >= SHORTEST:
        yield text


def _shallowest_break(text: str, start: int, end: int) -> int:
    """Give the last of the least indented blank lines of text[start:end], else a line's end.

    Indentation is that of the line after the blank one: between methods before inside them.
    """
    best, shallowest = 0, math.inf
    for match in _BLANK_LINES.finditer(text, start, end):
        rest = text[match.end() : match.end() + 80]
        depth = len(rest) - len(rest.lstrip(" "))
        if depth <= shallowest:
            best, shallowest = match.end(), depth
    return best or text.rfind("\n", start, end) + 1 or end
