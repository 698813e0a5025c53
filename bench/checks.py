"""The verification pass, what the workers do in it: payloads that all differ, compared byte for byte."""

from __future__ import annotations

import numpy as np

from .endpoint import Endpoint
from .jobs import BATCH_MESSAGES, array, message, need
from .objects import getter_of_objects, message_object, putter_of_objects


def check_send(end: Endpoint, form: str, count: int, size: int) -> None:
    if form == "many":
        put_many = need(end.put_many)
        for first in range(0, count, BATCH_MESSAGES):
            put_many([message(size, first + i) for i in range(BATCH_MESSAGES)])
    elif form == "loan":
        loan = need(end.loan)
        for number in range(count):
            view, publish = loan(size)
            view[:] = array(size, number)
            del view
            publish()
            del publish
    elif form == "one":
        put = need(end.put)
        for number in range(count):
            put(message(size, number))
    elif form == "object":
        put_object = putter_of_objects(end)
        for number in range(count):
            put_object(message_object(number))
    else:
        put_array = need(end.put_array)
        for number in range(count):
            put_array(array(size, number))


def check_receive(end: Endpoint, form: str, count: int, size: int) -> int:
    """How many payloads arrived in order and byte for byte as sent. For "many": a multiple of a batch."""
    good = 0
    if form == "many":
        get_many, seen = need(end.get_many), 0
        while seen < count:
            for one in get_many(BATCH_MESSAGES):
                good += end.payload(one) == message(size, seen)
                seen += 1
    elif form == "object":
        get_object = getter_of_objects(end)
        for number in range(count):
            good += get_object() == message_object(number)
    elif form == "one":
        get = need(end.get)
        for number in range(count):
            good += end.payload(get()) == message(size, number)
    else:
        get = need(end.get_polling if form == "loan" else end.get_array)
        as_array = need(end.as_array)
        for number in range(count):
            good += bool(np.array_equal(as_array(get()), array(size, number)))
    return good
