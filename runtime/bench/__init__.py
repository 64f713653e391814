"""`cleave bench`: how fast, and how far from what the machine can do.

In reading order: `counts` (bytes and operations of a step), `limits` and `gpu_limits` (what a device can do),
`probe` (the device that counts), `phase` (one measured beside the other), `lockstep` (a batch without a
scheduler), `latency`, `kvrun`, `throughput`; `arrivals`, `client`, `serving` for servers; `tables`, `plot`,
`record` for the results.
"""
