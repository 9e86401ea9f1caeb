"""Who may import whom: the directions of the house, and which file owns which library.

It knows the names of packages and libraries; it never imports one.
"""

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from tests.policy.source import SHIPPED, Finding, Function, Source, dotted

# Where a library may be imported from within vino_rt: files whose path starts so; nobody else, not even lazily.
OWNERS = {
    "onnxruntime": ("vino_rt/backends/onnxruntime",),
    "tensorrt": ("vino_rt/backends/tensorrt",),
    "torch_tensorrt": ("vino_rt/backends/tensorrt",),
    "av": ("vino_rt/media",),
    "onnx": (),
    "onnxscript": (),
    "triton": (),
}
# Seconds to import: only inside the function that needs them.
SLOW = ("transformers", "diffusers")
EXPORT_DOOR = "vino_rt/build.py"
DATA_PATH = tuple(
    f"vino_rt/{name}.py" for name in ("request", "bucket", "conditioning", "plan", "schedule", "denoise", "decode")
)
BACKEND_NAMES = re.compile(r"\b(onnx(?:runtime)?|ort|tensorrt|trt|aotinductor|aoti|eager|cuda_graph)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Import:
    """One imported name, absolute; `lazy` inside a function, `typing` when only the type checker sees it."""

    name: str
    line: int
    lazy: bool
    typing: bool

    @property
    def top(self) -> str:
        """The top-level package."""
        return self.name.partition(".")[0]

    def within(self, *packages: str) -> bool:
        """Whether the name is one of these dotted packages or lies in one."""
        return any(self.name == package or self.name.startswith(f"{package}.") for package in packages)


def imports(source: Source) -> Iterator[Import]:
    """Every import of a file, `importlib.import_module` with a literal name included."""
    yield from _imports_below(source.tree, _package(source.path), lazy=False, typing=False)


def _package(path: str) -> str:
    inside = path.removeprefix("kernels/").removeprefix("export/")
    return inside.rpartition("/")[0].replace("/", ".")


def _imports_below(node: ast.AST, package: str, *, lazy: bool, typing: bool) -> Iterator[Import]:
    for name in _imported_names(node, package):
        yield Import(name, getattr(node, "lineno", 1), lazy, typing)
    lazy = lazy or isinstance(node, Function | ast.Lambda)
    for child in ast.iter_child_nodes(node):
        guarded = isinstance(node, ast.If) and child in node.body and dotted(node.test).endswith("TYPE_CHECKING")
        yield from _imports_below(child, package, lazy=lazy, typing=typing or guarded)


def _imported_names(node: ast.AST, package: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            parents = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*parents, *([node.module] if node.module else [])])
        yield from (f"{base}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Call) and dotted(node.func) in ("importlib.import_module", "import_module", "__import__"):
        argument = node.args[0] if node.args else None
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
            yield argument.value


def directions(source: Source) -> Iterator[Finding]:
    """kernels -> torch, triton, cuda; vino_rt -> vino_kernels; vino_export -> vino_rt; nothing -> bench, tests."""
    for item in imports(source):
        if source.path.startswith(SHIPPED) and item.top in ("bench", "tests"):
            yield source.at(item.line, f"shipped code imports {item.top}")
        elif source.path.startswith("kernels/"):
            if item.top not in {"torch", "triton", "cuda", "vino_kernels", *sys.stdlib_module_names}:
                told = f"vino_kernels imports {item.top}; it may import torch, triton and CUDA's bindings only"
                yield source.at(item.line, told)
        elif source.path.startswith("vino_rt/") and item.top == "vino_export":
            if source.path != EXPORT_DOOR:
                yield source.at(item.line, f"vino_export may be imported by {EXPORT_DOOR} only")
            elif not item.lazy:
                yield source.at(item.line, "vino_export must be imported inside the function that builds")


def library_owners(source: Source) -> Iterator[Finding]:
    """A library of one backend or codec appears in the file that owns it, nowhere else in vino_rt."""
    if not source.path.startswith("vino_rt/"):
        return
    for item in imports(source):
        owners = OWNERS.get(item.top)
        if owners is not None and not (owners and source.path.startswith(owners)):
            yield source.at(item.line, f"{item.top} belongs to {' or '.join(owners) or 'no file of vino_rt'}")


def slow_imports(source: Source) -> Iterator[Finding]:
    """Libraries that take seconds to import are imported by the function that needs them."""
    if not source.path.startswith("vino_rt/"):
        return
    for item in imports(source):
        if item.top in SLOW and not (item.lazy or item.typing):
            yield source.at(item.line, f"{item.top} takes seconds to import: import it inside the function")


def layers(source: Source) -> Iterator[Finding]:
    """The request holds no tensors, models know no runtime, the path of the data knows no backend but the protocol."""
    for item in imports(source):
        if source.path == "vino_rt/request.py" and item.top == "torch":
            yield source.at(item.line, f"a request holds no tensors, yet imports {item.top}")
        model = source.path.startswith("vino_rt/models/")
        if model and item.within("vino_rt.runtime", "vino_rt.cli", "vino_rt.denoise"):
            yield source.at(item.line, f"a model imports {item.name}, which uses models")
        backend = item.within("vino_rt.backends") and not item.within("vino_rt.backends.base")
        if backend and (model or source.path in DATA_PATH):
            yield source.at(item.line, f"{item.name} is a backend; only vino_rt.backends.base is known here")


def backend_names(source: Source) -> Iterator[Finding]:
    """The step loop, the plan and the schedule do not even mention a backend."""
    if source.path in ("vino_rt/denoise.py", "vino_rt/plan.py", "vino_rt/schedule.py"):
        for number, line in enumerate(source.text.splitlines(), 1):
            if found := BACKEND_NAMES.search(line):
                yield source.at(number, f"names the backend {found[0]!r}")
