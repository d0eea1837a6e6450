"""How to poll a versioned document well, without I/O: requests, waits, errors.

`Rules.follow` and `Rules.call` are generators. They yield a step, receive its result, and return
the document in the end:

    Request     send it; the result is a `Response`, or a `TransportError` if there was none
    Sleep       sleep; there is no result
    Update      show the new version to the caller; there is no result

So the same code decides for the asynchronous client, the synchronous one, and the load test's
users. It knows no path and no field of a document: see `jobcache.client.jobs`.
"""
