"""The white box: a Hugging Face model of which every number can be seen, and samplers that need them all.

| file           | idea                                                                        |
|----------------|-----------------------------------------------------------------------------|
| `engine.py`    | the engine `Transformers`                                                    |
| `model.py`     | loading, tokeniser, chat template, attention of your own                     |
| `decoding.py`  | a program yields rows of tokens and is sent log p: sampling, scoring         |
| `batching.py`  | many programs at once in one batch                                           |
| `slots.py`     | keys and values, and the forward                                             |
| `query_ttt.py` | queries trained on the prompt; `query_weights.py` their gradients             |
| `potentials.py`| constraints as functions of a text; `matchers.py` of tokens, `timed.py` yours |
| `awrs.py`      | adaptive weighted rejection sampling of one token                            |
| `awrs_smc.py`  | a population of such texts, weighed and resampled                            |
| `kv/`          | KV methods on a model's cache, where their quality is measured; `EMSPress`    |
| `hogwild.py`   | workers that share one cache; `hogwild_steps.py` their rules                  |
| `localleap.py` | masked diffusion models, several tokens a forward; its calibration beside it   |
| `engram.py`    | a llama with tables of n-grams: to train, to save, to serve                   |

torch and transformers are imported when the engine loads its model.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .engine import Transformers

__all__ = ["Transformers"]


def __getattr__(name: str) -> Any:
    if name == "Transformers":
        from .engine import Transformers

        return Transformers
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
