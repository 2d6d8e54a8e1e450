"""its_hub 1.2.0's side of `benchmarks/gateway.py`: its own gateway on a model that answers at once.

The gateway is the package's FastAPI application under uvicorn, as its `its-iaas` command starts it; its
language model, which would be asked over HTTP, is replaced by one in the process, and it draws one sample.

    python benchmarks/its_hub_gateway.py PORT
"""

import asyncio
import logging
import sys
from typing import Any

import uvicorn
from its_hub.api import AbstractLanguageModel
from its_hub.core.algorithms.self_consistency import SelfConsistency
from its_hub.core.gateway import ITSGateway
from its_hub.integration.iaas import app as iaas

MODEL = "one-sample"
ENDPOINT = "http://127.0.0.1:1/v1"  # never asked
REPLY = "Seven eights are fifty-six. The answer is 56."


class Scripted(AbstractLanguageModel):
    """Always says the same, at once."""

    async def agenerate_single(self, messages: Any, stop: Any = None, **_: Any) -> dict[str, str]:
        """One conversation."""
        return {"role": "assistant", "content": REPLY}

    async def agenerate(self, messages: Any, stop: Any = None, **_: Any) -> Any:
        """A batch of conversations."""
        return await asyncio.gather(*(self.agenerate_single(chat, stop) for chat in messages))

    async def close(self) -> None:
        """Nothing to close."""


def main(port: int) -> None:
    """Serve until killed."""
    logging.disable(logging.INFO)  # a line for each request would be its cost, not the gateway's
    state = iaas._state
    state.gateway = ITSGateway(algorithm=SelfConsistency())
    state.gateway._lm_cache[ENDPOINT, MODEL, ITSGateway._hash_api_key(None)] = Scripted()  # type: ignore[assignment]
    state.config.endpoint, state.config.model, state.config.budget = ENDPOINT, MODEL, 1
    uvicorn.run(iaas.app, host="127.0.0.1", port=port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main(int(sys.argv[1]))
