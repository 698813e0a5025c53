"""The benchmark of shmq, with its rivals and the machine's own floors in the same run.

`python -m bench` from the repository's root. README.md beside this file says how to read the
result.
"""
