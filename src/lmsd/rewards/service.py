"""A reward over HTTP: images and captions out, scores back.

    POST url   {"images": [PNG in base64, ...], "captions": [...]}      →      {"scores": [number, ...]}

For judges in another process, on another machine or in another environment. Only JSON numbers come back; null
is a score that failed.
"""

import base64
import http.client
import io
import json
import math
import time
import urllib.error
import urllib.request

import torch
from torch import Tensor

from lmsd.errors import UserError
from lmsd.rewards.base import NOBODY, Reward, RewardError, captions_of
from lmsd.types import Batch, Players, levels


class HTTPService(Reward):
    """The scores of a service.

    url: its address; timeout: seconds per attempt; retries: further attempts; wait: seconds before the second
    attempt, doubled before each later one.

    Raises UserError for an address that is not http(s).
    """

    def __init__(self, url: str, *, timeout: float = 30.0, retries: int = 3, wait: float = 0.5) -> None:
        if not url.startswith(("http://", "https://")):
            raise UserError(
                f"reward: {url!r} is not a service's address, which begins with http:// or https://"
            )
        self.url, self.timeout, self.retries, self.wait = url, timeout, retries, wait

    @property
    def name(self) -> str:
        """Its address."""
        return self.url

    def __call__(self, images: Tensor, batch: Batch, players: Players = NOBODY) -> Tensor:
        """[B]; raises the last attempt's RewardError if none got a valid answer in time."""
        body = {"images": [_png(image) for image in images], "captions": captions_of(batch)}
        data = json.dumps(body).encode()
        for attempt in range(self.retries + 1):
            try:
                scores = self._ask(data)
                break
            except (OSError, ValueError, http.client.HTTPException) as error:
                if attempt == self.retries:
                    raise RewardError.of(error) from error
                time.sleep(self.wait * 2**attempt)
        return torch.tensor(scores)

    def _ask(self, data: bytes) -> list[float]:
        request = urllib.request.Request(self.url, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=self.timeout) as answer:
            found = json.loads(answer.read())
        if not isinstance(found, dict) or not isinstance(found.get("scores"), list):
            raise ValueError('the service did not answer {"scores": [...]}')
        return [math.nan if score is None else float(score) for score in found["scores"]]


def _png(image: Tensor) -> str:
    """[C,H,W] in [-1,1] → a PNG in base64."""
    from PIL import Image

    pixels = levels(image).cpu()
    picture = Image.fromarray(pixels[0].numpy() if len(pixels) == 1 else pixels.permute(1, 2, 0).numpy())
    file = io.BytesIO()
    picture.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
