"""What pytest must not import for doctests: what only an environment with SGLang or torch can import."""

import re
from importlib.util import find_spec
from pathlib import Path

collect_ignore_glob = [] if find_spec("sglang") else ["abduce/serving/sglang/plugin/*.py"]
collect_ignore_glob += [] if find_spec("triton") else ["abduce/serving/kernels/*"]
if not find_spec("torch"):
    needs_it = re.compile(r"^(import torch|from transformers import .*)$", re.MULTILINE)
    beside = [*Path("abduce/serving/transformers").rglob("*.py"), *Path("tests/serving").rglob("*.py")]
    collect_ignore_glob += ["abduce/serving/transformers/kv/*"]
    collect_ignore_glob += [str(file) for file in beside if needs_it.search(file.read_text("utf-8"))]
