"""A store for the benchmarks: moto's S3 server on loopback behind a proxy that holds each request back for a while.

So the numbers say what waiting for requests costs and how much of it is hidden; they say nothing about the bandwidth of a
real store, and this server's own Python takes processor time that a real one would not.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))
import s3_server

BUCKET = "s3://bucket"


@contextmanager
def delayed_store(delay_ms: float) -> Iterator[tuple[str, Callable[[], int]]]:
    """Serve the empty bucket :data:`BUCKET`; this process finds it without the delay.

    Yields the address at which requests wait, and a function that returns how many have been made there.
    """
    with s3_server.serving() as server:
        command = [sys.executable, __file__, server, str(delay_ms)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as proxy:
            assert proxy.stdin is not None
            assert proxy.stdout is not None
            asking, answers = proxy.stdin, proxy.stdout

            def asked() -> int:
                asking.write("\n")
                asking.flush()
                return int(answers.readline())

            address = answers.readline().strip()
            os.environ.update({**s3_server.SETTINGS, "AWS_ENDPOINT_URL": server})
            s3_server.make_bucket(server, BUCKET.removeprefix("s3://"))
            yield address, asked
            asking.close()
            proxy.wait()


async def _delayed(server: str, delay: float) -> None:
    """Hand requests on to a server, each after a delay; prints the address, then for each line of input the number so far."""
    host, port = server.removeprefix("http://").split(":")
    seen = 0

    async def hand_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, waits: bool) -> None:
        nonlocal seen
        while some := await reader.read(1 << 18):
            if waits and some.split(b" ", 1)[0] in (b"GET", b"HEAD", b"PUT", b"POST", b"DELETE"):
                seen += 1
                await asyncio.sleep(delay)
            writer.write(some)
            await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up, to = await asyncio.open_connection(host, int(port))
        await asyncio.gather(hand_on(reader, to, True), hand_on(up, writer, False), return_exceptions=True)

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}", flush=True)
    loop = asyncio.get_running_loop()
    while await loop.run_in_executor(None, sys.stdin.readline):
        print(seen, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("server")
    parser.add_argument("delay_ms", type=float)
    options = parser.parse_args()
    asyncio.run(_delayed(options.server, options.delay_ms / 1e3))
