"""Requests and what comes of them: one request, one generator, files with metadata, batches of jobs."""
