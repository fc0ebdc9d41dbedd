"""Tiny members of many families of networks with random weights; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

BATCH, TOKENS, VOCABULARY = 4, 12, 64


@dataclass(frozen=True)
class Family:
    """A family of networks.

    Attributes:
        name: as the library calls it.
        build: makes a tiny member; the global random state is seeded before.
        inputs: makes what the network is called with, by the name of the argument.
        cannot_plant: why copies of units stay no copies in this architecture; empty if they do.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], dict[str, Tensor]]
    cannot_plant: str = ""


# ----------------------------------------------------------------- inputs


def tokens() -> dict[str, Tensor]:
    return {"input_ids": torch.randint(3, VOCABULARY, (BATCH, TOKENS))}


def two_texts() -> dict[str, Tensor]:
    return {**tokens(), "decoder_input_ids": torch.randint(3, VOCABULARY, (BATCH, TOKENS))}


def images(size: int, name: str = "pixel_values") -> Callable[[], dict[str, Tensor]]:
    return lambda: {name: torch.randn(BATCH, 3, size, size)}


# ----------------------------------------------------------------- transformers

_SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_DECODER = {**_SMALL, "num_key_value_heads": 2, "max_position_embeddings": 32}
_BART = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
_VISION = {
    **{k: v for k, v in _SMALL.items() if k not in ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")},
    "image_size": 16,
    "patch_size": 4,
}


def _transformer(name: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from transformers import AutoConfig, AutoModel

        model: nn.Module = AutoModel.from_config(AutoConfig.for_model(name, **options))
        return model

    return build


def _family(
    name: str, options: dict[str, Any], inputs: Callable[[], dict[str, Tensor]] = tokens, cannot: str = "", **more: Any
) -> Family:
    return Family(name, _transformer(name, **{**options, **more}), inputs, cannot)


PYRAMID = {
    "num_encoder_blocks": 2,
    "depths": [1, 1],
    "sr_ratios": [2, 1],
    "hidden_sizes": [16, 32],
    "patch_sizes": [7, 3],
    "strides": [4, 2],
    "num_attention_heads": [2, 4],
    "mlp_ratios": [2, 2],
}

TRANSFORMERS = [
    *(
        _family(name, _SMALL, max_position_embeddings=32)
        for name in (
            "bert",
            "roberta",
            "electra",
            "xlm-roberta",
            "camembert",
            "deberta",
            "deberta-v2",
            "convbert",
            "roformer",
            "megatron-bert",
            "mpnet",
            "layoutlm",
            "splinter",
            "nystromformer",
            "fnet",
            "ernie",
            "modernbert",
            "rembert",
            "mobilebert",
            "albert",
            "ibert",
            "yoso",
            "canine",
        )
    ),
    _family("squeezebert", _SMALL, embedding_size=32, max_position_embeddings=32),
    _family("helium", _DECODER, head_dim=8),
    _family(
        "distilbert",
        {
            "vocab_size": VOCABULARY,
            "dim": 32,
            "n_layers": 2,
            "n_heads": 4,
            "hidden_dim": 48,
            "max_position_embeddings": 32,
        },
    ),
    _family("xlnet", {"vocab_size": VOCABULARY, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48}),
    _family(
        "funnel",
        {
            "vocab_size": VOCABULARY,
            "d_model": 32,
            "n_head": 4,
            "d_head": 8,
            "d_inner": 48,
            "block_sizes": [1, 1],
            "num_decoder_layers": 1,
            "architectures": ["FunnelModel"],
        },
        lambda: {
            **tokens(),
            "attention_mask": torch.ones(BATCH, TOKENS),
            "token_type_ids": torch.randint(0, 2, (BATCH, TOKENS)),
        },
    ),
    _family(
        "gpt2",
        {
            "vocab_size": VOCABULARY,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 32,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
    _family(
        "gptj",
        {
            "vocab_size": VOCABULARY,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 32,
            "rotary_dim": 4,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
    _family(
        "codegen",
        {
            "vocab_size": VOCABULARY,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 32,
            "rotary_dim": 4,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
    _family(
        "gpt_neo",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "max_position_embeddings": 32,
            "attention_types": [[["global", "local"], 1]],
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
    _family(
        "bloom",
        {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2},
    ),
    _family("mpt", {"vocab_size": VOCABULARY, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 32}),
    _family("opt", {**_SMALL, "ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 32}),
    *(
        _family(name, _DECODER)
        for name in (
            "llama",
            "mistral",
            "qwen2",
            "qwen3",
            "gemma",
            "gemma2",
            "phi",
            "phi3",
            "gpt_neox",
            "stablelm",
            "starcoder2",
            "olmo",
            "olmo2",
            "cohere",
            "granite",
            "falcon",
            "persimmon",
            "glm",
            "nemotron",
            "smollm3",
            "exaone4",
        )
    ),
    *(
        _family(
            name,
            _DECODER,
            num_local_experts=4,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=16,
            shared_expert_intermediate_size=16,
            head_dim=8,
        )
        for name in (
            "mixtral",
            "granitemoe",
            "qwen2_moe",
            "qwen3_moe",
            "olmoe",
            "phimoe",
            "gpt_oss",
            "jetmoe",
            "llama4_text",
            "minimax",
        )
    ),
    _family(
        "deepseek_v3",
        _DECODER,
        n_routed_experts=4,
        n_group=1,
        topk_group=1,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        first_k_dense_replace=1,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
        num_key_value_heads=4,
    ),
    _family(
        "nemotron_h",
        _DECODER,
        layers_block_type=["mamba", "moe"],
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        mamba_num_heads=8,
        mamba_head_dim=8,
        ssm_state_size=8,
        n_groups=2,
        use_cache=False,
    ),
    _family("mamba", {**_SMALL, "state_size": 8, "time_step_rank": 4}),
    _family("mamba2", {**_SMALL, "state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 4}),
    _family("falcon_mamba", {**_SMALL, "state_size": 8, "time_step_rank": 4}),
    _family("recurrent_gemma", _DECODER, num_hidden_layers=3, lru_width=32, attention_window_size=8),
    _family(
        "t5",
        {
            "vocab_size": VOCABULARY,
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 48,
            "num_layers": 2,
            "num_heads": 4,
            "decoder_start_token_id": 0,
        },
        two_texts,
    ),
    _family(
        "mt5",
        {
            "vocab_size": VOCABULARY,
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 48,
            "num_layers": 2,
            "num_heads": 4,
            "decoder_start_token_id": 0,
        },
        two_texts,
    ),
    *(
        _family(name, _BART, two_texts)
        for name in ("bart", "mbart", "marian", "pegasus", "blenderbot", "m2m_100", "led")
    ),
    *(
        _family(name, _VISION, images(16))
        for name in (
            "vit",
            "deit",
            "beit",
            "dinov2",
            "vit_mae",
            "vit_msn",
            "ijepa",
            "data2vec-vision",
            "dinov3_vit",
            "siglip_vision_model",
            "clip_vision_model",
        )
    ),
    _family(
        "swin",
        {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4},
        images(32),
    ),
    _family(
        "swinv2",
        {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4},
        images(32),
    ),
    _family("convnext", {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}, images(32)),
    _family("convnextv2", {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}, images(32)),
    _family("resnet", {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 1]}, images(32)),
    _family("regnet", {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 1], "groups_width": 8}, images(32)),
    _family("segformer", PYRAMID, images(32)),
    _family("pvt_v2", {"image_size": 32, **PYRAMID}, images(32)),
    _family(
        "poolformer",
        {
            "hidden_sizes": [16, 32],
            "depths": [1, 1],
            "num_encoder_blocks": 2,
            "patch_sizes": [7, 3],
            "strides": [4, 2],
            "padding": [2, 1],
        },
        images(32),
    ),
    _family("mobilenet_v2", {"depth_multiplier": 0.25}, images(32)),
    _family(
        "levit",
        {
            "image_size": 32,
            "hidden_sizes": [16, 32, 32],
            "num_attention_heads": [2, 2, 2],
            "depths": [1, 1, 1],
            "key_dim": [8, 8, 8],
        },
        images(32),
        cannot="it keeps its attention biases from step to step unless in training mode",
    ),
    _family(
        "whisper",
        {**_BART, "num_mel_bins": 8, "max_source_positions": 10, "max_target_positions": 32},
        lambda: {
            "input_features": torch.randn(BATCH, 8, 20),
            "decoder_input_ids": torch.randint(3, VOCABULARY, (BATCH, TOKENS)),
        },
    ),
    _family(
        "wav2vec2",
        {
            **_SMALL,
            "conv_dim": [16, 16],
            "conv_stride": [4, 2],
            "conv_kernel": [8, 4],
            "num_feat_extract_layers": 2,
            "num_conv_pos_embeddings": 4,
            "num_conv_pos_embedding_groups": 2,
        },
        lambda: {"input_values": torch.randn(BATCH, 400)},
    ),
    _family(
        "patchtst",
        {
            "num_input_channels": 2,
            "context_length": 16,
            "patch_length": 4,
            "patch_stride": 4,
            "d_model": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "ffn_dim": 32,
        },
        lambda: {"past_values": torch.randn(BATCH, 16, 2)},
    ),
]


# ----------------------------------------------------------------- timm

_CLASSES = 8


def _timm(name: str, size: int = 64, cannot: str = "", **options: Any) -> Family:
    def build() -> nn.Module:
        import timm

        model: nn.Module = timm.create_model(name, num_classes=_CLASSES, **options)
        return model

    return Family(name, build, images(size, "x"), cannot)


def _vision_transformer(name: str, size: int = 32, cannot: str = "", **options: Any) -> Family:
    shape = {"img_size": size, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    return _timm(name, size, cannot, **{**shape, **options})


_DIMS = (16, 16, 32, 32)
_ONCE = (1, 1, 1, 1)
_WINDOWS: dict[str, Any] = {"img_size": 32, "window_size": 4, "embed_dim": 16, "depths": (1, 2), "num_heads": (2, 4)}

TIMM = [
    *(_timm(f"test_{name}") for name in ("vit", "resnet", "convnext", "efficientnet", "byobnet", "nfnet", "mambaout")),
    *(
        _vision_transformer(name)
        for name in ("deit_tiny_distilled_patch16_224", "beit_base_patch16_224", "cait_xxs24_224")
    ),
    *(_timm(f"test_{name}", 160) for name in ("vit_relpos", "coatnet", "maxvit")),
    _vision_transformer("xcit_nano_12_p8_224"),
    _vision_transformer("eva02_tiny_patch14_224", 28, patch_size=14),
    _vision_transformer("convit_tiny", embed_dim=16, local_up_to_layer=1),
    _vision_transformer("samvit_base_patch16", global_attn_indexes=(1,), window_size=2),
    _timm(
        "tnt_s_patch16_224", 32, img_size=32, embed_dim=32, inner_dim=8, depth=2, num_heads_inner=2, num_heads_outer=2
    ),
    _timm("pit_ti_224", img_size=64, base_dims=[16, 16, 16], depth=[1, 1, 1], heads=[1, 2, 4]),
    _timm("swin_tiny_patch4_window7_224", 32, **_WINDOWS),
    _timm("swinv2_tiny_window8_256", 32, **_WINDOWS),
    _timm("swinv2_cr_tiny_224", 32, **_WINDOWS),
    _timm(
        "levit_128s",
        img_size=64,
        embed_dim=(16, 32, 32),
        num_heads=(2, 2, 2),
        depth=(1, 1, 1),
        key_dim=8,
        cannot="it keeps its attention biases from step to step unless in training mode",
    ),
    _timm("pvt_v2_b0", embed_dims=(8, 16, 16, 32), depths=_ONCE, num_heads=(1, 2, 2, 4)),
    _timm("twins_svt_small", img_size=64, embed_dims=_DIMS, depths=_ONCE, num_heads=(2, 2, 4, 4)),
    _timm("edgenext_xx_small", dims=_DIMS, depths=(1, 1, 2, 1)),
    _timm("davit_tiny", embed_dims=_DIMS, depths=_ONCE, num_heads=(2, 2, 2, 2)),
    _timm("hiera_tiny_224", img_size=64, embed_dim=16, num_heads=1, stages=_ONCE),
    _timm("sequencer2d_s", img_size=64, embed_dims=_DIMS, layers=_ONCE),
    _timm("swiftformer_xs", embed_dims=[*_DIMS], layers=[1, 1, 1, 2]),
    _timm("inception_next_tiny", dims=_DIMS, depths=_ONCE),
    _timm("starnet_s1", base_dim=8, depths=_ONCE),
    _timm("densenet121", growth_rate=8, block_config=(2, 2)),
    *(
        _timm(name)
        for name in (
            "mobilevit_xxs",
            "mobilenetv3_small_050",
            "efficientvit_b0",
            "ghostnet_050",
            "repghostnet_050",
            "regnetx_002",
            "fasternet_t0",
            "lcnet_035",
            "mobilenetv4_conv_small",
        )
    ),
]
