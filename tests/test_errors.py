"""What counts as a secret, and that messages hold none."""

import pytest

from lmsd.errors import UserError, is_secret, redact


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("HF_TOKEN", True),
        ("logger.wandb.api_key", True),
        ("AWS_SECRET_ACCESS_KEY", True),
        ("db-password", True),
        ("credentials", True),
        ("token", True),
        ("OPENAI_KEY", True),
        ("DB_PWD", True),
        ("PWD", False),
        ("OLDPWD", False),
        ("logger.own.auth", True),
        ("net.z_tokens", False),
        ("conditioner.token_dim", False),
        ("tokenizer", False),
        ("secret_santa.images", False),
        ("key", False),
        ("data.caption_key", False),
    ],
)
def test_names_of_secrets(name: str, secret: bool) -> None:
    assert is_secret(name) is secret


def test_messages_hold_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OWN_API_KEY", "k-1234567")
    monkeypatch.setenv("ANY_TOKEN", "abc")  # too short to be one: half of all words would vanish
    said = redact("s3://u:pw@host/a.tar https://h/x.tar?Signature=s&e=1 'https://h/y?q=1' k-1234567 abc")
    assert said == "s3://***@host/a.tar https://h/x.tar?*** 'https://h/y?***' *** abc"
    assert redact("s3://bucket/train-?.tar") == "s3://bucket/train-?.tar"
    assert str(UserError("no https://me:word@host/")) == "no https://***@host/"


def test_the_folder_one_is_in_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PWD", "/home/me/project")
    monkeypatch.setenv("OLDPWD", "/home/me/before")
    assert redact("/home/me/project/data and /home/me/before") == "/home/me/project/data and /home/me/before"
