"""The three commands: list, fetch, verify."""

from __future__ import annotations

from click.testing import CliRunner, Result

import cvlib.assets.cli as cli
from cvlib.assets import fetch, location


def run(monkeypatch, use, *assets):
    """Return a runner of ``assets ARGS`` that knows only the given assets."""
    use(*assets)
    chosen = {asset.name: asset for asset in assets}
    monkeypatch.setattr(cli, "ASSETS", chosen)

    def runner(*args: str) -> Result:
        return CliRunner().invoke(cli.assets, args)

    return runner


def test_list_shows_the_state_aligned(make, use, npm, monkeypatch):
    one, two, three = (make(name)[0] for name in ("one", "two", "three"))
    assets = run(monkeypatch, use, one, two, three)
    npm()
    fetch("one")
    (fetch("two") / "a.txt").write_bytes(b"spoilt")
    result = assets("list")
    header, *rows = result.output.splitlines()
    assert [row.split()[:2] for row in rows[:3]] == [
        ["one", "present"],
        ["two", "damaged"],
        ["three", "absent"],
    ]
    column = header.index("package")
    assert [row[column:].split()[0] for row in rows[:3]] == ["one@1.0", "two@1.0", "three@1.0"]
    assert all(row.endswith("MIT") for row in rows[:3]) and str(location(one).parent) in result.output


def test_fetch_names_default_and_typo(make, use, npm, monkeypatch):
    one, two = make("one")[0], make("two")[0]
    assets = run(monkeypatch, use, one, two)
    calls = npm()
    wrong = assets("fetch", "one", "tow")
    assert wrong.exit_code == 1 and "'tow'" in str(wrong.exception) and not calls.exists()
    assert assets("fetch", "one").exit_code == 0
    assert location(one).exists() and not location(two).exists()
    result = assets("fetch")
    assert result.exit_code == 0 and location(two).exists() and "quick: present and verified" in result.output


def test_verify_finds_the_damage_and_exits_with_1(make, use, npm, monkeypatch):
    one, two = make("one")[0], make("two")[0]
    assets = run(monkeypatch, use, one, two)
    npm()
    fetch("one")
    result = assets("verify")
    assert result.exit_code == 0 and "1 verified, 1 absent, 0 to mend" in result.output
    assert assets("verify", "two").exit_code == 1  # asked for by name, and not there
    (location(one) / "a.txt").write_bytes(b"first nember\n")
    result = assets("verify")
    assert result.exit_code == 1 and "a.txt has SHA-256" in result.output
    assert "run 'cvlib assets fetch one'" in result.output
