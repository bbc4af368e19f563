"""The examples of docs/clients.md name what the library has."""

import ast
import importlib
import re
from pathlib import Path

import pytest

from erxhub.client import AuditorClient, HospitalClient, PharmacyClient

PAGE = Path(__file__).resolve().parents[2] / "docs" / "clients.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
CLIENTS = (AuditorClient, HospitalClient, PharmacyClient)


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_imports_and_calls_what_exists(example: str) -> None:
    tree = ast.parse(example)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            for alias in node.names:
                assert hasattr(module, alias.name) or importlib.import_module(f"{node.module}.{alias.name}")
        elif isinstance(node, ast.Await) and isinstance(node.value, ast.Call):
            function = node.value.func
            assert isinstance(function, ast.Attribute)
            assert any(hasattr(client, function.attr) for client in CLIENTS), function.attr
