"""``everfresh channel``: where alerts go, kept as a notification block of the Prefect server."""

from __future__ import annotations

import sys
from typing import Annotated
from urllib.parse import quote, unquote, urlsplit

import typer

from everfresh.tasks.errors import ConfigError

app = typer.Typer()
SMTP = {"smtps": ("mailtos", "ssl"), "smtp+starttls": ("mailtos", "starttls"), "smtp": ("mailto", "insecure")}
"""Schemes of mail servers, and what they are to Apprise, which sends for Prefect."""


@app.command()
def channel(
    name: Annotated[str, typer.Argument(help="What the channel is called: lower-case letters, digits and dashes.")],
    webhook: Annotated[
        str | None, typer.Option("--webhook", envvar="EVERFRESH_WEBHOOK", help="Address that gets JSON: subject and body.")
    ] = None,
    slack: Annotated[str | None, typer.Option("--slack", envvar="EVERFRESH_SLACK", help="Slack's incoming webhook.")] = None,
    email: Annotated[str | None, typer.Option("--email", help="Mail address that is told.")] = None,
    smtp: Annotated[
        str | None,
        typer.Option(
            "--smtp", envvar="EVERFRESH_SMTP", help="With --email: smtps://user:password@host, smtp+starttls://… or smtp://…"
        ),
    ] = None,
    test: Annotated[bool, typer.Option("--test", help="Send a message through it now.")] = False,
) -> None:
    """Make or change a channel for alerts; `alerts.notify` of a pipeline file then names it.

    What is secret is better given in the environment than typed: EVERFRESH_WEBHOOK, EVERFRESH_SLACK, EVERFRESH_SMTP.
    """
    given = [option for option, value in {"--webhook": webhook, "--slack": slack, "--email": email}.items() if value]
    if len(given) != 1:
        raise ConfigError(
            f"channel must have exactly one of --webhook, --slack and --email, got {', '.join(given) or 'none'}. "
            "Make a channel for each."
        )
    from everfresh.flows.channel import make_channel

    kind = make_channel(
        name, webhook=webhook, slack=slack or mail_address(email or "", smtp) if not webhook else None, test=test
    )
    sys.stdout.write(f"{kind}/{name} stands on the Prefect server; in the pipeline file: alerts: {{notify: [{kind}/{name}]}}\n")


def mail_address(email: str, smtp: str | None) -> str:
    """The address of a person and that of a mail server as the one that Apprise sends to.

    Raises:
        ConfigError: it is none, or of another scheme.
    """
    server = urlsplit(smtp or "")
    if server.scheme not in SMTP or not server.hostname or "@" not in email:
        shown = f"{server.scheme}://{server.hostname or ''}" if smtp else "none"
        raise ConfigError(
            f"--email must have an address and --smtp a mail server, got {email!r} and {shown}. "
            "Such as --email ops@example.org --smtp smtps://user:password@mail.example.org"
        )
    scheme, mode = SMTP[server.scheme]
    user, password = unquote(server.username or ""), unquote(server.password or "")
    who = f"{quote(user, safe='')}:{quote(password, safe='')}@" if user else ""
    port = f":{server.port}" if server.port else ""
    sender = user if "@" in user else email
    return f"{scheme}://{who}{server.hostname}{port}?mode={mode}&from={quote(sender)}&to={quote(email)}"
