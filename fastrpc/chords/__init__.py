"""Chords without a store: the parts of a chord meet in a queue of their own.

The process that applies a chord declares its queue. Each header task that ends sends its result to
this queue, beside the reply that its caller gets, and waits for the broker's confirm. Only then is
the count of the queue right. Any process that sees by the count that all parts may be there
consumes the queue. The queue has a single active consumer, so one process gets everything and the
others nothing. That process drops doubles by task id. If the set is whole, it sends the body, waits
for the broker's confirm, and deletes the queue. If not, it gives everything back, and looks once
more if parts came meanwhile.

What happens if a process is killed:

- Before its part is confirmed: a task that is acknowledged late is run again, and sends its part
  again. A task that was acknowledged early is lost, as with every result backend.
- After the confirm, before the count: the same. If a part is there twice, one is dropped. A task
  that is acknowledged late is not acknowledged before its chord was looked at.
- While it holds the parts, before the body is sent: the broker gives the parts back. Another
  process that has looked meanwhile looks again until they are back, and gets them. Otherwise the
  header task that ended last is run again, if it is acknowledged late, and counts again.
- After the body is sent, before the queue is deleted: the same, and the body is sent again: it runs
  once more for each such end.
- After the queue is deleted: nothing is left to do. The broker returns a part that comes now; it is
  counted and dropped.

So either the queue stays whole or the body was sent. A lost connection alone loses nothing: the
look is repeated over the next one until it succeeds, also while the broker has not noticed the loss
and keeps the parts for the old one. It is repeated too while a quorum queue elects a leader, and
while the node of a classic queue is down. If the body was sent before, only the deletion is
repeated, so the body runs twice only if another process got the parts meanwhile.

The broker drops a queue that nobody touches for ``result_expires``, with what is in it.
"""
