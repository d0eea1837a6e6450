"""The same application within FastAPI, which is all that `fastapi run` accepts."""

from fastapi import FastAPI

from benchmarks.shutdown.application import app as plain
from benchmarks.shutdown.application import lifespan

app = FastAPI(lifespan=lifespan)
app.mount("/", plain)
