"""`python -m abduce`."""


def main() -> int:
    """Run the command line."""
    from .orchestrator.cli import main as run

    return run()


if __name__ == "__main__":
    raise SystemExit(main())
