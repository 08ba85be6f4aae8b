"""services.chassis.settings"""

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.chassis.settings import ServerSettings, render_example, settings_classes

REPOSITORY = Path(__file__).parents[2]
MODULES = ["services.wallet.settings", "services.batcher.settings"]


class ShopSettings(ServerSettings):
    """Settings of a shop."""

    model_config = SettingsConfigDict(env_prefix="SHOP_")

    shelves: int = Field(3, description="How many shelves.")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """No .env of the developer's reaches these tests."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_settings_come_from_the_environment_under_their_prefix(monkeypatch):
    monkeypatch.setenv("SHOP_LISTEN_ADDRESS", "127.0.0.1:9")
    monkeypatch.setenv("SHOP_JWKS_FILE", "")

    settings = ShopSettings.load()

    assert (settings.listen_address, settings.jwks_file, settings.shelves) == ("127.0.0.1:9", None, 3)


def test_settings_come_from_the_file_env(elsewhere):
    (elsewhere / ".env").write_text("SHOP_SHELVES=7\nOTHER=1\n")

    assert ShopSettings.load().shelves == 7


def test_every_mistake_is_told_at_once_and_the_exit_code_is_2(monkeypatch, capsys):
    monkeypatch.setenv("SHOP_SHELVES", "many")
    monkeypatch.setenv("SHOP_DRAIN_TIMEOUT_SECONDS", "0")

    with pytest.raises(SystemExit) as caught:
        ShopSettings.load()

    assert caught.value.code == 2
    told = capsys.readouterr().err
    assert "SHOP_SHELVES: " in told
    assert "SHOP_DRAIN_TIMEOUT_SECONDS: " in told


def test_a_command_may_override_the_environment():
    assert ShopSettings.load(insecure=True).insecure


def test_a_database_url_with_its_password_is_not_shown():
    assert "secret" not in repr(ShopSettings.load(database_url="postgres://u:secret@h/d"))


def test_the_example_shows_each_variable_at_its_default_under_its_description():
    example = render_example([ShopSettings])

    assert "# How many shelves.\n#SHOP_SHELVES=3\n" in example
    assert "#SHOP_INSECURE=false\n" in example
    assert "#SHOP_JWKS_FILE=\n" in example


def test_every_field_is_described():
    for module in MODULES:
        pytest.importorskip(module)

    undescribed = [
        name for cls in settings_classes(MODULES) for name, field in cls.model_fields.items() if not field.description
    ]

    assert undescribed == []


def test_the_example_in_the_repository_is_fresh():
    for module in MODULES:
        pytest.importorskip(module)
    made = subprocess.run(
        [sys.executable, "-m", "services.chassis.settings", *MODULES],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )

    assert (REPOSITORY / ".env.example").read_text() == made.stdout


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("LISTEN_ADDRESS", "nonsense"),
        ("METRICS_ADDRESS", "127.0.0.1"),
        ("DATABASE_URL", "mysql://somewhere"),
        ("JWKS_FILE", __file__),
    ],
)
def test_what_the_server_could_not_use_is_a_mistake_and_no_traceback(monkeypatch, capsys, variable, value):
    """An address, a database or a file of keys that is none is told before anything starts."""
    monkeypatch.setenv(variable, value)

    with pytest.raises(SystemExit) as caught:
        ServerSettings.load(_env_file=None)

    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith(f"{variable}: ")
