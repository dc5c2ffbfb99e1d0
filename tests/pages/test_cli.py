"""The command line: values as papermill reads them, one line for a mistake, pairs checked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from papermill.cli import _resolve_type

from cvlib.cli import _value, commands

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.mark.parametrize(
    "text", ["3", "-3", "0.5", "1e5", "True", "False", "None", "emoji", "", "1_000", "007"]
)
def test_values_have_papermills_types(text):
    ours, theirs = _value(text), _resolve_type(text)
    assert (type(ours), ours) == (type(theirs), theirs)


def test_every_command_has_help():
    for name, command in commands.commands.items():
        assert command.help, name
        assert CliRunner().invoke(commands, [name, "--help"]).exit_code == 0


def test_sync_check_fails_for_a_stale_pair(tmp_path):
    (tmp_path / "new.py").write_text("# %%\n1\n")
    done = CliRunner().invoke(commands, ["sync", "--check", "--folder", str(tmp_path)])
    assert done.exit_code == 1
    assert "missing, made from new.py" in done.output
    assert CliRunner().invoke(commands, ["sync", "--folder", str(tmp_path)]).exit_code == 0
    assert CliRunner().invoke(commands, ["sync", "--check", "--folder", str(tmp_path)]).exit_code == 0


def test_a_mistake_is_one_line_on_stderr():
    page = str(FIXTURES / "tiny.ipynb")
    command = [sys.executable, "-c", "from cvlib.cli import main; main()", "run", page, "-p", "steps", "many"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if "IPKernelApp" not in line]
    assert line.startswith("cvlib: parameter steps is 'many' (str) on page tiny; wanted int, such as 4; ")
