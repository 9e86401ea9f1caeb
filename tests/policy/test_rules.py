"""Each rule on code that breaks it and on code that looks alike and does not: a rule that cannot fail is worthless."""

from textwrap import dedent

import pytest

from tests.policy import ban_rules, import_rules, shape_rules, tree_rules
from tests.policy.source import Check, Finding, Source
from tests.policy.test_house import OWN, PYTHON_RULES, TEXT_RULES

LONG = "def long():\n" + "    call()\n" * 40
BODY = "\n".join(f"    step_{number} = call({number})" for number in range(11))
SLASH = "/"

BREAKS: list[tuple[Check, str, str]] = [
    (import_rules.directions, "kernels/vino_kernels/norm/ref.py", "import numpy"),
    (import_rules.directions, "kernels/vino_kernels/norm/ref.py", "from vino_rt import errors"),
    (import_rules.directions, "vino_rt/plan.py", "def f():\n    import vino_export.trace"),
    (import_rules.directions, "vino_rt/build.py", "from vino_export import build"),
    (import_rules.directions, "vino_rt/cli.py", "def f():\n    import bench.step"),
    (import_rules.directions, "export/vino_export/trace.py", "from tests import conftest"),
    (import_rules.library_owners, "vino_rt/runtime.py", "def f():\n    import onnxruntime"),
    (import_rules.library_owners, "vino_rt/runtime.py", "import importlib\nimportlib.import_module('tensorrt.tools')"),
    (import_rules.library_owners, "vino_rt/backends/onnxruntime.py", "import onnx"),
    (import_rules.library_owners, "vino_rt/conditioning.py", "from av import open"),
    (import_rules.slow_imports, "vino_rt/models/vino/vae.py", "from diffusers import AutoencoderKLHunyuanVideo"),
    (
        import_rules.slow_imports,
        "vino_rt/models/vino/vlm.py",
        "try:\n    import transformers.models\nfinally:\n    pass",
    ),
    (import_rules.layers, "vino_rt/request.py", "def f():\n    import torch"),
    (import_rules.layers, "vino_rt/models/vino/mmdit.py", "from ...backends import eager"),
    (import_rules.layers, "vino_rt/models/vino/mmdit.py", "from vino_rt import runtime"),
    (import_rules.layers, "vino_rt/denoise.py", "from .backends.eager import Eager"),
    (import_rules.backend_names, "vino_rt/denoise.py", "# on ONNXRuntime this is slow"),
    (shape_rules.file_size, "kernels/vino_kernels/norm/triton.py", "x = 1\n" * 301),
    (shape_rules.function_size, "tests/unit/test_plan.py", LONG),
    (
        shape_rules.function_size,
        "vino_rt/plan.py",
        "class C:\n" + "\n".join(f"    {line}" for line in LONG.split("\n")),
    ),
    (shape_rules.parameter_count, "vino_rt/plan.py", "def f(a, b, c, d, /, e, *, g, h, i, j): ..."),
    (shape_rules.parameter_count, "vino_rt/plan.py", "def f(a, b, c, d, e, g, h, *args, **kwargs): ..."),
    (shape_rules.module_docstring, "bench/step.py", "import sys"),
    (shape_rules.module_docstring, "vino_rt/models/__init__.py", ""),
    (shape_rules.module_docstring, "vino_rt/plan.py", '""" """'),
    (shape_rules.public_docstrings, "vino_rt/plan.py", "def pack(): ..."),
    (shape_rules.public_docstrings, "export/vino_export/a.py", 'class Plan:\n    """Yes."""\n    def pack(self): ...'),
    (shape_rules.public_docstrings, "kernels/vino_kernels/a.py", "if True:\n    class Plan: ..."),
    (ban_rules.prints, "kernels/vino_kernels/norm/triton.py", "print(1)"),
    (ban_rules.environment, "vino_rt/config.py", "import os\nx = os.environ['HOME']"),
    (ban_rules.environment, "vino_rt/config.py", "import os\nx = os.getenv('HOME')"),
    (ban_rules.environment, "export/vino_export/a.py", "from os import environ as e"),
    (ban_rules.code_from_data, "bench/step.py", "eval('1')"),
    (ban_rules.code_from_data, "tests/unit/test_a.py", "exec(text)"),
    (ban_rules.code_from_data, "vino_rt/a.py", "subprocess.run(line, shell=True)"),
    (ban_rules.code_from_data, "vino_rt/a.py", "os.system(line)"),
    (ban_rules.code_from_data, "vino_rt/a.py", "torch.load(path)"),
    (ban_rules.code_from_data, "vino_rt/a.py", "torch.load(path, weights_only=False)"),
    (ban_rules.unpickling, "vino_rt/a.py", "def f():\n    import pickle"),
    (ban_rules.unpickling, "vino_rt/a.py", "from pickle import UnpicklingError, loads"),
    (ban_rules.unpickling, "bench/a.py", "from joblib.externals import loky"),
    (ban_rules.broad_excepts, "vino_rt/a.py", "try:\n    f()\nexcept:\n    pass"),
    (ban_rules.broad_excepts, "tests/a.py", "try:\n    f()\nexcept (OSError, Exception) as e:\n    raise X from e"),
    (ban_rules.broad_excepts, "vino_rt/a.py", "with contextlib.suppress(BaseException):\n    f()"),
    (ban_rules.lenient_loads, "vino_rt/a.py", "model.load_state_dict(weights, strict=False)"),
    (ban_rules.lenient_loads, "vino_rt/a.py", "build().load_state_dict(weights, False)"),
    (ban_rules.hidden_state, "vino_rt/a.py", "def f():\n    global x\n    x = 1"),
    (ban_rules.hidden_state, "bench/a.py", "import sys\nsys.path.insert(0, '.')"),
    (ban_rules.foreign_errors, "vino_rt/a.py", "raise ValueError('no')"),
    (ban_rules.foreign_errors, "vino_rt/a.py", "raise RuntimeError"),
    (ban_rules.foreign_errors, "vino_rt/a.py", "try:\n    raise ValueError\nexcept KeyError:\n    pass"),
    (ban_rules.nowhere_names, "vino_rt/utils.py", ""),
    (ban_rules.nowhere_names, "tests/helpers/a.py", ""),
    (ban_rules.words, "README.md", "- TO" + "DO: write this"),
    (ban_rules.words, "vino_rt/a.py", "# fine  # FIX" + "ME"),
    (ban_rules.words, "bench/LOG.md", f"ran in {SLASH}work/main"),
    (ban_rules.words, "vino_rt/a.py", f"x = '{SLASH}root/.cache'"),
    (ban_rules.words, "CHANGELOG.md", f"see {SLASH}home/me/x"),
    (ban_rules.words, "README.md", "https://py" + "pi.org/simple"),
    (ban_rules.words, "constraints.txt", "--find-links https://download.py" + "torch.org/whl"),
]

KEEPS: list[tuple[Check, str, str]] = [
    (
        import_rules.directions,
        "kernels/vino_kernels/norm/__init__.py",
        "import functools, torch, triton\nfrom . import ref",
    ),
    (import_rules.directions, "vino_rt/build.py", "def f():\n    from vino_export import build"),
    (import_rules.directions, "export/vino_export/trace.py", "from vino_rt.models import vino"),
    (import_rules.directions, "tests/unit/test_a.py", "import vino_export, bench"),
    (import_rules.library_owners, "vino_rt/backends/onnxruntime.py", "import onnxruntime"),
    (import_rules.library_owners, "vino_rt/runtime.py", "from vino_rt.backends import onnxruntime"),
    (import_rules.library_owners, "vino_rt/backends/base.py", "from . import onnxruntime"),
    (import_rules.library_owners, "export/vino_export/verify.py", "import onnxruntime, onnx"),
    (import_rules.library_owners, "vino_rt/media.py", "import av"),
    (import_rules.slow_imports, "vino_rt/models/vino/vae.py", "class A:\n    def f(self):\n        import diffusers"),
    (
        import_rules.slow_imports,
        "vino_rt/a.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import diffusers",
    ),
    (import_rules.layers, "vino_rt/denoise.py", "from vino_rt.backends.base import Engine\nimport torch"),
    (import_rules.layers, "vino_rt/runtime.py", "from vino_rt.backends import eager"),
    (import_rules.layers, "vino_rt/models/vino/kinds.py", "from ...backends.base import EngineSpec"),
    (import_rules.backend_names, "vino_rt/denoise.py", "# sort by import; a reporter"),
    (import_rules.backend_names, "vino_rt/runtime.py", "# eager"),
    (shape_rules.file_size, "vino_rt/a.py", "x = 1\n" * 300),
    (shape_rules.function_size, "vino_rt/a.py", LONG.removesuffix("    call()\n")),
    (shape_rules.function_size, "kernels/vino_kernels/norm/triton.py", LONG),
    (shape_rules.parameter_count, "vino_rt/a.py", "class C:\n    def f(self, a, b, c, d, e, g, h, i): ..."),
    (shape_rules.parameter_count, "kernels/vino_kernels/a.py", "def f(a, b, c, d, e, g, h, i, j): ..."),
    (shape_rules.module_docstring, "vino_rt/a.py", '"""What it is."""'),
    (shape_rules.public_docstrings, "vino_rt/a.py", "def _f(): ...\nclass _C:\n    def g(self): ..."),
    (
        shape_rules.public_docstrings,
        "vino_rt/a.py",
        '@overload\ndef f(): ...\ndef f():\n    """Yes."""\n    def g(): ...',
    ),
    (shape_rules.public_docstrings, "bench/step.py", "def main(): ..."),
    (ban_rules.prints, "bench/step.py", "print(1)"),
    (ban_rules.prints, "vino_rt/cli.py", "console.print(1)"),
    (ban_rules.environment, "vino_rt/a.py", "import os\nos.replace(a, b)\nfrom os import fsync"),
    (ban_rules.environment, "tests/conftest.py", "import os\nos.environ"),
    (
        ban_rules.code_from_data,
        "vino_rt/a.py",
        "model.eval()\ntorch.load(path, weights_only=True)\nrun(args, shell=False)",
    ),
    (ban_rules.unpickling, "tests/unit/test_import.py", "import pickle"),
    (ban_rules.unpickling, "vino_rt/a.py", "from pickle import UnpicklingError"),
    (ban_rules.unpickling, "vino_rt/a.py", "from safetensors import torch"),
    (ban_rules.broad_excepts, "vino_rt/a.py", "try:\n    f()\nexcept BaseException:\n    undo()\n    raise"),
    (ban_rules.broad_excepts, "vino_rt/a.py", "try:\n    f()\nexcept (OSError, KeyError):\n    pass"),
    (ban_rules.lenient_loads, "vino_rt/a.py", "zip(a, b, strict=False)\ntorch.export.export(m, a, strict=False)"),
    (ban_rules.lenient_loads, "vino_rt/a.py", "model.load_state_dict(weights, strict=True)"),
    (ban_rules.hidden_state, "vino_rt/a.py", "import sys\nsys.platform"),
    (ban_rules.foreign_errors, "vino_rt/a.py", "raise InputError('no')\nassert x\nraise"),
    (ban_rules.foreign_errors, "vino_rt/a.py", "try:\n    raise ValueError\nexcept (KeyError, ValueError):\n    pass"),
    (import_rules.layers, "vino_rt/request.py", "import numpy"),
    (ban_rules.foreign_errors, "export/vino_export/a.py", "raise ValueError('no')"),
    (ban_rules.nowhere_names, "vino_rt/models/vino/common_rope.py", ""),
    (
        ban_rules.words,
        "README.md",
        "a workflow at https://example.org/home/page, ~/work, a/root/b, $HOME/work, todo lists",
    ),
]


def broken(rule: Check, path: str, text: str) -> list[Finding]:
    return list(rule(Source(path, text)))


@pytest.mark.parametrize(("rule", "path", "text"), BREAKS)
def test_finds(rule: Check, path: str, text: str) -> None:
    findings = broken(rule, path, text)
    assert len(findings) == 1, findings
    assert str(findings[0]).startswith(f"{path}:{findings[0].line}: ")
    assert 1 <= findings[0].line <= max(1, text.count("\n") + 1)


@pytest.mark.parametrize(("rule", "path", "text"), KEEPS)
def test_keeps_quiet(rule: Check, path: str, text: str) -> None:
    assert not broken(rule, path, text)


def test_every_rule_is_shown_to_fail_and_to_pass() -> None:
    rules = {*PYTHON_RULES, *TEXT_RULES}
    assert rules == {rule for rule, _, _ in BREAKS} == {rule for rule, _, _ in KEEPS}


def test_copied_functions() -> None:
    first = Source("vino_rt/a.py", f'def first():\n    """One."""\n{BODY}\n')
    same = Source("bench/b.py", f"def other(x):\n    # another comment\n{BODY}\n")
    short = Source("bench/c.py", "def third():\n" + "\n".join(BODY.split("\n")[:10]))
    changed = Source("bench/d.py", f"def fourth():\n{BODY.replace('call(3)', 'call(4)')}\n")
    assert [finding.path for finding in shape_rules.copied_functions([first, same, short, changed])] == ["bench/b.py"]
    assert not list(shape_rules.copied_functions([first, short, Source("bench/e.py", short.text), changed]))


def test_readme_commands() -> None:
    good = (
        "# vino_rt\n\nWhat it is.\n\n```\npip install . && vino-rt generate x -o x.png\npip install . && pytest\n```\n"
    )
    assert not list(tree_rules.readme_commands(Source("README.md", good)))
    late = Source("README.md", good.replace("What it is.", "\n" * 30))
    prose = Source("README.md", good.replace("```", ""))
    comment = Source("README.md", good.replace("pip install . && pytest", "# pytest"))
    assert [len(list(tree_rules.readme_commands(source))) for source in (late, prose, comment)] == [3, 3, 1]
    assert list(tree_rules.readme_commands(Source("README.md", "")))


def test_dependencies() -> None:
    text = dedent("""
        import json
        from PIL import Image
        from . import errors
        def f():
            import onnxruntime as ort, scipy.signal, vino_export
    """)
    found = tree_rules.third_party([Source("vino_rt/a.py", text), Source("tests/a.py", "import hypothesis")], OWN)
    assert found.keys() == {"PIL", "onnxruntime", "scipy"}
    project = {
        "dependencies": ["pillow>=11", "rich", "onnxscript"],
        "optional-dependencies": {"x": ["onnxruntime; sys_platform == 'linux'"], "dev": ["scipy"]},
    }
    assert [finding.line for finding in tree_rules.undeclared(project, found)] == [6]
    assert [finding.message.split()[1] for finding in tree_rules.unused(project, found)] == ["rich,"]
