"""What a type checker infers of ``fastrpc.aio``; never run, but checked by mypy in `make lint`.

The classes stand for those of Celery, of which the package celery-types has such types.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

from fastrpc import aio

if TYPE_CHECKING:
    from typing_extensions import assert_type

    T = TypeVar("T")

    class AsyncResult(Generic[T]):
        def get(self, timeout: float | None = None, propagate: bool = True) -> T: ...

    class Task(Generic[T]):
        def apply_async(self, args: Any = None, kwargs: Any = None) -> AsyncResult[T]: ...

    async def infer(task: Task[int], result: AsyncResult[str], untyped: Any) -> None:
        assert_type(await aio.apply_async(task, (1,)), AsyncResult[int])
        assert_type(await aio.get(await aio.apply_async(task)), int)
        assert_type(await aio.get(result, timeout=1), str)
        async for ready in aio.as_completed([result]):
            assert_type(ready, AsyncResult[str])
        assert_type(await aio.get(untyped), Any)
        await aio.get(1)  # type: ignore[arg-type]
