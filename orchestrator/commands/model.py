"""`abduce model fetch`: the small model, into the cache, with a progress bar."""

import argparse
import sys


def fetch(chosen: argparse.Namespace) -> int:
    """Fetch the model unless it is in the cache; say where it is."""
    from ...serving.weights import progress_bar, resolve

    with progress_bar("Fetching the model") as bar:
        file = resolve(progress=bar)
    print(f"model: {file} ({file.stat().st_size / 1e6:.0f} MB)", file=sys.stderr)
    return 0
