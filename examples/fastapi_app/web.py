"""A web application that awaits the results of tasks, without a thread for each request.

uvicorn web:app
curl localhost:8000/add/2/2
curl -N localhost:8000/count/10
"""

import json

import proj
from celery.exceptions import TimeoutError
from fastapi import FastAPI, HTTPException
from fastapi.responses import StreamingResponse

from fastrpc import aio

app = FastAPI()


@app.get("/add/{x}/{y}")
async def add(x: int, y: int):
    """The sum; 504 if the worker takes longer than ten seconds."""
    result = await aio.apply_async(proj.add, (x, y))
    try:
        return {"sum": await aio.get(result, timeout=10)}
    except TimeoutError:
        raise HTTPException(504, "no answer yet") from None


@app.get("/count/{steps}")
async def count(steps: int):
    """Each state of the task, one JSON text a line, as it comes."""
    result = await aio.apply_async(proj.count, (steps,))

    async def lines():
        async for meta in aio.states(result, timeout=60):
            yield json.dumps({"state": meta["status"], "result": meta["result"]}) + "\n"

    return StreamingResponse(lines(), media_type="application/x-ndjson")
