"""`erxhub conform init`: a driver to begin with, in the language of one's own.

Owns the words of this verb. Must never: overwrite a file.
"""

from __future__ import annotations

from pathlib import Path

import click

from erxhub.cli.commands import command
from erxhub.cli.output import Output, output_option


@command("init", example="erxhub conform init --role pharmacy --lang go my-driver")
@click.option("--role", type=click.Choice(["hospital", "pharmacy"]), required=True, help="Of your product.")
@click.option("--lang", type=click.Choice(["python", "java", "node", "go"]), required=True)
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default=Path())
@output_option
def init(role: str, lang: str, folder: Path, out: Output) -> None:
    """Write a driver skeleton, test certificates, the .proto files and a README into FOLDER (by default here)."""
    from erxhub.cli.local_errors import Failed, unusable
    from erxhub.conform.init import LANGUAGES, FolderTaken, write_skeleton
    from erxhub.ports import SystemClock

    try:
        written = write_skeleton(folder, role=role, language=lang, now_ms=SystemClock().now_ms())
    except FolderTaken as taken:
        names = ", ".join(map(str, taken.paths[:5])) + (" …" if len(taken.paths) > 5 else "")
        raise Failed("CLI_FOLDER_TAKEN", field="FOLDER", names=names) from None
    except OSError as error:
        raise unusable(error, folder) from None
    if out.format != "table":
        out.object({"folder": str(folder), "begin_with": LANGUAGES[lang].file, "files": sorted(map(str, written))})
        return
    click.echo(f"{len(written)} files in {folder}")
    click.echo(f"Begin with {folder / 'README.md'} 请先阅读；then {folder / LANGUAGES[lang].file}")
