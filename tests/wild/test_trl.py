"""trl: its Trainers take the callbacks of transformers."""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from typing import Any

from tests.wild.watching import Fault, Library, Plant, library_tests, silenced, train_with


def train(name: str, fault: Fault | None, **more: Any) -> Any:
    import trl
    from datasets import Dataset

    from tests.wild.texts import causal, options, sentences, tokenizer

    model = causal("llama")
    columns = {
        "SFT": lambda: {"text": sentences(64)},
        "DPO": lambda: {"prompt": sentences(64, 4), "chosen": sentences(64, 4), "rejected": sentences(64, 4)},
        "Reward": lambda: {"chosen": sentences(64), "rejected": sentences(64)},
        "GRPO": lambda: {"prompt": sentences(64, 4)},
    }[name]()
    if name == "Reward":
        from transformers import LlamaConfig, LlamaForSequenceClassification

        from tests.wild.texts import SMALL

        model = LlamaForSequenceClassification(LlamaConfig(**SMALL, num_labels=1))
    settings = getattr(trl, f"{name}Config")(**{**options(), "bf16": False, "gradient_checkpointing": False, **more})
    extras = {
        "DPO": {"ref_model": deepcopy(model)},  # is loaded by name otherwise, and the model has none
        "GRPO": {"reward_funcs": lambda completions, **_: [float(len(set(text))) for text in completions]},
    }
    return train_with(
        lambda seen: getattr(trl, f"{name}Trainer")(
            model=model,
            args=settings,
            train_dataset=Dataset.from_dict(columns),
            processing_class=tokenizer(),
            callbacks=[seen],
            **extras.get(name, {}),
        ),
        model,
        fault,
    )


LIBRARY = Library(
    "trl",
    "`SFTTrainer(..., callbacks=[SymmetryCallback()])`",
    {
        "SFTTrainer": partial(train, "SFT"),
        "DPOTrainer": partial(train, "DPO"),
        "RewardTrainer": partial(train, "Reward"),
        "GRPOTrainer": partial(train, "GRPO", num_generations=4, max_completion_length=6),
    },
    Plant(
        "SFTTrainer", silenced("model.layers.0.mlp"), "an MLP is multiplied by 0", "layers.0.mlp.down_proj", "SYM306"
    ),
)
test_a_healthy_model_trains_in_silence, test_a_planted_fault_is_named = library_tests(LIBRARY)
