"""The public names: one table of them, each with a docstring that mentions every parameter."""

import ast
import inspect
import re
import types
from pathlib import Path

import pytest

import context_diffusion as cd

STUB = ast.parse(Path(cd.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
OBJECTS = {name: getattr(cd, name) for name in cd.__all__}
CALLABLE = {name: one for name, one in OBJECTS.items() if not isinstance(one, types.ModuleType)}


def public_methods(kind: type) -> dict[str, object]:
    """What a class defines itself, without underscores, and its ``__call__``."""
    own = {name: getattr(kind, name) for name in vars(kind) if name == "__call__" or not name.startswith("_")}
    return {name: one for name, one in own.items() if inspect.isroutine(one)}


def parameters_of(one: object) -> list[inspect.Parameter]:
    return [p for p in inspect.signature(one).parameters.values() if p.name not in {"self", "cls"}]


def documented() -> dict[str, object]:
    """Each public function and class, and the methods whose parameters need words: those with more than one."""
    found = dict(CALLABLE)
    for name, kind in CALLABLE.items():
        if inspect.isclass(kind):
            methods = public_methods(kind)
            found |= {f"{name}.{key}": one for key, one in methods.items() if len(parameters_of(one)) > 1}
    return found


DOCUMENTED = documented()


def explanation(name: str) -> str:
    """A docstring, and those of the public names that it refers to as :meth:`...` or :func:`...`."""
    text = inspect.getdoc(DOCUMENTED[name]) or ""
    others = re.findall(r":(?:meth|func|class):`~?(?:context_diffusion\.)?([\w.]+)`", text)
    others += [f"{name.split('.')[0]}.{other}" for other in others]  # :meth:`__call__` within a class
    return "\n".join([text, *(inspect.getdoc(DOCUMENTED[other]) or "" for other in others if other in DOCUMENTED)])


def test_the_stub_lists_the_names_of_the_package():
    (listed,) = (
        ast.literal_eval(node.value)
        for node in STUB.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "__all__"
    )
    homes = {
        alias.name: node.module or "" for node in STUB.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    expected = cd._HOME | {name: home.rpartition(".")[0] for name, home in cd._MODULES.items()}
    assert listed == cd.__all__ and homes == expected, "context_diffusion/__init__.pyi is not what __init__.py says"


@pytest.mark.parametrize("name", sorted(OBJECTS))
def test_every_public_name_says_what_it_is(name):
    assert (inspect.getdoc(OBJECTS[name]) or "").strip(), f"{name} has no docstring"


@pytest.mark.parametrize("name", sorted(DOCUMENTED))
def test_a_docstring_mentions_every_parameter(name):
    words = set(re.findall(r"\w+", explanation(name)))
    missing = [p.name for p in parameters_of(DOCUMENTED[name]) if p.name not in words and p.kind is not p.VAR_KEYWORD]
    assert not missing, f"the docstring of {name} does not mention {', '.join(missing)}"


@pytest.mark.parametrize("name", sorted(DOCUMENTED))
def test_every_parameter_is_annotated(name):
    """But for objects of diffusers and transformers, which are not imported for a name's sake."""
    theirs = {"pipe", "pipeline", "processor", "tokenizer"}
    named = [p for p in parameters_of(DOCUMENTED[name]) if p.name not in theirs and p.kind is not p.VAR_KEYWORD]
    bare = [p.name for p in named if p.annotation is p.empty]
    assert not bare, f"{name} does not say of what type {', '.join(bare)} should be"


def test_no_public_function_has_the_name_of_a_module():
    """Importing ``context_diffusion.x`` puts the module x into the package, where it would hide a function x."""
    folder = Path(cd.__file__).parent
    modules = {path.stem for path in folder.glob("*.py")} | {path.name for path in folder.iterdir() if path.is_dir()}
    assert not modules & set(cd._HOME)
