"""The commands that speak of the installation: `stowplan doctor` and `stowplan completion`."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from importlib import metadata

import pytest

from stowplan import cli
from stowplan.adapters import installed_frameworks
from stowplan.cli import doctor, installed, main

RUN = "import sys; from stowplan.cli import main; sys.exit(main())"


def commands(parser, name=()):
    """Every command of the program, as its words and its parser."""
    found = [(name, parser)]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, below in action.choices.items():
                found += commands(below, (*name, word))
    return found


COMMANDS = dict(commands(cli._parser()))


def json_of(capsys, *options):
    status = main(["doctor", "--json", *options])
    return json.loads(capsys.readouterr().out), status


@pytest.fixture(autouse=True)
def settings_unset(monkeypatch):
    for name in ("STOWPLAN_BUDGET", "STOWPLAN_SCRATCH", "STOWPLAN_COMPILE_CACHE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words) or "stowplan")
def test_the_help_of_every_command_shows_an_example_that_calls_it(words):
    shown = COMMANDS[words].format_help()
    _, found, example = shown.partition("example")
    assert found
    assert f"stowplan {' '.join(words)}".strip() in example


def test_the_doctor_names_every_framework_with_its_version_and_devices(framework, capsys):
    found, status = json_of(capsys)
    by_name = {one["name"]: one for one in found["frameworks"]}
    assert status == 0
    assert found["problems"] == []
    assert set(by_name) == {"numpy", "jax", "torch", "cupy"}
    if framework in {"numpy", "jax", "torch"}:
        assert by_name[framework]["version"] == metadata.version(framework)
        assert min(by_name[framework]["devices"].values()) > 0


def test_a_framework_that_is_not_installed_is_told_how_to_get(capsys):
    missing = {"jax", "torch", "cupy"} - set(installed_frameworks())
    found, status = json_of(capsys, "--quick")
    notes = {one["name"]: one["note"] for one in found["frameworks"]}
    assert status == 0
    assert all(f"pip install 'stowplan[{name}]'" in notes[name] for name in missing)


@pytest.mark.parametrize(
    ("wide", "words"), [(True, "64 bits"), (False, "32 bits (x64 off: set JAX_ENABLE_X64=1)")]
)
def test_whether_jax_has_64_bits_is_said(wide, words, load_framework, capsys):
    load_framework("jax")
    import jax

    jax.config.update("jax_enable_x64", wide)
    try:
        found, _ = json_of(capsys)
    finally:
        jax.config.update("jax_enable_x64", True)
    assert next(one["note"] for one in found["frameworks"] if one["name"] == "jax") == words


def test_a_quick_look_imports_no_framework():
    code = (
        "import sys; from stowplan.cli import main; status = main(['doctor', '--quick']); "
        "print(sorted({'jax', 'torch', 'cupy', 'scipy'} & set(sys.modules)), status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[] 0"


def test_what_is_not_installed_is_not_imported(capsys, monkeypatch):
    asked = []
    monkeypatch.setattr(doctor, "installed_frameworks", lambda: ("numpy",))
    monkeypatch.setattr(doctor, "get_adapter", lambda name: asked.append(name) or ADAPTER)
    _, status = json_of(capsys)
    assert (asked, status) == (["numpy"], 0)


def test_a_framework_that_does_not_start_is_a_problem_and_the_rest_is_shown(capsys, monkeypatch):
    def broken(name):
        raise OSError("libcudart.so.12: cannot open shared object file")

    monkeypatch.setattr(doctor, "installed_frameworks", lambda: ("numpy", "torch"))
    monkeypatch.setattr(doctor, "get_adapter", lambda n: broken(n) if n == "torch" else ADAPTER)
    assert main(["doctor"]) == 1
    out, err = capsys.readouterr()
    assert "problem: torch does not start (OSError: libcudart.so.12" in out
    assert "scratch" in out
    assert err.startswith("stowplan: error: doctor: torch does not start")


def test_the_settings_say_what_holds_and_who_said_so(capsys, monkeypatch, tmp_path):
    settings = json_of(capsys, "--quick")[0]["settings"]
    assert "(0.8 of" in settings["budget"]
    assert settings["compile cache"] == "none (STOWPLAN_COMPILE_CACHE)"
    for name, value in (("BUDGET", "3 GiB"), ("SCRATCH", tmp_path), ("COMPILE_CACHE", "/cache")):
        monkeypatch.setenv(f"STOWPLAN_{name}", str(value))
    settings = json_of(capsys, "--quick")[0]["settings"]
    assert settings["budget"] == "3 GiB (STOWPLAN_BUDGET=3 GiB)"
    assert settings["scratch"].startswith(f"{tmp_path}, ")
    assert settings["scratch"].endswith(" free (STOWPLAN_SCRATCH)")
    assert settings["compile cache"] == "/cache (STOWPLAN_COMPILE_CACHE)"


def test_settings_that_cannot_be_used_are_problems(capsys, monkeypatch):
    monkeypatch.setenv("STOWPLAN_BUDGET", "much")
    monkeypatch.setenv("STOWPLAN_SCRATCH", "/nowhere")
    found, status = json_of(capsys, "--quick")
    budget, scratch = found["problems"]
    assert "STOWPLAN_BUDGET=much is no budget. Give bytes from 1" in budget
    assert "STOWPLAN_SCRATCH=/nowhere is no folder that can be written to" in scratch
    assert found["settings"]["scratch"] == "cannot be used (STOWPLAN_SCRATCH=/nowhere)"
    assert status == 1


def test_what_an_extra_lacks_is_missing_and_what_is_too_old_is_a_problem(capsys, monkeypatch):
    there = {"numpy": "2.1.3", "ase": "3.22.1", "jax": "0.10.2", "torch": "2.13.0+cpu"}
    lines = [
        "numpy>=2.0", "ase>=3.23; extra == 'structures'", "vesin>=0.3; extra == 'structures'",
        "jax>=0.9; extra == 'jax'", "torch>=2.13; extra == 'torch'",
        "stowplan[jax]; extra == 'all-cpu'", "torch>=3; extra == 'all-cpu'",
    ]  # fmt: skip
    monkeypatch.setattr(installed, "version_of", there.get)
    monkeypatch.setattr(doctor, "extras", lambda: installed.extras(lines))
    found, status = json_of(capsys, "--quick")
    assert found["extras"] == {
        "structures": "ase 3.22.1, older than 3.23, vesin is missing: "
        "pip install 'stowplan[structures]'",
        "jax": "jax 0.10.2",
        "torch": "torch 2.13.0+cpu",
    }
    assert found["problems"] == [
        "ase 3.22.1, older than 3.23. Run: pip install --upgrade 'stowplan[structures]'"
    ]
    assert status == 1


def test_every_extra_of_the_distribution_is_listed(capsys):
    declared = set(metadata.metadata("stowplan").get_all("Provides-Extra"))
    assert set(json_of(capsys, "--quick")[0]["extras"]) == declared - {"all-cpu"}


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("stowplan do", {"doctor"}),
        ("stowplan doctor --q", {"--quick"}),
        ("stowplan ewald x.xyz --on to", {"torch"}),
        ("stowplan runs cl", {"clean"}),
    ],
)
def test_a_shell_is_told_what_may_follow(typed, offered, tmp_path):
    pytest.importorskip("argcomplete", reason="argcomplete is not installed")
    answer = tmp_path / "answer"
    asking = {"_ARGCOMPLETE": "1", "COMP_LINE": typed, "COMP_POINT": str(len(typed))}
    asking["_ARGCOMPLETE_STDOUT_FILENAME"] = str(answer)
    # in a process of its own: it takes file descriptor 9
    subprocess.run([sys.executable, "-c", RUN], env=os.environ | asking, check=True)
    assert {word.strip() for word in answer.read_text().split("\013")} == offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_asks_the_command(shell, capsys):
    pytest.importorskip("argcomplete", reason="argcomplete is not installed")
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "_ARGCOMPLETE" in script
    assert "stowplan" in script


def test_completion_without_its_package_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "argcomplete", None)
    assert main(["completion", "bash"]) == 1
    assert "pip install 'stowplan[completion]'" in capsys.readouterr().err


def test_a_shell_that_is_not_known_is_told_which_are(capsys, monkeypatch):
    monkeypatch.setenv("SHELL", "/bin/ksh")
    assert main(["completion"]) == 1
    assert "$SHELL names ksh. Name one of: bash, zsh, fish" in capsys.readouterr().err


class ADAPTER:
    """A framework of one device."""

    @staticmethod
    def devices():
        return ["cpu"]

    @staticmethod
    def free_bytes(device):
        return 2**30

    @staticmethod
    def asarray(array, device):
        return array
