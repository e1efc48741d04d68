"""docs/CONFIG.md says what the model says, and its examples are right."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from tunneltcp.config.load import build_config, load_config
from tunneltcp.config.model import PORTS, TOP_SETTINGS, TUNNEL_SETTINGS
from tunneltcp.errors import ConfigError

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def docs():
    spec = importlib.util.spec_from_file_location("docs_script", ROOT / "scripts/docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["docs_script"] = module  # its dataclasses look for it there
    spec.loader.exec_module(module)
    yield module
    del sys.modules["docs_script"]


def test_it_is_up_to_date(docs):
    assert docs.PATH == ROOT / "docs/CONFIG.md"
    assert docs.PATH.read_text() == docs.render(), "run scripts/docs"


def test_its_examples_are_configs(docs, tmp_path):
    written = re.findall(r"```json\n(.*?)```", docs.PATH.read_text(), re.DOTALL)
    assert [example.text + "\n" for example in docs.EXAMPLES] == written
    path = tmp_path / "example.json"
    for example in docs.EXAMPLES:
        path.write_text(example.text)
        assert example.roles
        for role in example.roles:
            needs = role == "client" and '"server"' not in example.text
            assert load_config(path, role, server="vps" if needs else None).tunnels


def test_every_key_is_there_with_its_meaning(docs):
    text = docs.PATH.read_text()
    keys = [PORTS, *(one.key for one in (*TOP_SETTINGS, *TUNNEL_SETTINGS))]
    assert len(keys) > 10
    for key in keys:
        assert f"| `{key.name}` |" in text
        assert key.meaning.endswith("."), key.name
        assert key.meaning in text


def settings_with_bounds():
    found = [(one, "tunnel") for one in TUNNEL_SETTINGS] + [
        (one, "top") for one in TOP_SETTINGS
    ]
    return [(one, place) for one, place in found if one.key.kind in ("seconds", "integer")]


@pytest.mark.parametrize(
    ("setting", "place"),
    settings_with_bounds(),
    ids=lambda value: getattr(value, "field", value),
)
def test_the_bounds_that_are_told_are_those_that_hold(setting, place):
    def build(value):
        tunnel: dict[str, Any] = {"remote_port": 1}
        document: dict[str, Any] = {"tunnels": [tunnel]}
        (document if place == "top" else tunnel)[setting.key.name] = value
        config = build_config(document, "server")
        return getattr(config if place == "top" else config.tunnels[0], setting.field)

    key = setting.key
    cast = int if key.kind == "integer" else float
    for value in (key.low, key.high):
        assert build(cast(value)) == value
    for value in (key.low - 1, key.high + 1, True, None, "1"):
        if value is None and setting.default is None:
            continue
        with pytest.raises(ConfigError, match=rf"{key.name}: .* is not a"):
            build(value)


def test_the_default_is_within_the_bounds():
    for setting, _ in settings_with_bounds():
        if setting.default is not None:
            assert setting.key.low <= setting.default <= setting.key.high
