"""`bullpen attachment …` (spec 06 §9, §20.4)."""

from __future__ import annotations

from pathlib import Path

import click

from daemon.cli.api import open_api, segment
from daemon.cli.errors import CliError
from daemon.cli.output import print_json
from daemon.cli.refs import need_id
from daemon.cli.settings import Settings


@click.group()
def attachment() -> None:
    """Work with attached files."""


@attachment.command()
@click.argument("attachment_id", metavar="ID")
@click.option(
    "-o",
    "--output-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    help="Where to put it; the current directory without.",
)
@click.pass_obj
def download(settings: Settings, attachment_id: str, output_dir: Path) -> None:
    """Save an attached file under its own name."""
    found = need_id(attachment_id, "attachment")
    with open_api(settings) as api:
        shown = api.get(f"/api/attachments/{segment(found)}")
        name = shown["filename"].replace("\\", "/").rpartition("/")[2].replace("\0", "")
        if name in {"", ".", ".."}:
            raise CliError(f"the file's name {shown['filename']!r} cannot be used here")
        data = api.download(shown["download_url"])
    path = output_dir / name
    part = path.with_name(f".{name}.part")
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        part.write_bytes(data)
        part.replace(path)
    except OSError as error:
        raise CliError(f"cannot write {path}: {error.strerror or error}") from error
    print_json({"id": found, "filename": name, "path": str(path.resolve()), "size": len(data)})
