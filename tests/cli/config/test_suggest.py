"""Did you mean."""

from lmsd.cli.config.suggest import nearest


def test_near_names_come_first_and_far_ones_never() -> None:
    names = ["optim.generator.lr", "optim.discriminator.lr", "images", "seed"]
    assert nearest("imags", names) == "; did you mean images?"
    assert nearest("lr", names) == "; did you mean optim.generator.lr, optim.discriminator.lr?"
    assert nearest("model.lr", names).startswith("; did you mean optim.")
    assert nearest("qqqq", names) == ""
