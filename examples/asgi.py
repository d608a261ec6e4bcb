"""A web application that calls tasks and awaits their results, without a thread for each request.

BROKER_URL=amqp://guest:guest@localhost// celery -A examples.tasks worker -P threads
BROKER_URL=amqp://guest:guest@localhost// uvicorn examples.asgi:app

curl localhost:8000/add/2/2
curl localhost:8000/count/10
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

from celery.exceptions import TimeoutError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from examples import tasks
from fastrpc import aio


async def add(request: Request) -> JSONResponse:
    """The sum; 504 if the worker takes longer than ten seconds."""
    numbers = request.path_params["x"], request.path_params["y"]
    result = await aio.apply_async(tasks.add, numbers)
    try:
        return JSONResponse({"sum": await aio.get(result, timeout=10)})
    except TimeoutError:
        return JSONResponse({"error": "no answer yet"}, status_code=504)


async def count(request: Request) -> StreamingResponse:
    """Each state of the task, one JSON text a line, as it comes."""
    result = await aio.apply_async(tasks.count, (request.path_params["steps"],))

    async def lines() -> AsyncIterator[str]:
        async for meta in aio.states(result, timeout=60):
            yield json.dumps({"state": meta["status"], "result": meta["result"]}) + "\n"

    return StreamingResponse(lines(), media_type="application/x-ndjson")


app = Starlette(routes=[Route("/add/{x:int}/{y:int}", add), Route("/count/{steps:int}", count)])
