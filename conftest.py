"""What pytest must not import for doctests: what only an environment with SGLang or torch can import."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("sglang") else ["abduce/serving/sglang/plugin/*.py"]
collect_ignore_glob += [] if find_spec("triton") else ["abduce/serving/kernels/*"]
