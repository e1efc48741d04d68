from __future__ import annotations

import pytest

from tests.support.require import in_ci, require_ability, require_program, require_root

LOCAL = {"PATH": "/usr/bin:/bin"}
CI = {**LOCAL, "CI": "true"}


def test_a_program_that_is_there_is_found() -> None:
    assert require_program("sh", CI).endswith("/sh")


def test_a_missing_program_is_a_skip_for_a_developer_and_a_failure_in_ci() -> None:
    with pytest.raises(pytest.skip.Exception, match="no-such-program is not installed"):
        require_program("no-such-program", LOCAL)
    with pytest.raises(pytest.fail.Exception, match="no-such-program is not installed"):
        require_program("no-such-program", CI)


def test_missing_root_is_a_skip_for_a_developer_and_a_failure_in_ci() -> None:
    require_root(CI, uid=0)
    with pytest.raises(pytest.skip.Exception, match="needs root"):
        require_root(LOCAL, uid=1000)
    with pytest.raises(pytest.fail.Exception, match="needs root"):
        require_root(CI, uid=1000)


def test_a_missing_ability_of_the_kernel_is_a_skip_that_names_it() -> None:
    require_ability(None)
    with pytest.raises(pytest.skip.Exception, match="no network namespaces"):
        require_ability("no network namespaces here")


@pytest.mark.parametrize(("value", "expected"), [("true", True), ("1", True), ("", False)])
def test_ci_is_told_by_the_environment(value: str, expected: bool) -> None:
    assert in_ci({"CI": value}) is expected
    assert not in_ci({})
