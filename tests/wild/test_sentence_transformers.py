"""sentence-transformers: its Trainer takes the callbacks of transformers."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from tests.wild.watching import Fault, Library, Plant, constant, library_tests, train_with


def train(name: str, fault: Fault | None) -> Any:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, losses, models
    from sentence_transformers.training_args import SentenceTransformerTrainingArguments
    from transformers import DistilBertConfig, DistilBertModel

    from tests.wild.texts import VOCABULARY, options, sentences, tokenizer

    config = DistilBertConfig(vocab_size=VOCABULARY, dim=32, n_layers=2, n_heads=4, hidden_dim=48, pad_token_id=0)
    DistilBertModel(config).save_pretrained("words")
    tokenizer().save_pretrained("words")
    words = models.Transformer("words")
    size = words.get_word_embedding_dimension()
    model = SentenceTransformer(modules=[words, models.Pooling(size), models.Dense(size, 16)], device="cpu")
    columns: dict[str, Any] = {"first": sentences(64), "second": sentences(64)}
    if name == "CosineSimilarityLoss":
        columns["score"] = torch.rand(64).tolist()
    if name == "TripletLoss":
        columns["third"] = sentences(64)
    return train_with(
        lambda seen: SentenceTransformerTrainer(
            model=model,
            args=SentenceTransformerTrainingArguments(**options()),
            train_dataset=Dataset.from_dict(columns),
            loss=getattr(losses, name)(model),
            callbacks=[seen],
        ),
        model,
        fault,
    )


LIBRARY = Library(
    "sentence-transformers",
    "`SentenceTransformerTrainer(..., callbacks=[SymmetryCallback()])`",
    {name: partial(train, name) for name in ("MultipleNegativesRankingLoss", "CosineSimilarityLoss", "TripletLoss")},
    Plant("CosineSimilarityLoss", constant("2"), "the last layer is initialised with one number", "2.linear", "SYM101"),
)
test_a_healthy_model_trains_in_silence, test_a_planted_fault_is_named = library_tests(LIBRARY)
