"""The bodies of requests: OpenAI's fields, and ours beside them.

What OpenAI has and no model here can do is refused by name, unless it says what is done anyway
(`quality=auto`, `background=opaque`).
"""

import secrets
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from lmsd.serving.options import Limits
from lmsd.serving.served import Served, Way

Kind = TypeVar("Kind", bound=BaseModel)


def _whole(text: str) -> str:
    """Text that can be written down: no half of a surrogate pair."""
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError("half of a surrogate pair is no text")
    return text


Text = Annotated[str, AfterValidator(_whole)]
Number = Annotated[float, Field(ge=-1000, le=1000, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
PairKey = Annotated[str, Field(pattern=r"^[0-9a-f]{24}$")]
Choice = Literal["a", "b", "tie", "both_bad"]


class Refused(Exception):
    """A request that is answered with an error; field: of the body, where one is to blame."""

    def __init__(
        self, message: str, *, field: str | None = None, status: int = 400, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.message, self.field, self.status, self.code = message, field, status, code


class Drawn(BaseModel):
    """What any image is asked for with."""

    model_config = ConfigDict(extra="forbid")

    prompt: Text = ""
    model: Text | None = None
    seed: Seed | None = None
    steps: Annotated[int, Field(ge=1)] | None = None
    guidance: Number | None = None

    def way(self, served: Served) -> Way:
        """How its images are drawn."""
        own = served.own
        return Way(
            own.steps if self.steps is None else self.steps,
            own.guidance if self.guidance is None else self.guidance,
            own.image_guidance,
        )

    def seeded(self) -> int:
        """The seed that was given, or a new one."""
        return secrets.randbelow(2**31) if self.seed is None else self.seed


class Generation(Drawn):
    """The body of /v1/images/generations."""

    n: Annotated[int, Field(ge=1)] = 1
    size: Text = "auto"
    response_format: Literal["b64_json"] = "b64_json"
    output_format: Literal["png", "jpeg", "webp"] = "png"
    output_compression: Annotated[int, Field(ge=0, le=100)] = 100
    quality: Literal["auto", "standard"] | None = None
    background: Literal["auto", "opaque"] | None = None
    moderation: Literal["auto", "low"] | None = None
    stream: Literal[False] | None = None
    user: Text | None = None


class Edit(Generation):
    """The fields of /v1/images/edits beside its pictures."""

    strength: Annotated[float, Field(ge=0.01, le=1)] | None = None
    image_guidance: Number | None = None

    def edited(self, served: Served, *, masked: bool) -> Way:
        """How an edit goes: all the way where a mask keeps the rest, or where the model sees the image."""
        blind = served.model.generator.sees == "nothing"
        strength = self.strength if self.strength is not None else 0.6 if blind and not masked else 1.0
        way = self.way(served)
        image = way.image_guidance if self.image_guidance is None else self.image_guidance
        return Way(way.steps, way.guidance, image, strength, masked)


class PairAsked(Drawn):
    """The body of /pairs: two pictures of a prompt."""


class Vote(BaseModel):
    """The body of /votes."""

    model_config = ConfigDict(extra="forbid")

    pair: PairKey
    choice: Choice


def parsed(kind: type[Kind], fields: Any) -> Kind:
    """A body of that kind. Raises Refused, with the field."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise refusal(error.errors(include_url=False)) from error


def refusal(errors: Any) -> Refused:
    """One sentence for the first thing that is wrong with a body."""
    first = errors[0]
    places = [str(place) for place in first["loc"] if place != "body"]
    field = ".".join(places) or None
    if field == "response_format":
        return Refused("response_format: pictures come as b64_json, and have no URLs", field=field)
    if first["type"] == "extra_forbidden":
        return Refused(f"{field}: there is no such field here", field=field, code="unknown_parameter")
    said = (
        str(first["msg"])
        .removeprefix("Input ")
        .removeprefix("Value error, ")
        .replace("JSON decode error", "the body is not JSON")
    )
    return Refused(f"{field}: {said}" if field else said, field=field)


def checked(asked: Generation, served: Served, limits: Limits) -> None:
    """Hold a body against the limits and the model. Raises Refused."""
    check_drawn(asked, served, limits)
    if asked.n > limits.n:
        raise Refused(f"n={asked.n} is more than the {limits.n} images of one request", field="n")
    if asked.size not in ("auto", served.size):
        raise Refused(f"size={asked.size[:20]}: this model draws {served.size}", field="size")


def check_drawn(asked: Drawn, served: Served, limits: Limits) -> None:
    """What every image is held against. Raises Refused."""
    if len(asked.prompt) > limits.prompt:
        raise Refused(
            f"prompt: {len(asked.prompt):,} characters are more than {limits.prompt:,}", field="prompt"
        )
    if asked.steps is not None and asked.steps > limits.steps:
        raise Refused(f"steps={asked.steps} is more than {limits.steps}", field="steps")
    if asked.model not in (None, "lmsd", "promoted", served.name, served.name.partition("/")[0]):
        raise Refused(
            f"there is no model '{asked.model[:100]}': it is {served.name}",
            field="model", status=404, code="model_not_found",
        )  # fmt: skip
