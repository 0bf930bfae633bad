"""The parts of the tests of several daemons.

- `wires`: ways from a daemon to storage and to its peers, each of which can be cut by itself.
- `history`: clients that write and read all the time, and what they may read.
- `faults`: daemons are killed, stopped, cut off, replaced, while the clients go on.
- `idle`: what daemons ask of storage when nobody asks them for anything.
- `throughput`: what more daemons bring, and what passing on costs.
"""
