"""What is asked of the environment before a Ray cluster is joined."""

import pytest
from conftest import products_of

from fresco_dist.config import InputError
from fresco_dist.runtime.authentication import require_token


@pytest.mark.parametrize("mode", [None, "", "disabled"])
def test_joining_without_token_authentication_is_refused(mode):
    environment = {} if mode is None else {"RAY_AUTH_MODE": mode}
    with pytest.raises(InputError, match=f"RAY_AUTH_MODE must be token to join a Ray cluster; got {mode}. Start"):
        require_token(environment)


@pytest.mark.parametrize("bits, private", [(0o600, True), (0o400, True), (0o640, False), (0o604, False)])
def test_token_file_must_be_private(tmp_path, monkeypatch, bits, private):
    path = tmp_path / ".ray" / "auth_token"
    path.parent.mkdir()
    path.write_text("a" * 64)
    path.chmod(bits)
    monkeypatch.setenv("HOME", str(tmp_path))
    for environment in ({"RAY_AUTH_MODE": "token"}, {"RAY_AUTH_MODE": "TOKEN", "RAY_AUTH_TOKEN_PATH": str(path)}):
        if private:
            require_token(environment)
            continue
        with pytest.raises(InputError) as refused:
            require_token(environment)
        expected = f"RAY_AUTH_TOKEN_PATH must be a file that only you can read; got {path} with mode {bits:o}."
        assert str(refused.value) == f"{expected} Run chmod 600 {path}."
    require_token({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 64})  # then no file is read


def test_command_that_would_join_without_a_token_is_refused_in_one_line(command, folder, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    done = command("cluster.executor=ray", "cluster.address=127.0.0.1:9")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: RAY_AUTH_MODE must be token to join a Ray cluster; got disabled.")
    assert products_of(folder) == set()
