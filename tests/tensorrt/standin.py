"""A stand-in for what only libnvinfer can make, checked against the signatures that NVIDIA's bindings publish.

Enumerations, `Dims`, loggers and monitors are the real ones. Builders, parsers, engines and contexts are `Object`s:
every attribute must exist in the real class, every assignment must be to a property that can be written, every call
must fit one of the signatures in the method's documentation, by count, name and type. It computes nothing; answers are
those a test gives, else the plainest value of the declared type. It proves that the API is used as it is, not that
anything works.
"""

import re
from typing import Any

MADE = ("Builder", "Runtime", "OnnxParser", "Refitter", "OnnxParserRefitter")
"""Classes that a caller constructs and that need the library."""
COMMA = re.compile(r",\s*(?![^\[(<]*[\])>])")
SIGNATURE = re.compile(r"^(?:\d+\. )?(\w+)\((.*)\)(?: -> (.+))?$", re.MULTILINE)
WHOLE = ("typing.SupportsInt", "typing.SupportsInt | typing.SupportsIndex", "int")
ALIASES = {"IParserError": "ParserError"}
"""Classes that signatures call by the name of the C++ interface."""
PLAIN = {"bool": True, "int": 0, "float": 0.0, "str": "", "None": None}


class Misuse(TypeError):
    """A call or an assignment that the real bindings would refuse."""


class StandIn:
    """In the place of the module `tensorrt`; `answers` by (class, member): a value, or what makes one of a call."""

    def __init__(self, real: Any, answers: dict[tuple[str, str], Any] | None = None) -> None:
        self.real, self.answers = real, answers or {}
        self.calls: list[tuple[str, str, dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        if name in MADE:
            return lambda *given, **named: self.construct(name, given, named)
        return getattr(self.real, name)

    def named(self, member: str) -> list[dict[str, Any]]:
        """Arguments of every call of a method, or values assigned to a property."""
        return [given for _, name, given in self.calls if name == member]

    def construct(self, cls: str, given: tuple[Any, ...], named: dict[str, Any]) -> "Object":
        """An object, after checking the constructor's arguments."""
        self.call(Object(self, cls), cls, "__init__", given, named)
        return Object(self, cls)

    def call(self, owner: "Object", cls: str, name: str, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Check a call against every signature, note it, and answer."""
        wrong = []
        for parameters, returned in signatures(getattr(getattr(self.real, cls), name)):
            try:
                bound = self._bind(parameters, given, named)
            except Misuse as error:
                wrong.append(str(error))
                continue
            self.calls.append((cls, name, bound))
            return self.answer(owner, cls, name, returned, bound)
        raise Misuse(f"{cls}.{name}{given}{named}: " + " / ".join(wrong))

    def _bind(self, parameters: list[tuple[str, str, bool]], given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        names = [name for name, _, _ in parameters]
        if len(given) > len(names) or set(named) - set(names[len(given) :]):
            raise Misuse(f"{len(given)} arguments and {list(named)} for {names}")
        bound = dict(zip(names, given, strict=False)) | named
        for name, kind, optional in parameters:
            if name not in bound and not optional:
                raise Misuse(f"{name} is missing")
            if name in bound and not (self.fits(bound[name], kind) or (optional and bound[name] is None)):
                raise Misuse(f"{name} is {bound[name]!r}, must be {kind}")
        return bound

    def fits(self, value: Any, kind: str) -> bool:
        """Whether a value is of a type as the bindings write it."""
        kind = kind.replace("tensorrt_bindings.tensorrt.", "").strip()
        if kind in WHOLE:
            return isinstance(value, int) and not isinstance(value, bool)
        if kind in ("bool", "str", "tuple", "list", "bytes"):
            return type(value).__name__ == kind
        if "Buffer" in kind:
            return isinstance(value, bytes | bytearray | memoryview | Object)
        if kind == "typing.SupportsFloat":
            return isinstance(value, int | float)
        if isinstance(value, Object):
            return bool(value.cls == kind)
        wanted = getattr(self.real, kind, None)
        # A tuple of whole numbers becomes Dims by itself.
        if kind == "Dims" and isinstance(value, tuple):
            return all(type(size) is int for size in value)
        return isinstance(wanted, type) and isinstance(value, wanted)

    def answer(self, owner: "Object", cls: str, name: str, returned: str, bound: dict[str, Any]) -> Any:
        """What a test said, or the plainest value of a type."""
        if (cls, name) in self.answers:
            answer = self.answers[cls, name]
            return answer(owner, **bound) if callable(answer) else answer
        returned = re.sub(r"(tensorrt_bindings\.tensorrt|nvinfer1::v_1_0|nvinfer1|nvonnxparser)(\.|::)", "", returned)
        if returned in PLAIN:
            return PLAIN[returned]
        return [] if returned.lower().startswith("list[") else Object(self, ALIASES.get(returned, returned))


class Object:
    """One object of a real class."""

    def __init__(self, library: StandIn, cls: str) -> None:
        self.__dict__.update(library=library, cls=cls, state={})

    def __getattr__(self, name: str) -> Any:
        member = _member(self.library, self.cls, name)
        if not isinstance(member, property):
            return lambda *given, **named: self.library.call(self, self.cls, name, given, named)
        if name in self.state:
            return self.state[name]
        documented = re.findall(r"-> (.+)$", (member.fget.__doc__ or "") if member.fget else "", re.MULTILINE)
        return self.library.answer(self, self.cls, name, documented[0] if documented else "None", {})

    def __setattr__(self, name: str, value: Any) -> None:
        member = _member(self.library, self.cls, name)
        if not isinstance(member, property) or member.fset is None:
            raise Misuse(f"{self.cls}.{name} cannot be assigned")
        documented = re.findall(r"^\(\w+: [^,]+, \w+: (.+)\) ->", member.fset.__doc__ or "", re.MULTILINE)
        if not any(self.library.fits(value, kind) for kind in documented):
            raise Misuse(f"{self.cls}.{name} = {value!r}, must be {documented}")
        self.library.calls.append((self.cls, name, {"value": value}))
        self.state[name] = value

    def __bool__(self) -> bool:
        return bool(self.library.answers.get((self.cls, "__bool__"), True))

    def __bytes__(self) -> bytes:
        return bytes(self.library.answers.get((self.cls, "__bytes__"), b"plan"))


def _member(library: StandIn, cls: str, name: str) -> Any:
    real = getattr(library.real, cls, None)
    if real is None or not hasattr(real, name):
        raise Misuse(f"tensorrt {library.real.__version__} has no {cls}.{name}")
    return getattr(real, name)


def signatures(method: Any) -> list[tuple[list[tuple[str, str, bool]], str]]:
    """(name, type, whether it may be left out) of each parameter, and the type of the result, of every overload."""
    found = []
    for _, listed, returned in SIGNATURE.findall(method.__doc__ or ""):
        parameters = []
        for part in filter(None, COMMA.split(listed)):
            name, _, rest = part.partition(":")
            kind, equals, _ = rest.partition(" = ")
            parameters.append((name.strip(), kind.strip(), bool(equals)))
        if parameters and parameters[0][0] == "self":
            found.append((parameters[1:], (returned or "None").strip()))
    return found
