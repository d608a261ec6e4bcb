from celery import shared_task


@shared_task
def total(price, count):
    return price * count
