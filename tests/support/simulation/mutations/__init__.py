"""Faults for the simulation to find: each function plants one."""
