"""Threads that compute a job together; see `cleave.crew.crew`."""
