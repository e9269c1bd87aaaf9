"""
Writes the routes of the built-in services into `docs/providers.md`, below its last heading.

    python -m tests.services.make_routes
"""

import tomllib
from pathlib import Path

from aisbreaker_mw.services import catalog

PATH = Path(__file__).parents[2] / "docs" / "providers.md"
HEADING = "## Routes\n"
INTRODUCTION = """
Method and path as they reach the vendor, the serviceId, and where the engine stands. The first line that fits wins, exact
paths before placeholders. Whatever is not here is `other`, or `aisbreaker` for `network`.
"""


def render() -> str:
    """Return the text below the heading."""
    tables = tomllib.loads((Path(catalog.__file__).parent / "catalog.toml").read_text("utf-8"))
    text = INTRODUCTION
    for name, table in tables.items():
        if "routes" not in table:
            continue
        text += f"\n### `{name}`\n\n| method and path | serviceId | engine |\n| --- | --- | --- |\n"
        for line, meaning in table["routes"].items():
            task, _, source = meaning.partition(" ")
            engine = f"`{source}`" if source else "path" if "{engine" in line or "{deployment}" in line else ""
            path = line.replace("|", "\\|")
            text += f"| `{path}` | `{task}:{table['vendor']}` | {engine} |\n"
    return text


def main() -> None:
    kept = PATH.read_text("utf-8").partition(HEADING)[0]
    PATH.write_text(kept + HEADING + render(), encoding="utf-8")


if __name__ == "__main__":
    main()
