"""The video autoencoder in plain PyTorch, as two engine kinds that each map one tile (MODEL.md section 5).

It knows no tiling, no scaling, no sampling of the posterior, no files and no backends. Its layers are in `vae_layers`.

Shapes: B batch (1 in engines), F pixel frames, H W pixels, C latent channels, T latent frames.
"""

from typing import TYPE_CHECKING, cast

from torch import Tensor, nn

from vino_rt.models.vino.vae_config import MAX_TILE_LATENTS, VaeConfig
from vino_rt.models.vino.vae_layers import Decoder, Encoder

if TYPE_CHECKING:
    from torch.export import Dim


class VaeEncoder(nn.Module):
    """Engine kind `vae_encode`; parameters `encoder.*` and `quant_conv.*` as released."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quant_conv = nn.Conv3d(2 * config.latent_channels, 2 * config.latent_channels, kernel_size=1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels [B,3,F,H,W] in [-1,1], F = 4k+1, H and W multiples of 8, to moments [B,2C,(F-1)/4+1,H/8,W/8].

        The first C channels are the mean, the others the log variance, not clamped.
        """
        return cast(Tensor, self.quant_conv(self.encoder(pixels)))

    def dynamic_shapes(self) -> tuple[dict[int, "Dim"]]:
        """What may vary between tiles, for `torch.export` and `torch.onnx.export`; T, h, w = 1 are served as well."""
        latents, height, width = _tile_dims()
        return ({2: 4 * latents + 1, 3: 8 * height, 4: 8 * width},)


class VaeDecoder(nn.Module):
    """Engine kind `vae_decode`; parameters `post_quant_conv.*` and `decoder.*` as released."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.config = config
        self.post_quant_conv = nn.Conv3d(config.latent_channels, config.latent_channels, kernel_size=1)
        self.decoder = Decoder(config)

    def forward(self, latents: Tensor) -> Tensor:
        """Map latents [B,C,T,h,w], divided by the scaling factor, to pixels [B,3,4(T-1)+1,8h,8w], not clipped."""
        return cast(Tensor, self.decoder(self.post_quant_conv(latents)))

    def dynamic_shapes(self) -> tuple[dict[int, "Dim"]]:
        """What may vary between tiles, for `torch.export` and `torch.onnx.export`; T, h, w = 1 are served as well."""
        latents, height, width = _tile_dims()
        return ({2: latents, 3: height, 4: width},)


def _tile_dims() -> tuple["Dim", "Dim", "Dim"]:
    """Latent frames, height and width of a tile as symbols of an export."""
    from torch.export import Dim

    return Dim("t", min=1, max=MAX_TILE_LATENTS), Dim("h", min=1, max=1024), Dim("w", min=1, max=1024)
