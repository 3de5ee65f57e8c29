"""Reading what a consumer asks an envelope for.

The gateway decides who may use one: ServiceAccounts that the same budget names as consumers, so
that nobody passes money on to whom the platform's team has not let in.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Final

from llmbudget.api.model import DNS_LABEL, DNS_SUBDOMAIN
from llmbudget.api.money import Nano, parse_usd
from llmbudget.decide.consumers import Consumer, Consumers, NoBudget
from llmbudget.gateway.ids import random_hex
from llmbudget.gateway.protocols.errors import forbidden
from llmbudget.gateway.protocols.fields import bad, check, integer, list_at, read_object
from llmbudget.gateway.wire import checked_headers
from llmbudget.ledger.interface import EnvelopeRequest

FIELDS: Final = ("cap_usd", "lifetime_seconds", "service_accounts", "task_id")
_UNKNOWN: Final = f"an envelope has {', '.join(FIELDS)}"
_LONGEST_SECONDS: Final = 31 * 24 * 3600
_DEFAULT_SECONDS: Final = 3600
_MOST_USERS: Final = 64
_MOST_TASK: Final = 256
_USER: Final = re.compile(f"{DNS_LABEL[:-1]}/{DNS_SUBDOMAIN[1:]}", re.ASCII)


def opening(
    body: bytes, consumer: Consumer, consumers: Consumers, headers: Mapping[str, str]
) -> EnvelopeRequest:
    """Read a request to open an envelope.

    Raises:
        Refusal: 400, naming the field; 403 where the consumer may open none.
    """
    limits = consumer.envelopes
    if limits is None:
        raise forbidden(
            f"Budget {consumer.account.name} lets {consumer.name} open no envelopes: its entry in"
            " spec.consumers has no envelopes.",
            "no_envelopes",
        )
    fields = read_object(body)
    check(fields, FIELDS, dict.fromkeys(fields, _UNKNOWN), {})
    key, task_id = checked_headers(headers)
    return EnvelopeRequest(
        id=f"env-{random_hex()}{random_hex()}",
        account=consumer.account.name,
        amount=_cap(fields.get("cap_usd")),
        consumer=consumer.name,
        users=_users(fields.get("service_accounts"), consumer, consumers),
        lifetime=timedelta(
            seconds=integer(fields, "lifetime_seconds", _LONGEST_SECONDS) or _DEFAULT_SECONDS
        ),
        most_amount=Nano(limits.maximum_nano),
        most_open=limits.count,
        task_id=_task(fields.get("task_id")) or task_id,
        idempotency_key=key,
        fingerprint=_fingerprint(consumer, body) if key is not None else None,
    )


def _fingerprint(consumer: Consumer, body: bytes) -> str:
    """Tell a repetition from another request: of another budget it is another one."""
    return hashlib.sha256(consumer.account.name.encode() + b"\n" + body).hexdigest()


def _cap(value: object) -> Nano:
    try:
        cap = parse_usd(value) if isinstance(value, str) else Nano(0)
    except ValueError:
        cap = Nano(0)
    if not cap:
        raise bad("cap_usd", 'it must be a decimal string in USD above 0, such as "2.50"')
    return cap


def _users(value: object, consumer: Consumer, consumers: Consumers) -> tuple[str, ...]:
    """Read who may use it: the opener always."""
    found = {consumer.name: None}
    for index, user in enumerate(list_at(value, "service_accounts") if value is not None else ()):
        where = f"service_accounts[{index}]"
        if not isinstance(user, str) or not _USER.fullmatch(user):
            raise bad(where, "it must be NAMESPACE/NAME of a ServiceAccount")
        namespace, _, name = user.partition("/")
        try:
            consumers.match(namespace, name, consumer.account.name)
        except NoBudget as error:
            raise bad(where, error.message.removesuffix(".")) from None
        found[user] = None
    if len(found) > _MOST_USERS:
        raise bad("service_accounts", f"at most {_MOST_USERS} may use it")
    return tuple(found)


def _task(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not 0 < len(value) <= _MOST_TASK or not value.isprintable():
        raise bad("task_id", f"it must be a string of 1 to {_MOST_TASK} printable characters")
    return value
