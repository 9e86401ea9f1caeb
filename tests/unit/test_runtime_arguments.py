"""What a runtime refuses of its caller: arguments of another type, and calls from a forked process."""

import os
from typing import Any

import pytest

from tests.unit.models import Get, ask
from vino_rt.errors import InputError, UsageError
from vino_rt.runtime import Runtime


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": 3}, "model is 3; give the path of a directory, or None"),
        ({"store": 3}, "store is 3; give the path of a directory, or None"),
        ({"recipe": None}, "recipe is None; give the name of a shipped recipe or the path of a .toml file"),
    ],
)
def test_what_is_no_path_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Runtime.open(**given)


@pytest.mark.parametrize(
    ("request_given", "options", "message"),
    [
        ("x", {}, "request is 'x'; give a Request"),
        (ask(), {"cancel": True}, "cancel is True; give a threading.Event, or None"),
        (ask(), {"cancel": False}, "cancel is False; give a threading.Event"),
        (ask(), {"on_step": 3}, "on_step is 3; give a function"),
    ],
)
def test_arguments_of_another_type_are_refused(
    eager: Runtime, request_given: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        eager.generate(request_given, **options)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_is_refused_and_does_not_hang(get: Get) -> None:
    runtime = get("eager")
    runtime.generate(ask())
    child = os.fork()
    if not child:
        code = 1
        try:
            runtime.generate(ask())
        except UsageError as error:
            code = 0 if "is its fork" in str(error) else 2
        finally:
            # Nothing of the test runner may run in the child.
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert runtime.generate(ask()).frames.shape == (1, 48, 64, 3)
