"""Soak: every kind of traffic and all faults at random for hours, with the memory of each process.

`python -m chaos soak` runs it. Traffic is slow between the faults and as fast as possible during each, so that hours of
it cost a fraction of a core. Every fault stands between two pauses of all clients, in which the service's counters must
agree with the requests that were sent.
"""
