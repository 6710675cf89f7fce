"""One setting, read the same way by tasks and models."""

from __future__ import annotations

import pytest

from lensprune.errors import UserError
from lensprune.models.sources import bundled, pretrained
from lensprune.offline import is_offline, is_true
from lensprune.tasks import sources


@pytest.mark.parametrize("word", ["1", "true", "YES", "y", "on", " On ", "t"])
def test_words_for_true(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("LENSPRUNE_OFFLINE", word)
    assert is_offline()
    assert is_offline(hub_counts=False)


@pytest.mark.parametrize("word", ["", "0", "False", "no", "N", "off", "f"])
def test_words_for_false(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("LENSPRUNE_OFFLINE", word)
    assert not is_offline()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert is_offline()
    assert not is_offline(hub_counts=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert not is_offline()


def test_any_other_word_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LENSPRUNE_OFFLINE", "maybe")
    with pytest.raises(UserError, match=r"LENSPRUNE_OFFLINE is 'maybe': expected 1, true, yes or on"):
        is_offline()
    with pytest.raises(UserError, match="LENSPRUNE_OFFLINE is 'maybe'"):
        sources.hub_rows("owner/name", None, "test")
    with pytest.raises(UserError, match="flag is '2'"):
        is_true("2", "flag")


def test_tasks_and_models_share_the_function() -> None:
    assert sources.is_offline is bundled.is_offline is pretrained.is_offline is is_offline
