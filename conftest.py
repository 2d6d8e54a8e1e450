"""What pytest must not import for doctests: the parts that only an SGLang server's environment can import."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("sglang") else ["abduce/serving/sglang/plugin/*.py"]
