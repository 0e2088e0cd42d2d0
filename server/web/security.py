"""What a browser may do on our pages (Content-Security-Policy). Pure."""

from __future__ import annotations


def security_policy(*form_targets: str) -> str:
    """The policy: one script and one style sheet of our own, and nothing else.

    `form_targets` are origins a form of the page may lead to beside our own, also by the redirect
    that answers it.
    """
    targets = " ".join(("'self'", *form_targets))
    return (
        "default-src 'self'; img-src 'self' data:; connect-src 'self'; object-src 'none'; "
        f"base-uri 'none'; form-action {targets}; frame-ancestors 'none'"
    )
