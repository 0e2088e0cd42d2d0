"""Sends the few e-mails there are, through the SMTP server of the settings.

Called by endpoints; the standard library's client runs in a thread, which is left behind when the
caller is cancelled and ends by its own time limits. Owns nothing between two mails.
"""

from __future__ import annotations

import smtplib
import ssl
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from functools import partial
from typing import Final

import structlog
import trio

from server.config import Config

log = structlog.get_logger(__name__)

STEP_LIMIT: Final = 10.0
"""Seconds for one exchange with the mail server."""

WHOLE_LIMIT: Final = 25.0
"""Seconds for all of it; a person is waiting at a form."""

_THREADS: Final = 4
"""Mails under way at once: a mail server that hangs must not use up the threads of everything."""


class MailError(Exception):
    """The mail server did not take the mail; the reason is in the log."""


class Mailer:
    """Sends mail by one configuration. One per server process."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._limiter = trio.CapacityLimiter(_THREADS)

    @property
    def is_set_up(self) -> bool:
        """Whether there is a mail server at all."""
        return bool(self._config.smtp_host)

    async def send(self, to: str, subject: str, text: str) -> None:
        """Hand one mail over to the mail server. Raises MailError."""
        message = EmailMessage()
        message["From"], message["To"], message["Subject"] = self._config.smtp_from, to, subject
        message["Date"], message["Message-ID"] = formatdate(), make_msgid()
        message.set_content(text)
        try:
            with trio.fail_after(WHOLE_LIMIT):
                await trio.to_thread.run_sync(
                    partial(_send, self._config, message),
                    abandon_on_cancel=True,
                    limiter=self._limiter,
                )
        except (OSError, smtplib.SMTPException, trio.TooSlowError) as error:
            log.warning("mail was not sent", server=self._config.smtp_host, error=repr(error))
            raise MailError(str(error)) from error


def _send(config: Config, message: EmailMessage) -> None:
    secure = ssl.create_default_context()
    where = (config.smtp_host, config.smtp_port)
    client = (
        smtplib.SMTP_SSL(*where, timeout=STEP_LIMIT, context=secure)
        if config.smtp_security == "tls"
        else smtplib.SMTP(*where, timeout=STEP_LIMIT)
    )
    with client:
        if config.smtp_security == "starttls":
            client.starttls(context=secure)
        if config.smtp_user:
            client.login(config.smtp_user, config.smtp_password)
        client.send_message(message)
