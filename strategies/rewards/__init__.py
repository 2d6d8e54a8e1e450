"""The rewards by name. Each is imported when first asked for.

| name        | a partial solution's score                                   | needs                       |
|-------------|--------------------------------------------------------------|-----------------------------|
| `self_eval` | probability that a model says Yes to "correct so far?"        | log-probs of given text     |
| `judge`     | mean verdict of a model, 0 to 10                              | text                        |
| `rate`      | a reward model's score                                        | a reward model              |
| `checks`    | share of the task's checks met; 1 until it is finished        | checks on the task          |
| `agreement` | share of the finished solutions scored with it that agree     | nothing; finished ones only |

A model that scores has the role "reward", which the run's own model plays if no other does. Third parties
add rewards through the entry-point group `abduce.rewards`.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ...serving import registry
from ...serving.errors import UnknownName, UsageError
from ..base import Policy, Reward

REWARDS: dict[str, str] = {
    "agreement": "Agreement",
    "checks": "Checks",
    "judge": "Judge",
    "rate": "RateReward",
    "self_eval": "SelfEval",
}
"""File (which is the reward's name) → class."""


def reward_class(name: str) -> type:
    """The class of a reward. Raises UnknownName with the nearest spelling."""
    found = registry.find("reward", name, REWARDS, __name__, "abduce.rewards")
    made: type = registry.dataclass_of("reward", name, found)
    return made


def reward(spec: str | Mapping[str, Any], *, policy: Policy) -> Reward:
    """A reward by name, or `{"kind": name, field: value, …}`; one that must know what is finished and what
    it answers gets the policy. Raises UnknownName for unknown rewards and fields."""
    params = {"kind": spec} if isinstance(spec, str) else dict(spec)
    if "kind" not in params:
        raise UsageError(f"A reward is a name or {{kind: name, …}}; 'kind' is missing in {params!r}.")
    name = params.pop("kind")
    kind = reward_class(name)
    known = {f.name for f in fields(kind)}
    for key in params:
        if key not in known - {"policy"}:
            raise UnknownName(f"parameter of the reward {name}", key, known - {"policy"})
    made: Reward = kind(**params, **({"policy": policy} if "policy" in known else {}))
    return made
