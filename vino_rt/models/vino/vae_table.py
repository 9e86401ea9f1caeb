"""Names and shapes of the autoencoder's weights, computed without building its modules, which take seconds to import.

Opening engines and importing checkpoints need only these tables. A test compares them with the modules.
"""

from collections.abc import Iterator

from vino_rt.models.vino.vae_config import SPATIAL_LEVELS, TEMPORAL_LEVELS, VaeConfig

Shape = tuple[int, ...]
Entry = tuple[str, Shape]


def encoder_table(config: VaeConfig) -> dict[str, Shape]:
    """Names and shapes of the weights of `VaeEncoder`."""
    widths, moments = config.block_out_channels, 2 * config.latent_channels
    entries = [
        *_conv("encoder.conv_in.conv", widths[0], config.in_channels, 3),
        *_levels("encoder.down_blocks", "downsamplers", widths, config.layers_per_block),
        *_ends("encoder", config, widths[-1], widths[-1], moments),
        *_conv("quant_conv", moments, moments, 1),
    ]
    return dict(entries)


def decoder_table(config: VaeConfig) -> dict[str, Shape]:
    """Names and shapes of the weights of `VaeDecoder`."""
    widths = config.block_out_channels[::-1]
    entries = [
        *_conv("post_quant_conv", config.latent_channels, config.latent_channels, 1),
        *_conv("decoder.conv_in.conv", widths[0], config.latent_channels, 3),
        *_levels("decoder.up_blocks", "upsamplers", widths, config.layers_per_block + 1),
        *_ends("decoder", config, widths[0], widths[-1], config.out_channels),
    ]
    return dict(entries)


def _levels(prefix: str, sampler: str, widths: tuple[int, ...], layers: int) -> Iterator[Entry]:
    entering = widths[0]
    for level, width in enumerate(widths):
        for layer in range(layers):
            yield from _residual(f"{prefix}.{level}.resnets.{layer}", width, entering)
            entering = width
        if level < SPATIAL_LEVELS or len(widths) - 1 - TEMPORAL_LEVELS <= level < len(widths) - 1:
            yield from _conv(f"{prefix}.{level}.{sampler}.0.conv.conv", width, width, 3)


def _ends(prefix: str, config: VaeConfig, middle: int, last: int, out: int) -> Iterator[Entry]:
    """The middle block of `middle` channels, and the output layers that map the `last` level's channels to `out`."""
    for layer in range(2):
        yield from _residual(f"{prefix}.mid_block.resnets.{layer}", middle, middle)
    if config.mid_block_add_attention:
        attention = f"{prefix}.mid_block.attentions.0"
        yield from _norm(f"{attention}.group_norm", middle)
        for name in ("to_q", "to_k", "to_v", "to_out.0"):
            yield from ((f"{attention}.{name}.weight", (middle, middle)), (f"{attention}.{name}.bias", (middle,)))
    yield from _norm(f"{prefix}.conv_norm_out", last)
    yield from _conv(f"{prefix}.conv_out.conv", out, last, 3)


def _residual(name: str, out: int, entering: int) -> Iterator[Entry]:
    yield from _norm(f"{name}.norm1", entering)
    yield from _conv(f"{name}.conv1.conv", out, entering, 3)
    yield from _norm(f"{name}.norm2", out)
    yield from _conv(f"{name}.conv2.conv", out, out, 3)
    if entering != out:
        yield from _conv(f"{name}.conv_shortcut.conv", out, entering, 1)


def _norm(name: str, channels: int) -> tuple[Entry, ...]:
    return (f"{name}.weight", (channels,)), (f"{name}.bias", (channels,))


def _conv(name: str, out: int, entering: int, size: int) -> tuple[Entry, ...]:
    return (f"{name}.weight", (out, entering, size, size, size)), (f"{name}.bias", (out,))
