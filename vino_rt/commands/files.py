"""Checks of `vino-rt generate` before any work: can the references be read and the outputs be written?"""

import os
from pathlib import Path

from vino_rt.errors import InputError, OutputError
from vino_rt.request import Request


def check_files(request: Request, output: Path, *, overwrite: bool) -> None:
    """Raise MediaError or InputError for an unusable reference, OutputError for a path that cannot be written.

    For pictures only the header is read. A video is opened only if the output is a GIF, whose frame rate is limited.
    """
    from vino_rt.media import open_image, open_media
    from vino_rt.media_video import probe_video
    from vino_rt.media_write import MAX_GIF_FPS, check_output

    if output.parent.exists():
        check_output(output, overwrite=overwrite)
    for reference in request.references:
        if reference.path is not None:
            with open_media(reference.path) as handle:
                if reference.kind == "image":
                    with open_image(reference.path, handle):
                        pass
    video = request.video
    if video is not None and video.path is not None and output.suffix.lower() == ".gif":
        fps = probe_video(video.path).fps
        if fps is not None and fps > MAX_GIF_FPS:
            raise InputError(
                f"{video.path} runs at {fps:g} frames per second, a GIF at {MAX_GIF_FPS:g} at most; name a .mp4"
            )


def check_directory(path: Path) -> None:
    """Raise OutputError for an output directory that is a file or cannot be created; nothing is created yet."""
    try:
        existing = next(parent for parent in (path, *path.absolute().parents) if parent.is_symlink() or parent.exists())
    except OSError as error:
        raise OutputError(f"{path} cannot be made ({error.strerror}); choose another directory") from error
    if not existing.is_dir():
        raise OutputError(f"{existing} is a file; with --tasks, -o names a directory")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise OutputError(f"the directory {existing} is not writable; choose another one")
