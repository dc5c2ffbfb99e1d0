from __future__ import annotations

import pytest

from cvlib.claims import code_hash
from cvlib.errors import BookError

CODE = '''\
# %% [markdown]
# Words.

# %%
"""A page."""
STEPS = 4


def f(x: int = 1) -> int:
    """Say something."""
    return x + 1  # why


class C:
    """A class."""

    def g(self):
        return "text"
'''


@pytest.fixture
def digest(tmp_path):
    def run(text: str, entry: str = "a.py") -> str:
        (tmp_path / "a.py").write_text(text)
        return code_hash([entry], tmp_path)

    return run


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# Words.", "# Other words."),
        ('"""A page."""\n', ""),
        ('    """Say something."""\n', ""),
        ('    """A class."""\n', '    """Another."""\n'),
        ("  # why", ""),
        ("return x + 1", "return (x +\n        1)"),
    ],
)
def test_words_do_not_count(digest, old, new):
    assert old in CODE
    assert digest(CODE) == digest(CODE.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("x + 1", "x - 1"),
        ("x + 1", "x + 1.0"),
        ("STEPS = 4", "STEPS = 5"),
        ('"text"', '"test"'),
        ("int = 1", "int = 2"),
        ("g(self)", "h(self)"),
        ("-> int", "-> float"),
    ],
)
def test_code_counts(digest, old, new):
    assert old in CODE
    assert digest(CODE) != digest(CODE.replace(old, new))


def test_one_definition_can_be_named(digest):
    assert digest(CODE, "a.py::f") == digest(CODE.replace("STEPS = 4", "STEPS = 5"), "a.py::f")
    assert digest(CODE, "a.py::STEPS") != digest(CODE.replace("STEPS = 4", "STEPS = 5"), "a.py::STEPS")
    assert digest(CODE, "a.py::C") != digest(CODE.replace("text", "test"), "a.py::C")
    with pytest.raises(BookError, match=r"a\.py defines no 'h'"):
        digest(CODE, "a.py::h")


def test_folders_count_names_and_order_does_not(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.py").write_text(f"x = {name!r}\n")
    whole = code_hash(["."], tmp_path)
    assert code_hash(["b.py", "a.py"], tmp_path) == code_hash(["a.py", "b.py", "a.py"], tmp_path)
    (tmp_path / "b.py").rename(tmp_path / "c.py")
    assert code_hash(["."], tmp_path) != whole
    with pytest.raises(BookError, match=r"'b\.py' is not in"):
        code_hash(["b.py"], tmp_path)
    assert code_hash([]) == code_hash([])
