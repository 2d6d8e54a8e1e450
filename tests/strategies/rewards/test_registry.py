import subprocess
import sys

import pytest

from abduce.serving.errors import UnknownName, UsageError
from abduce.strategies.base import Reward, requirements
from abduce.strategies.policy import StepPolicy
from abduce.strategies.rewards import REWARDS, reward, reward_class


@pytest.mark.parametrize("name", sorted(REWARDS))
def test_every_reward_is_one(name):
    made = reward(name, policy=StepPolicy())
    assert isinstance(made, Reward)
    assert isinstance(made, reward_class(name))
    assert reward_class(name).__doc__
    assert set(requirements(made)) <= {"policy", "reward"}


def test_a_reward_takes_parameters():
    assert reward({"kind": "judge", "n_eval": 5}, policy=StepPolicy()).n_eval == 5


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("self_evl", "Did you mean 'self_eval'"),
        ({"kind": "judge", "n_evl": 5}, "Did you mean 'n_eval'"),
        ({"kind": "checks", "policy": None}, "parameter of the reward checks"),
        ({"n_eval": 5}, "'kind' is missing"),
    ],
)
def test_mistakes_are_told(spec, told):
    with pytest.raises((UnknownName, UsageError), match=told):
        reward(spec, policy=StepPolicy())


def test_rewards_and_policies_import_nothing_heavy():
    heavy = "{'pydantic', 'asyncio', 'torch', 'yaml', 'numpy', 'networkx'}"
    names = ", ".join(REWARDS)
    code = (
        f"import sys; from abduce.strategies import policy; from abduce.strategies.rewards import {names}; "
        f"print({heavy} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"
