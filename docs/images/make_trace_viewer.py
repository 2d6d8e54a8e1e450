"""Makes docs/images/trace-viewer.png: a real run of the embedded model, looked at in a real browser.

    python docs/images/make_trace_viewer.py [TRACE.jsonl]

Needs Chromium, `pip install 'abduce[test]'` and the small model (abduce model fetch). The picture in the docs
was drawn with the typeface Inter (Debian: fonts-inter), the first that the page asks for.
"""

import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from abduce.orchestrator import recipe
from abduce.orchestrator.runs import Runs
from abduce.orchestrator.viewer import picture
from abduce.orchestrator.viewer.page import whole_page
from abduce.strategies.base import Check, Task

OUT = Path(__file__).with_name("trace-viewer.png")
TASK = Task("24 x 3", checks=(Check("numeric", {"value": 72}),))


def made_trace(folder: Path) -> Path:
    """A*-decoding of a product, line by line, guided by a check."""
    store = Runs(folder)
    recipe.load("a-star-long-products").solve(TASK, store=store)
    return store.open("last").trace


def main() -> None:
    """Run, write the page, take its picture."""
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(sys.argv[1]) if sys.argv[1:] else made_trace(Path(folder))
        page = Path(folder) / "page.html"
        page.write_text(whole_page([picture.load(trace)]), encoding="utf-8")
        with sync_playwright() as driver:
            browser = driver.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox", "--font-render-hinting=none"]
            )
            tab = browser.new_page(viewport={"width": 1360, "height": 850}, device_scale_factor=2)
            tab.goto(page.as_uri())
            tab.wait_for_selector("html[data-ready]", state="attached")
            tab.wait_for_timeout(300)  # until the canvas is drawn
            tab.screenshot(path=OUT)
            browser.close()


if __name__ == "__main__":
    main()
