"""peft: adapters of a language model, trained by the Trainer of transformers."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from tests.wild.watching import Fault, Library, Plant, library_tests, train_with


def train(name: str, fault: Fault | None, **options: Any) -> Any:
    import peft
    from transformers import Trainer

    from tests.wild.texts import arguments, causal, rows

    config = getattr(peft, name)(task_type="CAUSAL_LM", **options)
    model = peft.get_peft_model(causal("llama"), config)
    return train_with(lambda seen: Trainer(model, arguments(), train_dataset=rows(), callbacks=[seen]), model, fault)


def both_zero(model: nn.Module) -> None:
    """Initialise the first factors of LoRA with zeros, as the second ones are."""
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            nn.init.zeros_(parameter)


_TARGETS = {"target_modules": ["q_proj", "v_proj"]}
LIBRARY = Library(
    "peft",
    "`Trainer(..., callbacks=[SymmetryCallback()])`",
    {
        "LoRA": partial(train, "LoraConfig", r=4, **_TARGETS),
        "DoRA": partial(train, "LoraConfig", r=4, use_dora=True, **_TARGETS),
        "IA3": partial(train, "IA3Config", feedforward_modules=["down_proj"], target_modules=["v_proj", "down_proj"]),
        "prefix tuning": partial(train, "PrefixTuningConfig", num_virtual_tokens=4),
    },
    Plant("LoRA", both_zero, "both factors are 0", "q_proj.lora_A.default", "SYM303"),
)
test_a_healthy_model_trains_in_silence, test_a_planted_fault_is_named = library_tests(LIBRARY)
