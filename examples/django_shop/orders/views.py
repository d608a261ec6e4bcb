from django.http import JsonResponse

from fastrpc import aio

from .tasks import total


def show_total(request, price, count):
    """An ordinary view: its thread waits."""
    return JsonResponse({"total": total.delay(price, count).get(timeout=10)})


async def show_totals(request, price):
    """An async view: nothing waits but this request, under ASGI."""
    results = await aio.apply_many(total, [(price, count) for count in range(1, 11)])
    return JsonResponse({"totals": await aio.get(results, timeout=10)})
