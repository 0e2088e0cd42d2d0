"""A machine whose agent says what the test wants, when the test wants it: the daemon's own HTTP
calls, made by hand. It never claims by itself, so every state of a run can be looked at."""

from __future__ import annotations

from typing import Any

import httpx


class Machine:
    """One machine with one runtime, and an agent on it."""

    def __init__(
        self,
        api: httpx.Client,
        workspace_id: str,
        *,
        name: str = "studio",
        provider: str = "claude",
        isolation: str = "bubblewrap",
        problem: str = "",
    ) -> None:
        self.api = api
        self._register = {
            "workspace_id": workspace_id,
            "daemon_id": f"machine-{name}",
            "device_name": name,
            "cli_version": "0.1.0",
            "isolation": isolation,
            "isolation_problem": problem,
            "runtimes": [{"name": f"{provider} ({name})", "type": provider, "version": "2.1.0"}],
        }
        self.runtime_id = ""
        self.online()

    def _post(self, path: str, body: Any) -> Any:
        answer = self.api.post(path, json=body)
        assert answer.is_success, f"{path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    def online(self) -> None:
        self.runtime_id = self._post("/api/daemon/register", self._register)["runtimes"][0]["id"]

    def offline(self) -> None:
        self._post("/api/daemon/deregister", {"runtime_ids": [self.runtime_id]})

    def agent(self, name: str) -> Any:
        """Create an agent here and return it."""
        body = {"name": name, "runtime_id": self.runtime_id, "visibility": "workspace"}
        return self._post("/api/agents", body)

    def issue(self, title: str, agent: Any, **more: Any) -> Any:
        body = {"title": title, "assignee_type": "agent", "assignee_id": agent["id"], **more}
        return self._post("/api/issues", body)

    def claim(self) -> Any:
        task = self._post(f"/api/daemon/runtimes/{self.runtime_id}/tasks/claim", {})["task"]
        assert task is not None, "nothing to claim"
        return task

    def start(self, task: Any) -> None:
        self._post(f"/api/daemon/tasks/{task['id']}/start", {})

    def begin(self) -> Any:
        """Claim a task and start it."""
        task = self.claim()
        self.start(task)
        return task

    def say(self, task: Any, *messages: dict[str, Any]) -> None:
        self._post(f"/api/daemon/tasks/{task['id']}/messages", {"messages": list(messages)})

    def count(self, task: Any, first: int, last: int) -> None:
        """Send texts that say their own number, one batch."""
        self.say(
            task,
            *({"seq": n, "type": "text", "content": f"line {n}"} for n in range(first, last + 1)),
        )

    def progress(self, task: Any, summary: str, step: int, total: int) -> None:
        body = {"summary": summary, "step": step, "total": total}
        self._post(f"/api/daemon/tasks/{task['id']}/progress", body)

    def complete(self, task: Any, output: str = "All done.") -> None:
        self._post(f"/api/daemon/tasks/{task['id']}/complete", {"output": output})

    def fail(self, task: Any, error: str, reason: str) -> None:
        body = {"error": error, "failure_reason": reason}
        self._post(f"/api/daemon/tasks/{task['id']}/fail", body)
