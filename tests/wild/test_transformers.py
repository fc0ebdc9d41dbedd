"""transformers: a callback of its Trainer."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from tests.wild.watching import Fault, Library, Plant, library_tests, silenced, train_with


def language_model(name: str, fault: Fault | None) -> Any:
    from transformers import Trainer

    from tests.wild.texts import arguments, causal, rows

    model = causal(name)
    return train_with(lambda seen: Trainer(model, arguments(), train_dataset=rows(), callbacks=[seen]), model, fault)


def classifier(fault: Fault | None) -> Any:
    from transformers import BertConfig, BertForSequenceClassification, Trainer

    from tests.wild.texts import SMALL, arguments, rows

    model = BertForSequenceClassification(BertConfig(**SMALL, num_labels=3))
    data = [{"input_ids": row["input_ids"], "labels": i % 3} for i, row in enumerate(rows())]
    return train_with(lambda seen: Trainer(model, arguments(), train_dataset=data, callbacks=[seen]), model, fault)


def images(fault: Fault | None) -> Any:
    from transformers import Trainer, ViTConfig, ViTForImageClassification

    from tests.wild.texts import SMALL, arguments

    options = {name: SMALL[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    model = ViTForImageClassification(
        ViTConfig(**options, intermediate_size=48, image_size=16, patch_size=4, num_labels=3)
    )
    data = [{"pixel_values": torch.randn(3, 16, 16), "labels": i % 3} for i in range(64)]
    return train_with(lambda seen: Trainer(model, arguments(), train_dataset=data, callbacks=[seen]), model, fault)


LIBRARY = Library(
    "transformers",
    "`Trainer(..., callbacks=[SymmetryCallback()])`",
    {
        "Llama": partial(language_model, "llama"),
        "Mixtral": partial(language_model, "mixtral"),
        "BERT, classification": classifier,
        "ViT, classification": images,
    },
    Plant("Llama", silenced("model.layers.1.mlp"), "an MLP is multiplied by 0", "layers.1.mlp.down_proj", "SYM306"),
)
test_a_healthy_model_trains_in_silence, test_a_planted_fault_is_named = library_tests(LIBRARY)
