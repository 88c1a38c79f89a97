"""Requests per second of `pinyin-llm serve`, one after another and many at a time: the same sounds, the same server.

python benchmarks/serve.py --requests 40 --parallel 20
"""

import argparse
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from openai import OpenAI
from tabulate import tabulate
from tqdm import tqdm


SAMPLES = Path(__file__).parents[1] / "samples"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for(client: OpenAI) -> None:
    for _ in range(120):
        try:
            client.models.list()
            return
        except Exception:  # not up yet
            time.sleep(0.5)
    raise TimeoutError("The server did not start within a minute.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--parallel", type=int, nargs="+", default=[1, 4, 20])
    parser.add_argument("--rounds", type=int, default=3, help="the median is shown")
    parser.add_argument("--model", default=str(SAMPLES.parent))
    parser.add_argument("--batch_size", default="32")
    arguments = parser.parse_args()
    port = free_port()
    flags = ["--model", arguments.model, "--port", str(port), "--batch_size", arguments.batch_size]
    server = subprocess.Popen(
        [sys.executable, "-m", "pinyin_llm.inference.cli", "serve", *flags], stderr=subprocess.DEVNULL
    )
    client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
    sounds = [path for path in sorted(SAMPLES.iterdir()) if path.suffix != ".tsv"]

    def ask(number: int) -> str:
        return client.audio.transcriptions.create(model="mini", file=sounds[number % len(sounds)]).text

    try:
        wait_for(client)
        times: dict[int, list[float]] = {parallel: [] for parallel in arguments.parallel}
        failures = 0
        for _ in tqdm(range(arguments.rounds), unit="round"):
            for parallel, seconds in times.items():
                start = time.perf_counter()
                with ThreadPoolExecutor(parallel) as pool:
                    failures += sum(not text for text in pool.map(ask, range(arguments.requests)))
                seconds.append(time.perf_counter() - start)
    finally:
        server.terminate()
        server.wait()
    medians = {parallel: sorted(seconds)[len(seconds) // 2] for parallel, seconds in times.items()}
    first = medians[arguments.parallel[0]]
    rows = [(n, f"{arguments.requests / s:.1f}", f"{first / s:.2f}") for n, s in medians.items()]
    print(tabulate(rows, headers=["at a time", "requests/s", f"against {arguments.parallel[0]}"], tablefmt="github"))
    print(f"\nempty answers: {failures} of {len(times) * arguments.rounds * arguments.requests}")


if __name__ == "__main__":
    main()
