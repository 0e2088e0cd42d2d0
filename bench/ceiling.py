"""The ceiling for claims: the same two statements, run by the pgbench that comes with Postgres.

Postgres' own C client sends them prepared, with nothing around: no HTTP, no Python, no payload. The
server's claims per second are given as a share of this.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from bench.figures import Figure
from server.dispatch import lifecycle
from server.embedded import binaries
from server.store.tasks import SQL
from shared.failure import RESUME_UNSAFE


def claim_script(runtime_ids: tuple[str, ...], user_id: str) -> str:
    """The claim as a pgbench script: each transaction claims for one runtime at random."""
    ids = ", ".join(f"'{runtime_id}'" for runtime_id in runtime_ids)
    chosen = f"array[(array[{ids}]::uuid[])[:place]]"
    unsafe = "array[" + ", ".join(f"'{reason}'" for reason in sorted(RESUME_UNSAFE)) + "]"
    seconds = "interval '{} seconds'".format
    lock = _fill(
        SQL.lock_claimable,
        [chosen, f"'{user_id}'", "null", seconds(lifecycle.REDELIVER_AFTER)],
    )
    claim = _fill(
        SQL.claim,
        [
            chosen,
            "array[md5(random()::text || clock_timestamp()::text)]",
            f"array(select id from agent where runtime_id = any({chosen}))",
            seconds(lifecycle.REDELIVER_AFTER),
            seconds(lifecycle.LEASE),
            seconds(lifecycle.TOKEN_LIFE),
            unsafe,
            "false",
        ],
    )
    return f"\\set place random(1, {len(runtime_ids)})\nbegin;\n{lock};\n{claim};\ncommit;\n"


def _fill(statement: str, values: list[str]) -> str:
    return re.sub(r"\$(\d+)", lambda match: values[int(match[1]) - 1], statement).rstrip("; \n")


def run(root: Path, database_url: str, script: str, *, clients: int, each: int) -> Figure:
    """Run the script `each` times on every client; the rate without connecting."""
    path = root / "claim.pgbench"
    path.write_text(script)
    load = ("-n", "-M", "prepared", "-c", str(clients), "-j", "2", "-t", str(each))
    done = subprocess.run(
        [str(binaries() / "pgbench"), *load, "-f", str(path), database_url],
        env=os.environ | {"PGOPTIONS": "-c plan_cache_mode=force_generic_plan -c jit=off"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    rate = re.search(r"tps = ([\d.]+)", done.stdout)
    if done.returncode != 0 or rate is None:
        raise RuntimeError(f"pgbench failed: {done.stderr[-2000:]}")
    note = f"{clients} clients, the claim's two statements"
    return Figure("pgbench: claim transactions", float(rate[1]), "1/s", note)
