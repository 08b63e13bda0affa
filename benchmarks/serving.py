"""What serving promises, on a run of digits: nothing lost, images as if alone, throughput, memory, votes.

    python benchmarks/serving.py [--short] [--run FOLDER] [--only images throughput ...]

    images       500 requests of 50 clients: lost; each image against the one drawn alone; the same with exact
    throughput   batches of 16 beside batches of 1, servers of their own, in turns: requests/s, p95
    full         a queue of 8 images: every answer is 200, or 429 with Retry-After
    memory       resident memory over 5,000 requests
    drain        SIGTERM under load: requests that were sent on an open connection and not answered
    change       change-overs under load: failures; answers whose image is not of the model that they name
    votes        kill -9 at random moments: votes that were answered and are not there, or are there twice

Without --run a short run of digits is trained first. Servers listen on this machine alone, with one thread of
torch each; the clients are one process. Writes benchmarks/results/serving.json.
"""

import argparse
import asyncio
import base64
import contextlib
import io
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
RESULTS = Path(__file__).parent / "results" / "serving.json"
LMSD = [sys.executable, "-m", "lmsd.cli"]


class Gone(Exception):
    """A connection that ended; sent: whether a whole request had been written to it."""

    def __init__(self, sent: bool) -> None:
        super().__init__("the connection ended")
        self.sent = sent


class Client:
    """One connection, kept alive."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.line: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, str], Any]:
        """Status, headers, JSON. Raises Gone, and OSError where nobody listens."""
        if self.line is None:
            self.line = await asyncio.open_connection("127.0.0.1", self.port)
        reader, writer = self.line
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        try:
            writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
            first, *rows = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {name.lower(): value for name, _, value in (row.partition(": ") for row in rows)}
            content = await reader.readexactly(int(headers["content-length"]))
        except (OSError, EOFError) as error:
            self.close()
            raise Gone(sent=True) from error
        if headers.get("connection") == "close":
            self.close()
        return int(first.split()[1]), headers, json.loads(content)

    def close(self) -> None:
        if self.line is not None:
            self.line[1].close()
        self.line = None


@contextlib.contextmanager
def server(run: str, *options: str, cwd: Path) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """(port, process) of a server that is ready; killed with the block."""
    words = [*LMSD, "serve", f"run={run}", "serve.port=0", *options]
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    process = subprocess.Popen(words, cwd=cwd, env={**os.environ, "OMP_NUM_THREADS": "1"}, **quiet)
    try:
        port = int(process.stdout.readline().rpartition(":")[2])
        asyncio.run(warm(port))
        yield port, process
    finally:
        process.kill()
        process.wait()


async def warm(port: int) -> None:
    client, due = Client(port), time.monotonic() + 60
    while time.monotonic() < due:
        status, _, _ = await client.post("/v1/images/generations", wish(0))
        if status == 200:
            return client.close()
        await asyncio.sleep(0.05)
    raise RuntimeError("the server does not become ready")


def wish(seed: int, n: int = 1) -> dict[str, Any]:
    return {"prompt": f"a handwritten {WORDS[seed % 10]}", "seed": seed, "n": n}


def picture(told: Any, place: int = 0) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(told["data"][place]["b64_json"]))))


async def clients(port: int, number: int, work: Callable[[Client, int], Any], total: int) -> list[Any]:
    """So many pieces of work by so many clients at once, each with its own connection; results by number."""
    found: list[Any] = [None] * total
    left = iter(range(total))

    async def one() -> None:
        client = Client(port)
        for place in left:
            found[place] = await work(client, place)
        client.close()

    await asyncio.gather(*(one() for _ in range(number)))
    return found


def images(run: Path, short: bool) -> dict[str, Any]:
    """Lost requests, and images against those drawn alone."""
    import torch

    import lmsd
    from lmsd.serving.served import Item, Served

    torch.set_num_threads(1)
    total, row = 500, {}
    alone = Served(lmsd.load(run), "alone", at_once=1)
    for exact in (False, True):

        async def work(client: Client, place: int) -> Any:
            return await client.post("/v1/images/generations", wish(place, 1 + place % 3))

        with server(str(run), f"serve.exact={str(exact).lower()}", cwd=run.parents[1]) as (port, _):
            found = asyncio.run(clients(port, 50, work, total))
            single = asyncio.run(clients(port, 1, work, 60 if short else total)) if exact else None
        lost = sum(each is None or each[0] != 200 for each in found)
        drawn = [picture(told, place) for _, _, told in found for place in range(len(told["data"]))]
        if single is not None:
            same = [one[2]["data"] == many[2]["data"] for one, many in zip(single, found, strict=False)]
            row["exact"] = {"lost": lost, "requests": len(same), "bit-equal": sum(same)}
            continue
        wanted = [
            alone.draw([Item(alone.own, told["prompt"], told["seed"], place)])[0][:, :, 0]
            for told in (wish(number, 1 + number % 3) for number in range(total))
            for place in range(told["n"])
        ]
        apart = np.abs(np.stack(drawn).astype(int) - np.stack(wanted))
        row["batched"] = {
            "requests": total, "lost": lost, "images": len(drawn), "most of 255": int(apart.max()),
            "share of pixels": float((apart > 0).mean()),
        }  # fmt: skip
    return row


def throughput(run: Path, short: bool) -> dict[str, Any]:
    """Batches beside one image at a time, in turns."""
    rounds, total = (3, 300) if short else (5, 500)

    async def work(client: Client, place: int) -> float:
        begun = time.perf_counter()
        status, _, _ = await client.post("/v1/images/generations", wish(place))
        assert status == 200
        return time.perf_counter() - begun

    found: dict[str, list[tuple[float, float]]] = {"batches": [], "single": []}
    with (
        server(str(run), cwd=run.parents[1]) as (batched, _),
        server(str(run), "serve.batch=1", "serve.wait_ms=0", cwd=run.parents[1]) as (single, _),
    ):
        for _ in range(rounds):
            for name, port in (("batches", batched), ("single", single)):
                begun = time.perf_counter()
                times = asyncio.run(clients(port, 50, work, total))
                rate = total / (time.perf_counter() - begun)
                found[name].append((rate, float(np.quantile(times, 0.95))))
    told: dict[str, Any] = {"rounds": rounds, "requests": total, "clients": 50}
    for name, rows in found.items():
        rate, p95 = (statistics.median(column) for column in zip(*rows, strict=True))
        told[name] = {"requests/s": round(rate, 1), "p95 ms": round(1000 * p95, 1)}
    ratios = [one[0] / other[0] for one, other in zip(found["batches"], found["single"], strict=True)]
    told["times as many"] = [round(each, 2) for each in (min(ratios), statistics.median(ratios), max(ratios))]
    return told


def full(run: Path, short: bool) -> dict[str, Any]:
    """A small queue under many clients."""

    async def work(client: Client, place: int) -> Any:
        status, headers, _ = await client.post("/v1/images/generations", wish(place, 4))
        return status, int(headers.get("retry-after", 0)) >= 1

    with server(str(run), "serve.queue=8", "serve.batch=4", cwd=run.parents[1]) as (port, _):
        found = Counter(asyncio.run(clients(port, 50, work, 300)))
    return {
        f"{status}{' with Retry-After' * retry}": count for (status, retry), count in sorted(found.items())
    }


def memory(run: Path, short: bool) -> dict[str, Any]:
    """Resident memory after each tenth of the requests."""
    total, rows = 1000 if short else 5000, []

    async def work(client: Client, place: int) -> None:
        status, _, _ = await client.post("/v1/images/generations", {**wish(place), "prompt": f"a {place}"})
        assert status == 200

    with server(str(run), cwd=run.parents[1]) as (port, process):
        for _ in range(10):
            asyncio.run(clients(port, 20, work, total // 10))
            status = Path(f"/proc/{process.pid}/status").read_text()
            rows.append(int(status.partition("VmRSS:")[2].split()[0]) / 1024)
    return {
        "requests": total,
        "MiB": [round(each, 1) for each in rows],
        "grown since a fifth of them": round(rows[-1] - rows[1], 1),
    }


def drain(run: Path, short: bool) -> dict[str, Any]:
    """SIGTERM in the middle of things."""
    times, told = 3 if short else 20, Counter[str]()
    draw = random.Random(0)
    for _ in range(times):
        with server(str(run), cwd=run.parents[1]) as (port, process):

            async def work(client: Client, stop: float) -> None:
                place = 0
                while time.monotonic() < stop:
                    place += 1
                    try:
                        status, _, _ = await client.post("/v1/images/generations", wish(place, 1 + place % 4))
                        told["answered" if status == 200 else f"status {status}"] += 1
                    except Gone:
                        told["sent and not answered"] += 1
                        return
                    except OSError:  # nobody listens any more
                        return

            async def all_(port: int = port, process: subprocess.Popen[str] = process) -> None:
                tasks = [asyncio.create_task(work(Client(port), time.monotonic() + 20)) for _ in range(50)]
                await asyncio.sleep(0.3 + draw.random())
                process.send_signal(signal.SIGTERM)
                await asyncio.gather(*tasks)

            asyncio.run(all_())
            told[f"exit code {process.wait(30)}"] += 1
    return {"times": times, **told}


def change(run: Path, short: bool) -> dict[str, Any]:
    """Another checkpoint takes over, again and again."""
    import torch

    import lmsd
    from lmsd.serving.served import Item, Served

    torch.set_num_threads(1)
    times, told, home = 4 if short else 20, Counter[str](), run.parents[1]
    files = sorted((run / "checkpoints").glob("*.ckpt"))[-2:]
    if len(files) < 2:
        raise SystemExit("change needs a run with two checkpoints")
    models = {f"{run.name}/{file.name}@ema": Served(lmsd.load(file), file.name, at_once=1) for file in files}
    wanted: dict[tuple[str, int], np.ndarray] = {}

    def promote(number: int) -> None:
        os.chdir(home)
        from lmsd.evaluation.pointer import Promoted, point

        point(Promoted.of(Path("outputs") / run.name, files[number % 2]), [])

    promote(0)
    with server("promoted", "serve.look_seconds=0.05", cwd=home) as (port, _):
        found: list[tuple[int, str, Any]] = []

        async def work(client: Client, stop: asyncio.Event) -> None:
            place = 0
            while not stop.is_set():
                place = (place + 1) % 40
                try:
                    status, headers, body = await client.post("/v1/images/generations", wish(place))
                except (Gone, OSError):
                    told["lost"] += 1
                    continue
                told[f"status {status}"] += 1
                found.append((place, headers["x-lmsd-model"], picture(body)))

        async def all_() -> None:
            stop = asyncio.Event()
            tasks = [asyncio.create_task(work(Client(port), stop)) for _ in range(10)]
            for number in range(1, times + 1):
                await asyncio.sleep(0.4)
                promote(number)
                due = time.monotonic() + 20
                while found[-1:] and found[-1][1] != list(models)[number % 2] and time.monotonic() < due:
                    await asyncio.sleep(0.02)
            await asyncio.sleep(0.4)
            stop.set()
            await asyncio.gather(*tasks)

        asyncio.run(all_())
    for place, name, shown in found:
        if (name, place) not in wanted:
            item = Item(models[name].own, wish(place)["prompt"], place, 0)
            wanted[name, place] = models[name].draw([item])[0][:, :, 0].astype(int)
        told["not of the model it names"] += int(np.abs(shown - wanted[name, place]).max() > 1)
    switched = sum(one[1] != other[1] for one, other in pairwise(found))
    return {"changes": times, "seen in the answers at least": min(switched, times), **told}


def votes(run: Path, short: bool) -> dict[str, Any]:
    """Kill -9 while people vote."""
    from lmsd.data.votes import JOURNAL, votes_in

    times, draw, answered, told = 3 if short else 50, random.Random(0), dict[str, str](), Counter[str]()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "votes"
        for number in range(times):
            with server(str(run), f"serve.votes={folder}", cwd=run.parents[1]) as (port, process):

                async def work(client: Client, first: int) -> None:
                    for seed in range(first, first + 10_000):
                        try:
                            _, _, pair = await client.post(
                                "/pairs", {"prompt": "a handwritten two", "seed": seed}
                            )
                            choice = ["a", "b", "tie", "both_bad"][seed % 4]
                            status, _, _ = await client.post(
                                "/votes", {"pair": pair["pair"], "choice": choice}
                            )
                        except (Gone, OSError):
                            return
                        if status == 200:
                            answered[pair["pair"]] = choice

                async def all_(first: int = 100_000 * number) -> None:
                    tasks = [asyncio.create_task(work(Client(port), first + 10_000 * i)) for i in range(8)]
                    await asyncio.sleep(draw.uniform(0.05, 0.8))
                    process.kill()
                    await asyncio.gather(*tasks)

                asyncio.run(all_())
        found = votes_in(folder)
        keys = [json.loads(line)["pair"] for line in (folder / JOURNAL).read_bytes().split(b"\n")[:-1]]
    told["answered"] = len(answered)
    told["answered and not there"] = sum(found.get(key) != choice for key, choice in answered.items())
    told["there twice"] = len(keys) - len(set(keys))
    told["there, killed before the answer"] = len(found.keys() - answered.keys())
    return {"kills": times, **told}


def trained(short: bool) -> Path:
    """A run of digits with two checkpoints."""
    home = Path(tempfile.mkdtemp(prefix="serving-"))
    size = 4_000 if short else 20_000
    subprocess.run(
        [*LMSD, "data", "build", "digits", "out=digits"], cwd=home, check=True, capture_output=True
    )
    words = ["experiment=digits", "data.shards=digits", f"images={size}", f"checkpoint_every={size // 2}"]
    words += ["evaluate.n=0", "logger=none", "accelerator=cpu", "run_dir=outputs/digits"]
    subprocess.run([*LMSD, "train", *words], cwd=home, check=True, capture_output=True)
    return home / "outputs" / "digits"


PARTS = {part.__name__: part for part in (images, throughput, full, memory, drain, change, votes)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--run", type=Path)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    asked = parser.parse_args()
    run = (asked.run or trained(asked.short)).absolute()
    for name in asked.only:
        row = PARTS[name](run, asked.short)
        print(name, json.dumps(row, indent=1), flush=True)
        if not asked.short:
            found = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
            RESULTS.write_text(json.dumps({**found, name: row}, indent=1) + "\n")


if __name__ == "__main__":
    main()
