"""What requests bring to the engines lies within the sizes that plans are built for, in every bucket that is shipped.

Engines of a small model stand in: they compute nothing and look at shapes; rows are those of the released model.
"""

from collections.abc import Mapping
from functools import partial

import pytest
import torch
from torch import Tensor

from tests.tensorrt.small import UNIT, small_config, small_kinds
from vino_export.tensorrt.profiles import profiles_of, shapes
from vino_rt.backends.base import CPU, Engine, Kind
from vino_rt.backends.recipe import load_recipe
from vino_rt.bucket import Bucket, Need, choose, patch_grid
from vino_rt.conditioning import condition, join
from vino_rt.decode import decode_latents, encode_video
from vino_rt.models.vino.prefill import VlmStates
from vino_rt.models.vino.prepare import MAX_ASPECT, reference_box
from vino_rt.models.vino.transformer import Transformer
from vino_rt.plan import BOUNDARY_ROWS, BranchShape, Grid, pack, volume
from vino_rt.request import MAX_STEPS
from vino_rt.schedule import make_schedule
from vino_rt.tiling import Tiling

RECIPES = ("tensorrt", "torch-tensorrt", "onnxruntime-tensorrt", "tensorrt-mini")
BUCKETS = tuple(dict.fromkeys(bucket for name in RECIPES for bucket in load_recipe(name).buckets))
AREA = 480 * 848
"""Pixels that the released model scales a reference to."""
RATIO = 8
"""Pixels along the side of a latent."""
ON_META = torch.device("meta")
"""For the autoencoder, whose pictures would be gigabytes of zeros."""


class Looking(Engine):
    """Gives zeros, and fails for inputs that no profile of its kind takes."""

    def __init__(self, kind: Kind, device: torch.device) -> None:
        super().__init__(kind.spec, device)
        self._profiles = profiles_of(kind, BUCKETS, UNIT, AREA)

    def _run(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        given = {name: tuple(tensor.shape) for name, tensor in inputs.items()}
        assert any(self._takes(number, given) for number in range(len(self._profiles))), f"{self.spec.kind}: {given}"
        sizes = self.spec.check(inputs, self.device)
        if self.spec.kind == "vae_decode":
            sizes |= {"F": 4 * sizes["t"] - 3, "H": RATIO * sizes["h"], "W": RATIO * sizes["w"]}
        if self.spec.kind == "vae_encode":
            sizes |= {"t": sizes["F"] // 4 + 1, "h": sizes["H"] // RATIO, "w": sizes["W"] // RATIO}
        dims = [[sizes[dim] if isinstance(dim, str) else dim for dim in spec.dims] for spec in self.spec.outputs]
        return tuple(torch.zeros(shape, device=self.device) for shape in dims)

    def _takes(self, number: int, given: Mapping[str, tuple[int, ...]]) -> bool:
        ranges = [(given[spec.name], *shapes(spec, self._profiles[number])) for spec in self.spec.inputs]
        return all(
            a <= size <= b for sizes, least, _, most in ranges for size, a, b in zip(sizes, least, most, strict=True)
        )


@pytest.fixture(scope="module")
def engines() -> dict[str, list[Engine]]:
    """One engine for each layer of every kind."""
    found: dict[str, list[Engine]] = {}
    for name, kind in small_kinds().items():
        found[name] = [Looking(kind, ON_META if kind.part == "vae" else CPU) for _ in range(kind.layers)]
    return found


def connect(engine: Engine, rows: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    """Through the connector, as the runtime does."""
    text, boundary = engine.run(**engine.fit(states=rows, boundary_states=ends))
    return text, boundary


def second_size(engine: Engine) -> int:
    """Width of an engine's first input, or its channels."""
    return int(engine.spec.inputs[0].dims[1])


def run(bucket: Bucket, references: tuple[Grid, ...], engines: Mapping[str, list[Engine]]) -> None:
    """Everything that a request calls, with prompts as long as the bucket has room for."""
    (connector,), config = engines["connector"], small_config()
    shown = tuple(range(len(references)))
    states = VlmStates(torch.zeros(bucket.text_tokens, second_size(connector)), shown, shown)
    seen = condition(states, len(shown), partial(connect, connector))
    branches = [BranchShape(seen.references, bucket.text_tokens)] * bucket.branches
    settings = type("Settings", (), {"unit": UNIT})()
    lengths = choose(Need(bucket.clip, references, tuple(branches)), BUCKETS, settings)
    target = patch_grid(bucket.clip, UNIT)
    plan = pack(target, references, branches, **vars(lengths))
    transformer = Transformer(config, engines)
    modulation = transformer.modulation(make_schedule(3, 7.0))
    rows = torch.zeros(sum(map(volume, references)), config.patch_values)
    text, boundary = join([seen] * bucket.branches)
    latents = torch.zeros(volume(target), config.patch_values)
    bound = transformer.bind(plan, rows, boundary, text, modulation)
    assert bound.velocity(torch.tensor([1]), latents).shape[:2] == (bucket.branches, len(latents))


@pytest.mark.parametrize("branches", [1, 2, 3])
def test_prompts_alone(branches: int, engines: dict[str, list[Engine]]) -> None:
    for bucket in BUCKETS:
        if bucket.branches == branches:
            run(bucket, (), engines)


def test_references_that_fill_their_room(engines: dict[str, list[Engine]]) -> None:
    for bucket in BUCKETS:
        if bucket.references:
            run(bucket, ((1, 1, bucket.references - BOUNDARY_ROWS),), engines)


def test_a_short_prompt_without_references(engines: dict[str, list[Engine]]) -> None:
    (connector,) = engines["connector"]
    text, boundary = connect(connector, *(torch.zeros(count, second_size(connector)) for count in (5, 0)))
    assert (len(text), len(boundary)) == (5, 0)


def test_pictures_and_clips_of_every_bucket(engines: dict[str, list[Engine]]) -> None:
    (decoder,) = engines["vae_decode"]
    for clip in sorted({bucket.clip for bucket in BUCKETS}):
        frames, height, width = clip
        sizes = (frames - 1) // 4 + 1, height // RATIO, width // RATIO
        latents = torch.zeros(1, second_size(decoder), *sizes, device=ON_META)
        for tiling in (Tiling(), Tiling(spatial=True)):
            pixels = decode_latents(latents, lambda tile: decoder.run(latents=tile)[0], tiling, 1.0)
            assert pixels.shape[2:] == clip


def encode(frames: int, height: int, width: int, engines: Mapping[str, list[Engine]]) -> None:
    """A reference as the runtime encodes it, whole and in tiles."""
    (encoder,) = engines["vae_encode"]
    pixels = torch.zeros(1, 3, frames, height, width, device=ON_META)
    for tiling in (Tiling(), Tiling(spatial=True)):
        moments = encode_video(pixels, lambda tile: encoder.run(pixels=tile)[0], tiling)
        assert moments.shape[2:] == ((frames - 1) // 4 + 1, height // RATIO, width // RATIO)


def test_references_as_large_as_what_is_made(engines: dict[str, list[Engine]]) -> None:
    for clip in sorted({bucket.clip for bucket in BUCKETS}):
        encode(*clip, engines)


@pytest.mark.parametrize("aspect", [1, 4 / 3, 1.5, 16 / 9, 2, 19.5 / 9, 4, 4.1, 16, 33, 64, 127.2, MAX_ASPECT])
def test_reference_pictures_of_any_shape(aspect: float, engines: dict[str, list[Engine]]) -> None:
    for width, height in ((round(1000 * aspect), 1000), (1000, round(1000 * aspect))):
        box = reference_box("a picture", width, height, AREA, UNIT)
        encode(1, box.height, box.width, engines)


def test_a_schedule_of_any_length(engines: dict[str, list[Engine]]) -> None:
    transformer = Transformer(small_config(), engines)
    for steps in (1, MAX_STEPS):
        assert len(transformer.modulation(make_schedule(steps, 7.0)).refiner) == steps
