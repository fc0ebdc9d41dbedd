"""Tiny language models, a tokenizer and texts, made on the spot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast, TrainingArguments

from tests.wild.watching import STEPS

VOCABULARY, TOKENS = 64, 12
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WORDS = [f"w{i}" for i in range(VOCABULARY - 4)]


def causal(name: str) -> Any:
    """Return a tiny causal language model of a family."""
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **SMALL))


def rows(num: int = 64) -> list[dict[str, torch.Tensor]]:
    """Return sequences of tokens, to be predicted one by one."""
    tokens = torch.randint(3, VOCABULARY, (num, TOKENS))
    return [{"input_ids": row, "labels": row} for row in tokens]


def sentences(num: int, length: int = 8) -> list[str]:
    """Return texts of words drawn at random."""
    draws = torch.randint(len(WORDS), (num, length))
    return [" ".join(WORDS[i] for i in row) for row in draws]


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per word."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    special = ["<pad>", "<s>", "</s>", "<unk>"]
    words = models.WordLevel({word: i for i, word in enumerate([*special, *WORDS])}, unk_token="<unk>")
    made = Tokenizer(words)
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def options() -> dict[str, Any]:
    """Return the arguments of a short training on the CPU that says and saves nothing."""
    return {
        "output_dir": str(Path("trained").resolve()),
        "max_steps": STEPS,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-3,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
    }


def arguments() -> TrainingArguments:
    return TrainingArguments(**options())
