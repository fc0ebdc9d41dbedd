"""stable-baselines3: a tracker on the policy, whose optimizers step in `learn`."""

from __future__ import annotations

from functools import partial
from typing import Any

from lightning_symmetry import SymmetryTracker
from tests.wild.watching import Fault, Library, Plant, constant, library_tests


def train(name: str, num_steps: int, fault: Fault | None, **options: Any) -> SymmetryTracker:
    import stable_baselines3

    policy = {"net_arch": [32, 32]}  # a new one each time, since the library changes it
    environment = "CartPole-v1" if name == "DQN" else "Pendulum-v1"
    agent = getattr(stable_baselines3, name)(
        "MlpPolicy", environment, seed=0, device="cpu", policy_kwargs=policy, **options
    )
    if fault:
        fault(agent.policy)
    optimizers = [part.optimizer for part in agent.policy.modules() if hasattr(part, "optimizer")]
    with SymmetryTracker(agent.policy, optimizers) as tracker:
        agent.learn(num_steps)
    return tracker


_BUFFER: dict[str, Any] = {"buffer_size": 1000, "learning_starts": 50, "batch_size": 32}
LIBRARY = Library(
    "stable_baselines3",
    "`SymmetryTracker(agent.policy, optimizers)`",
    {
        "PPO": partial(train, "PPO", 512, n_steps=128, batch_size=32),
        "A2C": partial(train, "A2C", 800),
        "SAC": partial(train, "SAC", 200, **_BUFFER),
        "TD3": partial(train, "TD3", 350, **_BUFFER),
        "DQN": partial(train, "DQN", 200, **{**_BUFFER, "train_freq": 1}),
    },
    Plant(
        "PPO",
        constant("mlp_extractor.policy_net"),
        "the weights of the policy are one number",
        "policy_net.0",
        "SYM101",
    ),
)
test_a_healthy_model_trains_in_silence, test_a_planted_fault_is_named = library_tests(LIBRARY)
