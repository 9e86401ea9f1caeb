"""What decoders and samplers do to pictures, for tests of the judge: blur, noise, a shift of colours."""

import numpy as np

from vino_rt.world.judge.shapes import blur


def degraded(frames: np.ndarray, rng: np.random.Generator, *, sigma: float, noise: float, shift: float) -> np.ndarray:
    """Frames uint8 [F, H, W, 3] blurred by `sigma` pixels, channels moved by up to `shift`, with Gaussian noise."""
    soft = np.stack([blur(frame.astype(np.float32), sigma) for frame in frames])
    moved = soft + rng.uniform(-shift, shift, 3) + rng.normal(0, noise, soft.shape)
    return np.clip(np.rint(moved), 0, 255).astype(np.uint8)
