"""`abduce serve`: recipes behind an OpenAI-compatible API."""

import argparse
import asyncio
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address

from ...serving.errors import UsageError
from ..doors import priced
from .solve import fetch_models
from .spans import spans


def run(chosen: argparse.Namespace) -> int:
    """Serve until a signal; 0 after a drain."""
    from ...serving.settings import home
    from ..gateway.accounts import Accounts
    from ..gateway.app import Gateway, Limits
    from ..gateway.keys import load
    from ..gateway.served import by_name, from_recipe, passed_through
    from ..gateway.server import serve

    keys = load(chosen.keys)
    if not keys.known and not _local(chosen.host):
        raise UsageError(
            f"Without API keys anybody who reaches {chosen.host} could ask. Write a file of keys and give "
            "--keys FILE, or set ABDUCE_API_KEYS=name:key, or leave --host out."
        )
    limits = Limits(
        concurrency=chosen.concurrency,
        queue=chosen.queue,
        body_bytes=chosen.max_body_mb << 20,
        request_s=float(chosen.timeout_s),
    )
    models = by_name(
        [
            *(from_recipe(source, limits.request_s) for source in chosen.recipes),
            *(passed_through(spec, limits.request_s) for spec in chosen.models),
        ]
    )
    for model in models.values():
        fetch_models(model.chat)
    limits_in_usd = [(key.allowance.usd, key.allowance.usd_per_day) for key in keys.known]
    if any(each is not None for both in limits_in_usd for each in both):
        for model in models.values():
            priced(model.chat.engines)
    accounts = Accounts(home() / "gateway" / "spent.json" if keys.known else None)

    def started(address: str) -> None:
        names = ", ".join(models)
        print(f"abduce: serving {names} at {address}/v1", file=sys.stderr)
        who = f"{len(keys.known)} keys" if keys.known else "no keys: from this machine only"
        print(f"abduce: {who}; stop with Ctrl-C", file=sys.stderr, flush=True)

    with _log_on_screen(chosen.quiet), spans(chosen) as telemetry:
        gateway = Gateway(models, keys=keys, accounts=accounts, limits=limits, telemetry=telemetry)
        asyncio.run(
            serve(gateway, host=chosen.host, port=chosen.port, drain_s=chosen.drain_s, started=started)
        )
    print("abduce: stopped", file=sys.stderr)
    return 0


def _local(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@contextmanager
def _log_on_screen(quiet: bool) -> Iterator[None]:
    shown = logging.StreamHandler(sys.stderr)
    shown.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log = logging.getLogger("abduce.gateway")
    log.addHandler(shown)
    log.setLevel(logging.WARNING if quiet else logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(shown)
        log.setLevel(logging.NOTSET)
