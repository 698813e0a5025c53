"""The rivals: one small file each, all with the interface of `bench.endpoint.Transport`.

A rival is measured through the call that its users would make for the same purpose, in its fastest
form that is documented. Each file says where its receiver gets less than shmq's does (for example a
buffer that the next message overwrites), because that is to the rival's advantage.
"""

from __future__ import annotations

from types import ModuleType

from . import (
    fasterfifo,
    iceoryx,
    mp_pipe,
    mp_queue,
    mp_simple,
    mpi,
    nng_pair,
    posix_mq,
    pyzmq,
    pyzmq_tcp,
    torch_queue,
    unix_socket,
    zenoh_shm,
)

ALL: tuple[ModuleType, ...] = (
    mp_queue,
    mp_simple,
    mp_pipe,
    torch_queue,
    pyzmq,
    pyzmq_tcp,
    nng_pair,
    fasterfifo,
    iceoryx,
    zenoh_shm,
    mpi,
    posix_mq,
    unix_socket,
)
