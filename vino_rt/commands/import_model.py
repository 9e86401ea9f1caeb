"""`vino-rt import`: convert the released files into one model directory."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from vino_rt.commands.base import Options, parse_size
from vino_rt.commands.report import Reporter


@dataclass(frozen=True, kw_only=True)
class ImportOptions(Options):
    """Options of `import`."""

    vino: Annotated[Path, typer.Option(help="VINO checkpoint: a .ckpt or .safetensors file.")]
    hunyuan: Annotated[Path, typer.Option(help="HunyuanVideo directory with transformer/config.json and vae/.")]
    qwen: Annotated[Path, typer.Option(help="Qwen3-VL directory.")]
    output: Annotated[Path, typer.Option("--output", "-o", help="Model directory to write.")]
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing model directory.")] = False
    area: Annotated[int | None, typer.Option(min=1, help="Pixels of a frame (default: the release's).")] = None
    default_size: Annotated[
        str | None, typer.Option(metavar="WxH", help="Size of requests that name none (default: the release's).")
    ] = None


def run(options: ImportOptions, reporter: Reporter) -> None:
    """Turn the released VINO checkpoint, HunyuanVideo and Qwen3-VL into one model directory.

    Every missing or unexpected tensor is an error that names it. VINO's released weights are CC BY-NC 4.0.

    Example: vino-rt import --vino vino.safetensors --hunyuan HunyuanVideo --qwen Qwen3-VL-4B -o vino
    """
    size = parse_size(options.default_size)

    from vino_rt.models.vino.checkpoint import import_release

    with reporter.bars() as show:
        model = import_release(
            options.vino,
            options.hunyuan,
            options.qwen,
            options.output,
            on_progress=reporter.on_bytes(show, "tensor"),
            overwrite=options.overwrite,
            area=options.area,
            default_size=size,
        )
    reporter.event("result", path=str(model.path), weights_hash=model.weights_hash)
    command = shlex.join(["vino-rt", "build", "--model", str(model.path)])
    reporter.say(f"{model.path}: {model.settings.name}; next: {command}")
