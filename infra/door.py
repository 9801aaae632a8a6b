"""Let one port of a container's loopback out, and nothing else: ``python3 door.py 8333 8334``.

What listens on 127.0.0.1:8334 is then reached on port 8333 of all interfaces. Standard library only, for it runs as a file.
"""

from __future__ import annotations

import asyncio
import sys
from asyncio import StreamReader, StreamWriter


async def keep(outside: int, inside: int) -> None:
    """Pass every visitor of the port `outside` on to the port `inside`, for ever."""

    async def visit(reader: StreamReader, writer: StreamWriter) -> None:
        writers = [writer]
        try:
            answers, questions = await asyncio.open_connection("127.0.0.1", inside)
            writers.append(questions)
            async with asyncio.TaskGroup() as both:
                both.create_task(_pass(reader, questions))
                both.create_task(_pass(answers, writer))
        except (OSError, ExceptionGroup):  # nobody is in, or one of them hung up: so the other does
            return
        finally:
            for one in writers:
                one.close()

    async with await asyncio.start_server(visit, "0.0.0.0", outside, backlog=1024) as server:  # noqa: S104 - of the container
        await server.serve_forever()


async def _pass(reader: StreamReader, writer: StreamWriter) -> None:
    while chunk := await reader.read(1 << 18):
        writer.write(chunk)
        await writer.drain()
    writer.write_eof()  # the other way may go on


if __name__ == "__main__":
    asyncio.run(keep(int(sys.argv[1]), int(sys.argv[2])))
