"""The routes: OpenAI's images, what machines ask of a server, pairs and votes, and the page."""

import asyncio
import base64
import functools
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from importlib.resources import files
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException

from lmsd import __version__
from lmsd.data.decode import Pixels
from lmsd.data.transforms import fit
from lmsd.data.votes import Pair
from lmsd.errors import UserError
from lmsd.serving.asked import (
    Drawn,
    Edit,
    Generation,
    PairAsked,
    Refused,
    Vote,
    check_drawn,
    checked,
    parsed,
    refusal,
)
from lmsd.serving.batcher import Full
from lmsd.serving.pictures import encoded, mask_of, opened
from lmsd.serving.served import Item, Served, Way
from lmsd.serving.service import Service

MODEL = "X-LMSD-Model"
PLAIN = "/@.,:=+"
"""Of a model's name in a header: what needs no percent-encoding, beside letters and digits."""
SMALL = 128 * 128
"""Pixels up to which a picture is encoded at once, not in a thread."""
_PARTS = {"image", "image[]", "mask"}


class Api:
    """The routes of a service."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.page = files("lmsd.serving").joinpath("page.html").read_text(encoding="utf-8")

    def app(self) -> FastAPI:
        """The application, without documentation pages, which would load scripts from elsewhere."""

        def living(app: FastAPI) -> AbstractAsyncContextManager[None]:
            return self.service.living()

        app = FastAPI(title="lmsd", version=__version__, docs_url=None, redoc_url=None, lifespan=living)
        for path, method, route in (
            ("/v1/images/generations", "POST", self.generations),
            ("/v1/images/edits", "POST", self.edits),
            ("/v1/models", "GET", self.models),
            ("/v1/models/{name:path}", "GET", self.model),
            ("/health", "GET", self.health),
            ("/metrics", "GET", self.metrics),
            ("/pairs", "POST", self.pairs),
            ("/votes", "POST", self.votes),
            ("/", "GET", self.index),
        ):
            app.add_api_route(path, route, methods=[method], response_model=None)
        for kind in (Refused, Full, RequestValidationError, HTTPException, Exception):
            app.add_exception_handler(kind, self.failed)
        return app

    async def generations(self, body: Generation) -> JSONResponse:
        """Images of a prompt."""
        served = self.service.served
        checked(body, served, self.service.limits)
        return await self._answered(body, served, body.way(served))

    async def edits(self, request: Request) -> JSONResponse:
        """An image, changed by a prompt, all of it or where a mask allows."""
        served, limits = self.service.served, self.service.limits
        try:
            async with request.form(max_files=2, max_fields=20, max_part_size=64 << 10) as form:
                parts = sorted(form.multi_items(), key=lambda part: part[0])
                fields = {name: value for name, value in parts if type(value) is str}
                contents = {name: await value.read() for name, value in parts if type(value) is not str}  # type: ignore[union-attr]
        except HTTPException as error:
            told = f"the form cannot be read: {error.detail}"
            raise Refused(told, status=error.status_code) from error
        if len(fields) + len(contents) < len(parts) or contents.keys() - _PARTS:
            raise Refused("a field is given twice, or a file by another name than image and mask")
        body = parsed(Edit, fields)
        checked(body, served, limits)
        files_ = [content for _, content in sorted(contents.items())]
        if not contents.keys() & {"image", "image[]"} or len(files_) > 1 + ("mask" in contents):
            raise Refused("image: send one picture to edit, as a file", field="image")
        way = body.edited(served, masked="mask" in contents)
        read = await asyncio.to_thread(self._read, files_, served)
        return await self._answered(body, served, way, *read)

    def _read(self, contents: Sequence[bytes], served: Served) -> tuple[Any, ...]:
        """The picture, and the mask where there is one, as the model takes them."""
        channels, size, _ = served.model.generator.image_shape
        most = self.service.limits.megapixels
        whole = opened(contents[0], channels=channels, megapixels=most)
        picture = fit(whole, size)
        if len(contents) == 1:
            return (picture,)
        return picture, mask_of(contents[1], whole.shape[:2], size, megapixels=most)

    async def _answered(
        self, body: Generation, served: Served, way: Way, image: Any = None, mask: Any = None
    ) -> JSONResponse:
        """Draw n images and write OpenAI's answer."""
        read = self._held(served, way, body)
        seed = body.seeded()
        items = [Item(way, body.prompt, seed, place, image, mask) for place in range(body.n)]
        found = await self.service.drawn(served, way, items)
        files_ = [await _file(each, body.output_format, body.output_compression) for each in found]
        revised = {} if read == body.prompt else {"revised_prompt": read}
        content = {
            "created": int(time.time()),
            "data": [{"b64_json": base64.b64encode(file).decode(), **revised} for file in files_],
            "model": served.name,
            "seed": seed,
            "steps": way.steps,
            "guidance": way.guidance,
            "size": served.size,
            "output_format": body.output_format,
        }
        return JSONResponse(content, headers={MODEL: quote(served.name, safe=PLAIN)})

    def _held(self, served: Served, way: Way, body: Drawn) -> str:
        """What the model reads of the prompt. Raises Refused for what it does not take."""
        try:
            return served.check(way, body.prompt)
        except UserError as error:
            raise Refused(str(error)) from error

    async def models(self) -> dict[str, Any]:
        """OpenAI's list, of one model."""
        return {"object": "list", "data": [self._told(self.service.served)]}

    async def model(self, name: str) -> dict[str, Any]:
        """One of them."""
        check_drawn(Drawn(model=name), self.service.served, self.service.limits)
        return self._told(self.service.served)

    def _told(self, served: Served) -> dict[str, Any]:
        generator, limits = served.model.generator, self.service.limits
        return {
            "id": served.name,
            "object": "model",
            "created": int(self.service.figures.begun),
            "owned_by": "lmsd",
            "size": served.size,
            "reads": served.reads,
            "classes": generator.conditioner.classes,
            "sees": generator.sees,
            "steps": served.own.steps,
            "guidance": served.own.guidance,
            "limits": {"n": limits.n, "steps": limits.steps, "prompt": limits.prompt},
            "votes": self.service.ballots is not None,
        }

    async def health(self) -> JSONResponse:
        """200 once the model is warm, until the process drains."""
        service = self.service
        state = "draining" if service.draining else "ready" if service.ready else "warming up"
        status = 200 if state == "ready" else 503
        return JSONResponse({"status": state, "model": service.served.name}, status_code=status)

    async def metrics(self) -> PlainTextResponse:
        """Prometheus' text."""
        text = self.service.figures.text(self.service.now(), self.service.served.name)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def pairs(self, body: PairAsked) -> JSONResponse:
        """Two pictures of a prompt to choose from; `left` says which one is shown there."""
        ballots, served = self.service.ballots, self.service.served
        if ballots is None:
            raise Refused("votes are not kept here: lmsd serve ... serve.votes=DIR", status=404)
        check_drawn(body, served, self.service.limits)
        way, seed = body.way(served), body.seeded()
        self._held(served, way, body)
        items = [Item(way, body.prompt, seed, place) for place in range(2)]
        a, b = [encoded(each) for each in await self.service.drawn(served, way, items)]
        asked = {"prompt": body.prompt, "model": served.name, "seed": seed, "reads": served.reads}
        pair = Pair(**asked, steps=way.steps, guidance=way.guidance, a=a, b=b)  # type: ignore[arg-type]
        key = await asyncio.to_thread(ballots.keep, pair)
        self.service.figures.events["pairs"] += 1
        shown = {name: base64.b64encode(picture).decode() for name, picture in (("a", a), ("b", b))}
        return JSONResponse({"pair": key, "left": pair.left, **shown})

    async def votes(self, body: Vote) -> JSONResponse:
        """Which picture of a pair is better; answered once it is on the disk, and repeated without harm."""
        ballots = self.service.ballots
        if ballots is None:
            raise Refused("votes are not kept here: lmsd serve ... serve.votes=DIR", status=404)
        outcome = await asyncio.to_thread(ballots.vote, body.pair, body.choice)
        if outcome == "unknown":
            raise Refused("pair: there is no such pair, or not any more", field="pair", status=404)
        if outcome == "other":
            raise Refused("pair: it has another vote already", field="pair", status=409)
        self.service.figures.events["votes"] += outcome == "new"
        return JSONResponse({"pair": body.pair, "choice": body.choice, "counted": outcome == "new"})

    async def index(self) -> HTMLResponse:
        """The page to try the model on, and to vote."""
        return HTMLResponse(self.page, headers=_page_headers(self.page))

    async def failed(self, request: Request, error: Exception) -> JSONResponse:
        """OpenAI's error, for whatever went wrong."""
        match error:
            case Full():
                told = Refused(str(error), status=429, code="rate_limit_exceeded")
                return _error(told, {"Retry-After": str(error.seconds)})
            case Refused():
                return _error(error, {})
            case RequestValidationError():
                return _error(refusal(error.errors()), {})
            case HTTPException():
                return _error(Refused(str(error.detail), status=error.status_code), error.headers or {})
        return _error(Refused("the server failed at this request; its log says where", status=500), {})


def _error(told: Refused, headers: Mapping[str, str]) -> JSONResponse:
    kind = {401: "authentication_error", 429: "rate_limit_error"}.get(told.status, "invalid_request_error")
    kind = "server_error" if told.status >= 500 else kind
    content = {"message": told.message, "type": kind, "param": told.field, "code": told.code}
    return JSONResponse({"error": content}, status_code=told.status, headers=dict(headers))


async def _file(pixels: Pixels, kind: Any, quality: int) -> bytes:
    """A picture as a file; large ones are made beside the loop that answers others."""
    if pixels.shape[0] * pixels.shape[1] <= SMALL:
        return encoded(pixels, kind, quality)
    return await asyncio.to_thread(encoded, pixels, kind, quality)


@functools.cache
def _page_headers(page: str) -> dict[str, str]:
    """A policy by which the page runs its own script alone, and loads nothing from elsewhere."""
    import hashlib
    import re

    def digest(tag: str) -> str:
        text = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.S)[0]
        return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"

    return {
        "Content-Security-Policy": (
            f"default-src 'none'; script-src {digest('script')}; style-src {digest('style')}; "
            "img-src data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
            "frame-ancestors 'none'"
        ),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }
