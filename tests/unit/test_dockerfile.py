"""The Dockerfile, as far as it can be checked without an engine: what it names is there."""

from __future__ import annotations

import fnmatch
import subprocess
import sys
from pathlib import Path

import orjson
import pytest
from click.testing import CliRunner

from tunneltcp.cli import run as cli_run

ROOT = Path(__file__).parents[2]


def instructions():
    text = (ROOT / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]


def only(name):
    (found,) = [text for word, text in instructions() if word == name]
    return found


def copied():
    """What is taken from the source tree."""
    found = [text.split()[:-1] for word, text in instructions() if word == "COPY"]
    names = [name for words in found for name in words if not words[0].startswith("--from")]
    assert names
    return names


def test_each_instruction_is_one():
    known = {
        *("ARG", "FROM", "WORKDIR", "COPY", "RUN", "ENV", "USER", "VOLUME", "STOPSIGNAL"),
        *("HEALTHCHECK", "ENTRYPOINT", "CMD"),
    }
    words = [word for word, _ in instructions()]
    assert words[:2] == ["ARG", "FROM"]
    assert set(words) <= known
    assert words.index("USER") > len(words) - 1 - words[::-1].index("RUN")


def test_what_is_copied_is_there_and_not_ignored():
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in rules
    for name in copied():
        assert (ROOT / name).exists(), name
        assert f"!{name.removeprefix('./')}" in rules, name


def test_nothing_else_gets_into_the_context():
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    wanted = {rule[1:] for rule in rules if rule.startswith("!")}
    assert wanted == {name.removeprefix("./") for name in copied()}
    assert any(fnmatch.fnmatch("a/__pycache__", rule) for rule in rules)


def test_what_the_package_is_built_from_is_copied():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for name in (project["readme"], *project["license-files"], "tunneltcp"):
        assert name in [copy.removeprefix("./") for copy in copied()]


def test_the_words_of_the_command_are_options_of_the_master():
    words = orjson.loads(only("ENTRYPOINT"))
    assert words[:4] == [*("/opt/tunneltcp/venv/bin/python", "-P", "-m", "tunneltcp.master")]
    usage = CliRunner().invoke(cli_run.main, ["--help"]).stdout
    for word in words[4:] + orjson.loads(only("CMD")):
        assert not word.startswith("--") or word in usage


def test_its_folders_are_made_and_its_user_is_not_root():
    text = (ROOT / "Dockerfile").read_text()
    made = text.partition("install -d")[2].partition("COPY")[0].split()
    for path in ("/run/tunneltcp", *orjson.loads(only("VOLUME"))):
        assert path in made
    assert only("USER") == "10001:10001"


def test_the_shell_can_read_what_is_run():
    runs = [text for word, text in instructions() if word == "RUN"]
    assert len(runs) == 3
    for text in runs:
        subprocess.run(["/bin/sh", "-nc", text], check=True, timeout=10)


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the image has 3.11")
def test_the_image_has_the_python_that_the_tests_run_on():
    images = [text.split()[0] for word, text in instructions() if word == "FROM"]
    assert images == ["python:${PYTHON}-slim"] * 2
    assert [text for word, text in instructions() if word == "ARG"] == ["PYTHON=3.11"]
