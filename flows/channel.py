"""A channel for alerts as a notification block of the Prefect server, which sends by itself: no worker is needed."""

from __future__ import annotations

import re
from typing import Any

from prefect.blocks.notifications import (
    AppriseNotificationBlock,
    CustomWebhookNotificationBlock,
    SlackWebhook,
)
from pydantic import SecretStr

from everfresh.tasks.errors import ConfigError, EverfreshError

NAME = re.compile(r"[a-z0-9][a-z0-9-]*")


def make_channel(name: str, *, webhook: str | None, slack: str | None, test: bool = False) -> str:
    """Make or change a block; addresses hold passwords, so they are kept as secrets.

    Prefect has no block for a mail server of one's own; its block for Slack sends to whatever Apprise knows, mail too.

    Returns:
        The kind of the block, as `alerts.notify` names it.

    Raises:
        ConfigError: the name cannot be that of a block, or the address that of a channel.
        EverfreshError: the message of the test did not go out.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(f"channel must be lower-case letters, digits and dashes, got {name!r}. Such as ops.")
    block, kind = (_webhook(name, webhook), "custom-webhook") if webhook else (_apprise(slack or ""), "slack-webhook")
    block.save(name, overwrite=True)
    if test:
        _try(block, name)
    return kind


def _webhook(name: str, url: str) -> CustomWebhookNotificationBlock:
    if not re.match(r"https?://[^/]", url):
        raise ConfigError(
            "--webhook must be an address of http or https, got another. Such as https://alerts.example.org/everfresh"
        )
    message = {"subject": "{{subject}}", "body": "{{body}}"}
    return CustomWebhookNotificationBlock.model_validate(
        {"name": name, "url": "{{address}}", "json_data": message, "secrets": {"address": url}}
    )


def _apprise(url: str) -> AppriseNotificationBlock:
    from apprise import Apprise

    if not Apprise().add(url):
        raise ConfigError(
            "--slack must be an incoming webhook, got another address. Such as https://hooks.slack.com/services/T/B/x"
        )
    return SlackWebhook(url=SecretStr(url))


def _try(block: Any, name: str) -> None:
    try:
        with block.raise_on_failure():
            block.notify(subject="everfresh · test", body=f"Alerts of Everfresh reach {name}.")
    except Exception as error:  # of as many kinds as there are ways to send
        raise EverfreshError(
            f"channel: a message must go out through {name}, got {type(error).__name__}. The channel stands; make it again "
            "with the right address, or look at what receives it."
        ) from error
