"""Gradients that travel during the backward pass, against one flat reduction after it, over a slow network.

    python benchmarks/overlap.py [STEPS]      as root: makes two network namespaces and removes them again

Two gloo ranks with one thread each, in two network namespaces joined by a pair of virtual cards whose rate is
limited by tc's token bucket, so that the backward pass takes about one and a half times the transfer (both
are printed). A net of 50 M weights in linear layers; both ways take turns, step by step, from the same
gradients. Prints medians, n and the ratio; exits with 1 where a step takes more than .80 of that with the
flat reduction, where less than 80 % of the numbers leave before the backward pass ends, where the means
differ, or where the backward pass was not between one and two times the transfer.
"""

import os
import statistics
import subprocess
import sys
import time

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lmsd.engine.buckets import Reducer

LIMIT, EARLY, WIDTH, LAYERS, BATCH = 0.80, 0.80, 1024, 48, 96
SIDES = ("lmsd-a", "lmsd-b")
Step = dict[str, float]


def network() -> None:
    """Two namespaces, joined."""
    for number, side in enumerate(SIDES):
        shell(f"ip netns add {side}")
        shell(f"ip netns exec {side} ip link set lo up")
        if number:
            shell(f"ip link add veth0 netns {SIDES[0]} type veth peer name veth0 netns {side}")
    for number, side in enumerate(SIDES):
        shell(f"ip netns exec {side} ip addr add 10.77.0.{number + 1}/24 dev veth0")
        shell(f"ip netns exec {side} ip link set veth0 up")


def limited(rate: float) -> None:
    """At most so many bytes a second, each way."""
    for side in SIDES:
        bits = int(8 * rate)
        bucket = f"tbf rate {bits}bit burst 256kb latency 400ms"
        shell(f"ip netns exec {side} tc qdisc replace dev veth0 root {bucket}")


def shell(command: str) -> None:
    subprocess.run(command.split(), check=True)


def ranks(*words: str) -> list[float]:
    """Run both ranks; the numbers that the first prints last."""
    running = []
    for rank, side in enumerate(SIDES):
        own = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "10.77.0.1", "MASTER_PORT": "29777"}
        own |= {"GLOO_SOCKET_IFNAME": "veth0", "OMP_NUM_THREADS": "1"}
        command = ["ip", "netns", "exec", side, sys.executable, "-W", "ignore", __file__, *words]
        running.append(
            subprocess.Popen(command, env={**os.environ, **own}, stdout=subprocess.PIPE, text=True)
        )
    said = [process.communicate(timeout=540)[0] for process in running]
    if any(process.returncode for process in running):
        raise SystemExit("a rank failed")
    return [float(word) for word in said[0].split()]


def build() -> tuple[nn.Module, Tensor]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(LAYERS)]
    return nn.Sequential(*layers), torch.randn(BATCH, WIDTH)


def flat(parameters: list[nn.Parameter]) -> None:
    """One reduction of a copy of all gradients, after the backward pass."""
    grads = [p.grad for p in parameters if p.grad is not None]
    whole = torch.cat([grad.reshape(-1) for grad in grads])
    dist.all_reduce(whole)
    whole.div_(2)
    for p, mean in zip(parameters, whole.split([p.numel() for p in parameters]), strict=True):
        p.grad = mean.view(p.shape)


def step(net: nn.Module, x: Tensor, reducer: Reducer | None) -> tuple[Step, list[Tensor]]:
    """Forward, backward, reduction: seconds of each part, and the means."""
    parameters = list(net.parameters())
    dist.barrier()
    start = time.perf_counter()
    loss = net(x).square().mean()
    middle = time.perf_counter()
    if reducer is None:
        loss.backward()
    else:
        with reducer.sending(parameters):
            loss.backward()
    backward = time.perf_counter()
    if reducer is None:
        flat(parameters)
    else:
        reducer(parameters)
    end = time.perf_counter()
    means = [p.grad.clone() for p in parameters if p.grad is not None]
    net.zero_grad(set_to_none=True)
    return {"whole": end - start, "backward": backward - middle, "transfer": end - backward}, means


def child(part: str, steps: int) -> None:
    """One rank: `probe` prints the seconds of a backward pass, `play` the table's numbers."""
    dist.init_process_group("gloo")
    net, x = build()
    if part == "probe":
        times = []
        for _ in range(3):
            start = time.perf_counter()
            loss = net(x).square().mean()
            middle = time.perf_counter()
            loss.backward()
            times.append(time.perf_counter() - middle)
            del start
            net.zero_grad(set_to_none=True)
        print(statistics.median(times), sum(p.numel() for p in net.parameters()))
        dist.destroy_process_group()
        return
    reducer, rows, same = Reducer(), [], True
    for _ in range(steps + 1):
        (one, before), (other, after) = step(net, x, None), step(net, x, reducer)
        same &= all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        rows.append((one, other))
    early, rows = reducer.early / reducer.elements, rows[1:]
    if dist.get_rank() == 0:
        medians = [
            statistics.median(row[0][name] for row in rows) for name in ("whole", "backward", "transfer")
        ]
        ratio = statistics.median(row[1]["whole"] / row[0]["whole"] for row in rows)
        print(
            *medians,
            statistics.median(row[1]["whole"] for row in rows),
            ratio,
            early,
            reducer.most,
            int(same),
        )
    dist.barrier()
    dist.destroy_process_group()


def main() -> int:
    """Make the network, measure, and say it."""
    words = sys.argv[1:]
    if words and words[0] in ("probe", "play"):
        child(words[0], int(words[1]))
        return 0
    steps = int(words[0]) if words else 7
    try:
        network()
        backward, numbers = ranks("probe", "0")
        limited(4 * numbers / (backward / 1.5))
        whole, backward, transfer, ours, ratio, early, most, same = ranks("play", str(steps))
    finally:
        for side in SIDES:
            subprocess.run(["ip", "netns", "del", side], check=False)
    print(
        f"{numbers / 1e6:.1f} M weights: backward {backward:.2f} s, transfer {transfer:.2f} s when it is flat"
    )
    print(f"step: flat {whole:.2f} s, in buckets {ours:.2f} s, median ratio {ratio:.3f}, n = {steps}")
    print(f"{early:.1%} leave before the backward pass ends; copies of {most / 2**20:.1f} MiB at most; means "
          f"{'equal to the last bit' if same else 'DIFFER'}")  # fmt: skip
    good = (
        transfer <= backward <= 2 * transfer
        and ratio <= LIMIT
        and early >= EARLY
        and same
        and most <= 64 << 20
    )
    print("pass" if good else "FAIL")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
