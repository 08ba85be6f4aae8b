"""The batcher's settings are read from the environment, checked together, and tell no secret."""

from pathlib import Path

import pytest

from services.batcher.job import Lane
from services.batcher.price_list import plain_list
from services.batcher.settings import BatcherSettings
from services.chassis.settings import render_example


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither a developer's .env nor its key takes part."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def test_defaults_are_a_working_set():
    """With no variable at all the settings are valid, and are those of the design."""
    settings = BatcherSettings.load()
    assert (settings.cycle_seconds, settings.batch_jobs, settings.image_transport) == (300, 100, "inline")
    assert settings.image_limits().pixels_max == 50_000_000
    assert settings.prices() == (plain_list("v1", {Lane.BATCH: 1, Lane.INSTANT: 5}),)
    assert settings.notice_us() == 60_000_000


def test_the_providers_key_has_two_names(monkeypatch: pytest.MonkeyPatch):
    """OPENAI_API_KEY is what everybody has; the batcher's own variable goes before it."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-common")
    assert BatcherSettings.load().openai_api_key.get_secret_value() == "sk-common"
    monkeypatch.setenv("BATCHER_OPENAI_API_KEY", "sk-own")
    assert BatcherSettings.load().openai_api_key.get_secret_value() == "sk-own"
    assert BatcherSettings.load(openai_api_key="sk-argument").openai_api_key.get_secret_value() == "sk-argument"


def test_secrets_are_not_told(monkeypatch: pytest.MonkeyPatch):
    """Printing the settings shows no secret."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("BATCHER_S3_SECRET_KEY", "sk-secret")
    monkeypatch.setenv("BATCHER_DATABASE_URL", "postgres://user:sk-secret@host/name")
    assert "sk-secret" not in repr(BatcherSettings.load())


@pytest.mark.parametrize(
    "wrong",
    [
        {"submit_timeout_seconds": 180},
        {"batch_jobs": 200, "batch_jobs_max": 100},
        {"image_url_seconds": 24 * 3600},
        {"batch_bytes_max": 200_000_001},
        {"image_transport": "pigeon"},
        {"attempts_max": 0},
    ],
)
def test_what_cannot_work_is_refused(wrong: dict[str, object]):
    """Settings that would buy twice, or that the provider would refuse, stop the start."""
    with pytest.raises(SystemExit):
        BatcherSettings.load(**wrong)


def test_answers_that_are_given_away():
    """The table of finish reasons is a list in one variable."""
    assert BatcherSettings.load().job_limits().uncharged_finish_reasons == frozenset()
    settings = BatcherSettings.load(uncharged_finish_reasons="content_filter, length,", attempts_max=2)
    assert settings.job_limits() == (2, frozenset({"content_filter", "length"}))


def test_a_file_of_prices_takes_their_place(tmp_path: Path):
    """Price lists with versions come from a file, and one that can't be read says so."""
    path = tmp_path / "prices.json"
    path.write_text('[{"version": "2", "lanes": {"BATCH": 2, "INSTANT": 7}}]')
    (prices,) = BatcherSettings.load(prices_file=path).prices()
    assert prices == plain_list("2", {Lane.BATCH: 2, Lane.INSTANT: 7})
    path.write_text('[{"version": "2", "lanes": {"BATCH": 0}}]')
    with pytest.raises(ValueError, match="positive"):
        BatcherSettings.load(prices_file=path).prices()


def test_every_setting_is_described():
    """Each setting has a line of its own in the example, and none is a secret."""
    assert all(field.description for field in BatcherSettings.model_fields.values())
    example = render_example([BatcherSettings])
    assert "#BATCHER_S3_SECRET_KEY=\n" in example
    assert "PydanticUndefined" not in example


def test_webhooks_are_off_unless_they_have_a_secret_of_the_providers_kind(capsys: pytest.CaptureFixture[str]):
    """With another secret every webhook would be refused, and nobody would know why."""
    assert BatcherSettings.load().webhook_address == "off"
    for secret in ("", "plain", "whsec_", "whsec_not base64!"):
        with pytest.raises(SystemExit):
            BatcherSettings.load(webhook_address="127.0.0.1:8090", openai_webhook_secret=secret)
        assert "openai_webhook_secret must be" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        BatcherSettings.load(webhook_address="nowhere")
    settings = BatcherSettings.load(webhook_address="127.0.0.1:8090", openai_webhook_secret="whsec_c2VjcmV0")
    assert "c2VjcmV0" not in repr(settings)
