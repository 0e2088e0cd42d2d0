"""`bullpen attachment …` (spec 06 §9, §20.4)."""

from __future__ import annotations

from pathlib import Path

import click

from daemon.cli.api import open_api, segment
from daemon.cli.errors import CliError
from daemon.cli.groups import Group
from daemon.cli.output import print_json
from daemon.cli.refs import issue_id, need_id
from daemon.cli.settings import Settings


@click.group(cls=Group)
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


@attachment.command()
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--issue", metavar="ISSUE", help="The issue it is for.")
@click.option("--comment", metavar="ID", help="The comment it is for.")
@click.option("--task", metavar="ID", help="The task whose issue or chat it is for.")
@click.pass_obj
def upload(
    settings: Settings, path: Path, issue: str | None, comment: str | None, task: str | None
) -> None:
    """Attach a file to an issue, a comment or what a task is about."""
    if [issue, comment, task].count(None) != 2:
        raise CliError("give one of --issue, --comment and --task")
    with open_api(settings) as api:
        if issue is not None:
            place = {"issue_id": issue_id(api, issue)}
        elif comment is not None:
            place = {"comment_id": need_id(comment, "comment")}
        else:
            place = {"task_id": need_id(task or "", "task")}
        print_json(api.upload(path, **place))
