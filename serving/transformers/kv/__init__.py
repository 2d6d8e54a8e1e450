"""KV methods on the caches of Hugging Face models: how much of a text may go unread before answers change.

| file           | idea                                                                          |
|----------------|-------------------------------------------------------------------------------|
| `reading.py`   | a text is read once, exactly; a method makes of it a memory; later tokens read that |
| `methods.py`   | EMS, ActQKV and DeltaLLM as such methods                                      |
| `baselines.py` | the whole cache, StreamingLLM, SnapKV and H2O                                 |
| `press.py`     | `EMSPress`: EMS on the model's own cache, with kvpress's interface             |

This is where quality is measured. What serves requests is in serving/sglang/plugin.
"""

from .baselines import H2O, FullCache, SnapKV, StreamingLLM
from .methods import EMS, ActQKV, DeltaLLM
from .press import EMSPress
from .reading import Kept, Memory, Method, Prefix, Reader, n_kept

__all__ = [
    "EMS",
    "H2O",
    "ActQKV",
    "DeltaLLM",
    "EMSPress",
    "FullCache",
    "Kept",
    "Memory",
    "Method",
    "Prefix",
    "Reader",
    "SnapKV",
    "StreamingLLM",
    "n_kept",
]
