"""KV methods on the caches of Hugging Face models: how much of a text may go unread before answers change.

| file           | idea                                                                              |
|----------------|-----------------------------------------------------------------------------------|
| `reading.py`   | a text is read once, exactly; a method makes of it a memory; later tokens read that |
| `methods.py`   | EMS, ActQKV and DeltaLLM as such methods                                          |
| `prompts.py`   | a text that is read inexactly: by retrieval, by differences                       |
| `baselines.py` | the whole cache, StreamingLLM, SnapKV, SnapKV with merging, H2O, Quest, INT8 keys |
| `rotary.py`    | by what a model turns its keys                                                    |
| `press.py`     | `EMSPress`: EMS on the model's own cache, with kvpress's interface                 |

This is where quality is measured. What serves requests is in serving/sglang/plugin.
"""

from .baselines import H2O, FullCache, Int8Keys, MergedSnapKV, Quest, SnapKV, StreamingLLM
from .methods import EMS, ActQKV, DeltaLLM, PackedDeltaLLM
from .press import EMSPress
from .prompts import ByDifferences, Retrieving
from .reading import Kept, Memory, Method, Prefix, Prompt, Reader, n_kept

__all__ = [
    "EMS",
    "H2O",
    "ActQKV",
    "ByDifferences",
    "DeltaLLM",
    "EMSPress",
    "FullCache",
    "Int8Keys",
    "Kept",
    "Memory",
    "MergedSnapKV",
    "Method",
    "PackedDeltaLLM",
    "Prefix",
    "Prompt",
    "Quest",
    "Reader",
    "Retrieving",
    "SnapKV",
    "StreamingLLM",
    "n_kept",
]
