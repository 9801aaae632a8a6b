"""Archives of torch.export, read as data: what torch would run of one is found first.

``torch.export.load`` unpickles some entries, hands expressions to sympy, which evaluates them, executes guards, calls any
function below ``torch`` that a node names, and pastes names into source text. None of that is needed for a network as
`exports` writes it, so all else is refused: by an allowlist, and in the bytes that torch's own reader returns, for another
reader of zip may find others under the same name.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everfresh.tasks.errors import ModelError

if TYPE_CHECKING:
    import torch
    from torch.export.pt2_archive._package import PT2ArchiveReader

EMPTY = "data/sample_inputs/model.pt"
"""The one entry that torch unpickles whatever else is said; an empty one it passes over."""
ENTRIES = re.compile(
    r"data/(weights|constants)/(weight_\d+|tensor_\d+|model_(weights|constants)_config\.json)|models/model\.json"
    r"|archive_format|archive_version|byteorder|\.data/(version|serialization_id)"
)
PAYLOAD = re.compile(r"weight_\d+|tensor_\d+")
GRAPH = "models/model.json"

TARGET = re.compile(
    r"torch\.ops\.aten\.(?!(from_file|save)\.)\w+\.[A-Za-z]\w*|torch\.ops\.torchvision\.\w+\.[A-Za-z]\w*"
    r"|torch\.ops\.higher_order\.(wrap_with_set_grad_enabled|wrap_with_autocast|cond|while_loop|map_impl|scan)"
    r"|_operator\.(eq|ne|le|ge|lt|gt|neg|pos|mul|add|sub|floordiv|mod|pow|truediv|and_|or_|lshift|rshift)"
    r"|math\.trunc|torch\.sym_(not|int|float|ite|max|min|sqrt)"
)
"""Operators that a node may call: those of tensors but the two that open files, and those of sizes."""
NAME = re.compile(r"\w*")
WORDS = re.compile(r"[\w.+\-/:;,<> ]*")
"""Text that cannot call anything, wherever it is pasted."""
TREE = re.compile(r'(?:[\[\]{},: \d]|null|"(?:type|context|children_spec|builtins\.(?:tuple|list|dict)|null|\[\])")*')
"""How inputs and outputs are nested, without classes that a reader would import."""
EXPRESSION = re.compile(r"[\w(),'=.+\- ]*")
FUNCTIONS = re.compile(
    "Symbol|Integer|Float|Rational|Add|Mul|Pow|Mod|Max|Min|Abs|Piecewise|ExprCondPair|Equality|Unequality|LessThan|GreaterThan"
    "|StrictLessThan|StrictGreaterThan|And|Or|Not|FloorDiv|ModularIndexing|Where|PythonMod|CleanDiv|CeilToInt|FloorToInt|CeilDiv"
    "|LShift|RShift|PowByNatural|FloatPow|FloatTrueDiv|IntTrueDiv|IsNonOverlappingAndDenseIndicator|TruncToFloat|TruncToInt"
    "|RoundToInt|RoundDecimal|ToFloat|Identity"
)
"""What an expression of sizes may call."""


def load(path: Path) -> torch.export.ExportedProgram:
    """The program in an archive, if nothing of it is code.

    Raises:
        ModelError: it holds what torch would run, or is no such archive.
    """
    from torch.export.pt2_archive._package import load_pt2  # takes seconds, which who reads no archive shall not wait

    if odd := _odd(path):
        raise ModelError(
            f"{path.name} must hold tensors and JSON alone, got {', '.join(odd[:3])}, which torch.export.load would unpickle "
            "or run. Do not load it; find out who changed it."
        )
    return load_pt2(path).exported_programs["model"]  # not by torch.export.load, which tries an older format too


def _odd(path: Path) -> list[str]:
    """What of an archive is neither tensors nor the graph of a network, in a few words each."""
    from torch.export.pt2_archive._package import PT2ArchiveReader

    try:
        reader = PT2ArchiveReader(str(path))
        names = reader.get_file_names()
        odd = [name for name in names if not _is_plain(reader, name)]
        folded = [name.casefold() for name in names]
        odd += sorted({f"{name} twice" for name in names if folded.count(name.casefold()) > 1})
        for name in names:
            if name.endswith("_config.json"):
                for payload, entry in json.loads(reader.read_bytes(name))["config"].items():
                    if entry["use_pickle"] is not False or not PAYLOAD.fullmatch(entry["path_name"]):
                        odd.append(f"a pickle as {payload[:60]}")
        odd += _strange(json.loads(reader.read_bytes(GRAPH)))
    except (RuntimeError, AssertionError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = str(error).split("\n")[0][:200]
        raise ModelError(f"{path.name} must be an archive of torch.export, got a file that is none ({reason}).") from error
    return odd


def _is_plain(reader: PT2ArchiveReader, name: str) -> bool:
    return not reader.read_bytes(name) if name == EMPTY else ENTRIES.fullmatch(name) is not None


def _strange(value: Any, key: str = "") -> Iterator[str]:
    """What of a graph could run something, given the name of the field that a value stands under."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _strange(name)
            yield from _strange(inner, name)
    elif isinstance(value, list) and key != "guards_code":
        for inner in value:
            yield from _strange(inner, key)
    elif (key == "guards_code" and value) or (isinstance(value, str) and not _harmless(value, key)):
        yield f"{key or 'a name'} {str(value)[:60]!r}"


def _harmless(text: str, key: str) -> bool:
    match key:
        case "expr_str":
            return _is_expression(text)
        case "target" | "as_operator":
            return TARGET.fullmatch(text) is not None
        case "in_spec" | "out_spec":
            return TREE.fullmatch(text) is not None
        case "name" | "as_name" | "forward_arg_names":
            return NAME.fullmatch(text) is not None
        case _:
            return WORDS.fullmatch(text) is not None


def _is_expression(text: str) -> bool:
    """Whether an expression is made of numbers, symbols and functions of sizes alone."""
    if not EXPRESSION.fullmatch(text):
        return False
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError):
        return False
    return all(map(_is_term, nodes))


def _is_term(node: ast.AST) -> bool:
    match node:
        case ast.Call(func=ast.Name(id=name)):
            return FUNCTIONS.fullmatch(name) is not None
        case ast.Constant(value=str() as text):
            return re.fullmatch(r"-?[\w.]*", text) is not None
        case ast.Name(id=name):
            return FUNCTIONS.fullmatch(name) is not None or re.fullmatch(r"[a-z]+\d+|oo|int_oo", name) is not None
        case ast.Constant(value=None | bool() | int() | float()) | ast.UnaryOp(op=ast.USub(), operand=ast.Constant()):
            return True
        case _:
            return isinstance(node, ast.Expression | ast.keyword | ast.expr_context | ast.unaryop)
