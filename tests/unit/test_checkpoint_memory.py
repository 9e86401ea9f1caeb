"""The import holds one tensor at a time: its memory does not follow the size of the checkpoint."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vino_rt.models.vino.config import TransformerConfig
from vino_rt.models.vino.mmdit import MMDiT

HUNYUAN = "HunyuanVideo-tiny"
# The peak of the process's own address space, not getrusage: that one is inherited from the process that started it.
MEASURE = """
import sys
from pathlib import Path
from vino_rt.models.vino.checkpoint import import_release
def run(vino, hunyuan, out):
    import_release(Path(vino), Path(hunyuan), Path(sys.argv[1]) / "Qwen3-VL-tiny", Path(out), area=4096)
def memory(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
run(sys.argv[1] + "/vino.safetensors", sys.argv[1] + "/HunyuanVideo-tiny", sys.argv[4] + ".small")
before = memory("VmRSS:")
run(sys.argv[2], sys.argv[3], sys.argv[4])
print(memory("VmHWM:") - before)
"""


def big_release(release: Path, directory: Path) -> dict[str, Tensor]:
    """The tiny release with a transformer of 600 MB; zeros take no memory here, but all of it on disk."""
    shutil.copytree(release / HUNYUAN, directory / HUNYUAN)
    config = directory / HUNYUAN / "transformer" / "config.json"
    sizes: dict[str, Any] = {
        "num_attention_heads": 12,
        "attention_head_dim": 64,
        "num_layers": 8,
        "num_single_layers": 16,
    }
    sizes["rope_axes_dim"] = [16, 24, 24]
    config.write_text(json.dumps({**json.loads(config.read_text()), **sizes}))
    with torch.device("meta"):
        module = MMDiT(TransformerConfig.from_json(json.loads(config.read_text())))
    tensors = {f"transformer.{n}": torch.zeros(t.shape, dtype=torch.bfloat16) for n, t in module.state_dict().items()}
    branch = "mm_encoder.connector_vae_branch.mlp"
    for name, shape in (("0.weight", (3072, 32)), ("0.bias", (3072,)), ("2.weight", (768, 3072)), ("2.bias", (768,))):
        tensors[f"{branch}.{name}"] = torch.zeros(shape, dtype=torch.bfloat16)
    tiny = load_file(release / "vino.safetensors")
    rest = {name: tensor for name, tensor in tiny.items() if name.startswith("mm_encoder.") and name not in tensors}
    return {**tensors, **rest}


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_memory_does_not_follow_the_checkpoint(tiny_release: Path, tmp_path: Path, suffix: str) -> None:
    """Beyond what an import of the tiny release takes: at most one remap window and a few tensors."""
    tensors = big_release(tiny_release, tmp_path)
    file = tmp_path / f"vino.{suffix}"
    torch.save(tensors, file) if suffix == "ckpt" else save_file(tensors, file)
    size = sum(tensor.nbytes for tensor in tensors.values())
    assert size > 600_000_000
    arguments = [str(path) for path in (tiny_release, file, tmp_path / HUNYUAN, tmp_path / "out")]
    command = [sys.executable, "-c", MEASURE, *arguments]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    file.unlink()
    shutil.rmtree(tmp_path / "out")
    growth = int(done.stdout)
    assert growth < 200_000_000 < size / 3
