"""NVIDIA's own Python bindings of TensorRT without TensorRT: the wheel, unpacked, over libraries that return nothing.

The wheel holds one native module, which takes nine plain functions from three libraries; all else it reaches through
objects that those return. Stubs that return null are enough to import it: types, enumerations, signatures and the
layer of plugins in Python are the real ones, and whatever needs the library fails instead of pretending.
"""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

WHEELS = "VINO_TENSORRT_WHEELS"
"""Environment variable that names the directory of wheels."""
FAMILIES = ("10.16", "11.4")
"""The oldest and the newest API that is checked; a wheel of each."""
LIBRARIES = ("libnvinfer", "libnvinfer_plugin", "libnvonnxparser")
FUNCTIONS = (
    "createInferBuilder_INTERNAL", "createInferRuntime_INTERNAL", "createInferRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL", "createNvOnnxParserRefitter_INTERNAL", "getPluginRegistry",
    "getBuilderPluginRegistry", "getNvOnnxParserVersion", "initLibNvInferPlugins",
)  # fmt: skip
LOADER = """
import ctypes, pathlib
for path in sorted(pathlib.Path(__file__).parent.glob("*.so.*")):
    ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
"""
FRONT = """
from tensorrt_bindings import *
from tensorrt_bindings import __version__
"""


def absent(family: str) -> str | None:
    """Why the bindings of a family cannot be made here; None where they can."""
    if find_wheel(family) is None:
        python = f"cp{sys.version_info.major}{sys.version_info.minor}"
        return (
            f"no wheel of tensorrt-cu13-bindings {family} for {python} in the directory that {WHEELS} names; get it "
            f"with: pip download --no-deps -d DIR 'tensorrt-cu13-bindings=={family}.*'"
        )
    return None if _compiler() else "no C compiler for the stub libraries"


def find_wheel(family: str) -> Path | None:
    """The wheel of a family for this Python."""
    folder = os.environ.get(WHEELS)
    pattern = f"tensorrt_cu13_bindings-{family}.*-cp{sys.version_info.major}{sys.version_info.minor}-*.whl"
    return next(iter(sorted(Path(folder).glob(pattern))), None) if folder else None


def make_site(family: str, folder: Path) -> Path:
    """A directory for PYTHONPATH from which `import tensorrt` gives the real bindings over stubs."""
    wheel, compiler = find_wheel(family), _compiler()
    assert wheel is not None
    assert compiler is not None
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    stubs = folder / "tensorrt_libs"
    stubs.mkdir()
    source = folder / "stubs.c"
    source.write_text("".join(f"long {name}(void) {{ return 0; }}\n" for name in FUNCTIONS))
    major = family.partition(".")[0]
    for library in LIBRARIES:
        name = f"{library}.so.{major}"
        command = [compiler, "-shared", "-fPIC", "-o", str(stubs / name), f"-Wl,-soname,{name}", str(source)]
        subprocess.run(command, check=True, capture_output=True)
    (stubs / "__init__.py").write_text(LOADER)
    plugin = folder / "tensorrt" / "plugin"
    plugin.mkdir(parents=True)
    (folder / "tensorrt" / "__init__.py").write_text(FRONT)
    for file in (folder / "tensorrt_bindings" / "plugin").glob("*.py"):
        module = "" if file.stem == "__init__" else f".{file.stem}"
        (plugin / file.name).write_text(f"from tensorrt_bindings.plugin{module} import *\n")
    return folder


def _compiler() -> str | None:
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
