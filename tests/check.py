"""The one command a change must pass before its tests: lint, format, types and policy. `python -m tests.check`.

Runs every step even after one fails, so that one run tells everything; exits 1 if any failed. It knows the tools and
the directories, not the rules: those stand in pyproject.toml and tests/policy.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TYPED = ("vino_rt", "kernels", "export", "bench", "tests")
STEPS = {
    "lint": ("ruff", "check", "."),
    "format": ("ruff", "format", "--check", "."),
    "types": ("mypy", "--strict", *TYPED),
    "policy": ("pytest", "-q", "tests/policy"),
}


def main() -> int:
    """Run all steps in the checkout with this interpreter's tools; 0 when all passed, else 1."""
    failed = []
    for name, command in STEPS.items():
        print(f"-- {name}: {' '.join(command)}", flush=True)
        if subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=False).returncode:
            failed.append(name)
    print(f"check: {', '.join(failed)} failed" if failed else "check: all passed", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
