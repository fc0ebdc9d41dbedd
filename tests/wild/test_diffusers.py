"""diffusers, in a loop of one's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lightning_symmetry import SymmetryTracker
from tests.wild.watching import Fault, Library, Plant, library_tests, silenced, train_in_loop


def unet(fault: Fault | None) -> SymmetryTracker:
    from diffusers import UNet2DModel

    model = UNet2DModel(
        sample_size=16,
        layers_per_block=1,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=8,
    )
    return denoise(model, fault, torch.randn(4, 3, 16, 16))


def conditional_unet(fault: Fault | None) -> SymmetryTracker:
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=8,
        cross_attention_dim=16,
    )
    return denoise(model, fault, torch.randn(4, 4, 16, 16), encoder_hidden_states=torch.randn(4, 6, 16))


def diffusion_transformer(fault: Fault | None) -> SymmetryTracker:
    from diffusers import DiTTransformer2DModel

    model = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        norm_num_groups=8,
        num_embeds_ada_norm=1000,
    )
    return denoise(model, fault, torch.randn(4, 4, 8, 8), class_labels=torch.arange(4))


def denoise(model: Any, fault: Fault | None, clean: torch.Tensor, **conditions: Any) -> SymmetryTracker:
    """Train to predict the noise, as the tutorials of the library do."""
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler()

    def loss() -> torch.Tensor:
        noise, steps = torch.randn_like(clean), torch.randint(1000, (len(clean),))
        noisy = scheduler.add_noise(clean, noise, steps)
        return nn.functional.mse_loss(model(noisy, timestep=steps, **conditions).sample[:, : clean.shape[1]], noise)

    return train_in_loop(model, loss, fault)


def autoencoder(fault: Fault | None) -> SymmetryTracker:
    from diffusers import AutoencoderKL

    model = AutoencoderKL(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
    )
    images = torch.randn(4, 3, 16, 16)

    def loss() -> torch.Tensor:
        code = model.encode(images).latent_dist
        rebuilt = model.decode(code.sample()).sample
        return nn.functional.mse_loss(rebuilt, images) + 1e-6 * code.kl().mean()

    return train_in_loop(model, loss, fault)


LIBRARY = Library(
    "diffusers",
    "`SymmetryTracker(model, optimizer)`",
    {
        "UNet2DModel": unet,
        "UNet2DConditionModel": conditional_unet,
        "DiTTransformer2DModel": diffusion_transformer,
        "AutoencoderKL": autoencoder,
    },
    Plant(
        "DiTTransformer2DModel",
        silenced("transformer_blocks.0.ff"),
        "a feed-forward block is multiplied by 0",
        "transformer_blocks.0.ff.net.2",
        "SYM306",
    ),
)
test_a_healthy_model_trains_in_silence, test_a_planted_fault_is_named = library_tests(LIBRARY)
