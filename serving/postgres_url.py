"""What runs and memories in PostgreSQL share: the driver, a checked URL, and words without a password."""

from typing import Any

from .errors import MissingExtra, UsageError


def driver() -> Any:
    """psycopg, imported on first use. Raises MissingExtra without it."""
    try:
        import psycopg
        import psycopg.conninfo
    except ImportError:
        raise MissingExtra("psycopg, for PostgreSQL,", "postgres") from None
    return psycopg


def shown(url: str) -> str:
    """The URL without what nobody should see."""
    try:
        parts = driver().conninfo.conninfo_to_dict(url)
    except Exception:  # it tells what it cannot read, password and all
        return "postgresql://…"
    user = f"{parts['user']}@" if parts.get("user") else ""
    port = f":{parts['port']}" if parts.get("port") else ""
    return f"postgresql://{user}{parts.get('host', '')}{port}/{parts.get('dbname', '')}"


def check(url: str, *, kept: str, instead: str) -> None:
    """Raises UsageError if the URL cannot be one, or there is no driver for it.

    `kept` is what it is to hold, "Runs" or "A memory"; `instead` what else may be given, such as "a folder".
    """
    psycopg = driver()
    kind = url.partition("://")[0]
    if kind not in ("postgresql", "postgres"):
        raise UsageError(
            f"{kept} cannot be kept at {kind}://…. Give {instead}, or postgresql://user:password@host/database."
        )
    try:
        parts = psycopg.conninfo.conninfo_to_dict(url)
    except psycopg.Error:
        parts = {"port": "unreadable"}
    ports = str(parts.get("port", "")).split(",")  # of each host
    # A password with a / in it makes the driver take what is before it for a port.
    if any(port and not port.isdigit() for port in ports) or "@" in str(parts.get("dbname", "")):
        raise UsageError(
            "The URL of the store cannot be read. Write postgresql://user@host:5432/database, with :password "
            "after the user if there is one, and in it %-escapes for / : @ ? # (/ is %2F)."
        )


def one_line(error: Exception) -> str:
    """What the server says, without the statement and the place in it."""
    if said := getattr(getattr(error, "diag", None), "message_primary", None):
        return str(said)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("Is the server running")]  # we ask that ourselves
    return "; ".join(lines).rstrip(".") or type(error).__name__
