"""`bullpen daemon disk-usage`: what Bullpen's files take up, and why they are still there.

Works without a daemon; it reads the disk and what the daemon's last reclaim said.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
import click

from daemon.cli.errors import CliError
from daemon.cli.output import notice, output_option, print_json, print_table
from daemon.cli.settings import Settings
from shared import times
from shared.home import Home

if TYPE_CHECKING:
    from daemon.config import DiskSettings
    from daemon.disk_usage import Report

_HINTED: Final = 5


@click.command("disk-usage")
@click.option("--by-workspace", is_flag=True, help="Sum up by workspace.")
@click.option("--by-task", is_flag=True, help="List every task's directory (the default).")
@click.option("--top", type=click.IntRange(min=0), default=0, metavar="N", help="Only the largest.")
@click.option("--workspaces-root", metavar="DIR", help="Look there instead.")
@click.option("--all-profiles", is_flag=True, help="Every profile of this home.")
@output_option("table")
@click.pass_obj
def disk_usage(
    settings: Settings,
    *,
    by_workspace: bool,
    by_task: bool,
    top: int,
    workspaces_root: str | None,
    all_profiles: bool,
    output: str,
) -> None:
    """Show the disk space of tasks, clones and journals, and why it is not given back."""
    if by_workspace and by_task:
        raise CliError("--by-workspace and --by-task exclude each other")
    if all_profiles and workspaces_root:
        raise CliError("--all-profiles and --workspaces-root exclude each other")
    # the scan shares code with the daemon, whose libraries no other command here needs
    from daemon.disk_usage import roots_of_profiles, scan

    try:
        if all_profiles:
            found = []
            for name, home in roots_of_profiles(settings.home):
                disk = disk_settings(settings, home)
                report = scan(home.workspaces, disk.artifact_patterns, journals=home.journals)
                found.append((name, report))
            _show_all(found, by_workspace=by_workspace, top=top, output=output)
            return
        disk = disk_settings(settings, settings.home)
        root, journals = disk.workspaces_root, None
        if workspaces_root:
            root = Path(workspaces_root).expanduser().absolute()
        else:
            journals = settings.home.journals
        report = scan(root, disk.artifact_patterns, journals=journals)
    except OSError as error:
        raise CliError(f"cannot look at the disk: {error}") from error
    if output == "json":
        print_json(_as_json(report, top))
        return
    _show(report, by_workspace=by_workspace, top=top)
    if report.bundle_count or any(clone.saved_refs for clone in report.clones):
        days = disk.kept_ttl / 86400
        goes = f"for {days:g} days" if days else "for ever"
        notice(f"Kept work stays {goes} (BULLPEN_GC_KEPT_TTL): bullpen repo kept")
    if not workspaces_root:
        _hint(settings.home)


def disk_settings(settings: Settings, home: Home) -> DiskSettings:
    """What the environment and the home's settings say of the disk. Raises CliError."""
    from daemon.config import ConfigError, read_disk_settings

    try:
        file: dict[str, Any] | None = {} if settings.agent_context else None
        return read_disk_settings(home, settings.env, file)
    except ConfigError as error:
        raise CliError(str(error)) from error


def _as_json(report: Report, top: int) -> dict[str, Any]:
    told = attrs.asdict(report)
    told["grand_total_bytes"] = report.grand_total_bytes
    if top:
        told["tasks"], told["workspaces"] = told["tasks"][:top], told["workspaces"][:top]
    return told


def _show_all(
    found: Sequence[tuple[str, Report]], *, by_workspace: bool, top: int, output: str
) -> None:
    reports = [report for _, report in found]
    if output == "json":
        sums = (
            "total_task_count",
            "total_workspace_count",
            "total_size_bytes",
            "total_artifact_size_bytes",
            "total_clone_size_bytes",
            "journal_size_bytes",
            "grand_total_bytes",
        )
        told: dict[str, Any] = {
            "generated_at": times.stamp(times.now()),
            "artifact_patterns": reports[0].artifact_patterns,
            "roots": [{"profile": name, "report": _as_json(report, top)} for name, report in found],
        }
        for key in sums:
            told[key] = sum(getattr(report, key) for report in reports)
        size, made = told["total_size_bytes"], told["total_artifact_size_bytes"]
        told["total_artifact_ratio"] = made / size if size else 0.0
        print_json(told)
        return
    for name, report in found:
        click.echo(f"[{name or 'default'}]")
        _show(report, by_workspace=by_workspace, top=top)
        click.echo()
    click.echo(f"All profiles: {size_text(sum(each.grand_total_bytes for each in reports))}")


def _show(report: Report, *, by_workspace: bool, top: int) -> None:
    click.echo(f"Workspaces root: {report.workspaces_root}")
    rows: Sequence[Any] = report.workspaces if by_workspace else report.tasks
    shown = rows[:top] if top else rows
    if by_workspace and rows:
        print_table(
            ("WORKSPACE", "TASKS", "SIZE", "ARTIFACTS", "ARTIFACT %", "OLDEST"),
            [
                (
                    row.workspace_short,
                    row.task_count,
                    size_text(row.size_bytes),
                    size_text(row.artifact_size_bytes),
                    f"{row.artifact_ratio:.0%}",
                    age_text(row.oldest_age_seconds),
                )
                for row in shown
            ],
        )
    elif rows:
        print_table(
            ("PATH", "KIND", "STATUS", "AGE", "SIZE", "ARTIFACTS", "CHECKOUTS", "KEPT BECAUSE"),
            [
                (
                    f"{row.workspace_short}/{Path(row.path).name}",
                    row.kind,
                    row.parent_status or "-",
                    age_text(row.age_seconds),
                    size_text(row.size_bytes),
                    size_text(row.artifact_size_bytes),
                    row.worktrees or "-",
                    row.kept or "-",
                )
                for row in shown
            ],
        )
    if len(shown) < len(rows):
        part = sum(row.size_bytes for row in shown)
        click.echo(f"Showing top {len(shown)} of {len(rows)}: {size_text(part)}")
    click.echo(
        f"Tasks: {report.total_task_count}, {size_text(report.total_size_bytes)}, of it "
        f"artifacts {size_text(report.total_artifact_size_bytes)} "
        f"({report.total_artifact_ratio:.0%})"
    )
    if report.clones:
        click.echo()
        print_table(
            ("CLONE", "STATE", "SIZE", "WORKTREES", "KEPT WORK"),
            [
                (
                    clone.name,
                    clone.state,
                    size_text(clone.size_bytes),
                    clone.worktrees,
                    clone.saved_refs,
                )
                for clone in report.clones
            ],
        )
    click.echo(
        f"Clones: {len(report.clones)}, {size_text(report.total_clone_size_bytes)}. "
        f"Bundles of kept work: {report.bundle_count}, {size_text(report.bundle_size_bytes)}. "
        f"Journals the server has not confirmed: {report.journal_count}, "
        f"{size_text(report.journal_size_bytes)}. "
        f"Trash: {size_text(report.trash_size_bytes)}. Other: {size_text(report.other_size_bytes)}."
    )
    click.echo(f"In all: {size_text(report.grand_total_bytes)}")
    if report.last_reclaim_at:
        click.echo(f"Last reclaim: {report.last_reclaim_at}")


def _hint(home: Home) -> None:
    """Point to other profiles that hold tasks."""
    from daemon.disk_usage import roots_of_profiles
    from daemon.upkeep.reclaim import env_roots

    own = home.workspaces.resolve()
    found = []
    for name, each in roots_of_profiles(home):
        count = len(env_roots(each.workspaces))
        if count and each.workspaces.resolve() != own:
            found.append((count, name))
    for count, name in sorted(found, key=lambda pair: -pair[0])[:_HINTED]:
        words = ["bullpen", *(["--profile", name] if name else []), "daemon", "disk-usage"]
        notice(f"{count} more tasks in profile {name or 'default'}: {shlex.join(words)}")
    if found:
        notice("All of them: bullpen daemon disk-usage --all-profiles")


def size_text(size: int) -> str:
    """Bytes as people read them: IEC units, one decimal."""
    amount = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{size} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def age_text(seconds: int) -> str:
    """An age in its two largest units, as spec 03 §25 writes it."""
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if days:
        return f"{days}d {hours % 24}h"
    if hours:
        return f"{hours}h {minutes % 60}m"
    return f"{minutes}m {seconds % 60}s" if minutes else f"{seconds}s"
