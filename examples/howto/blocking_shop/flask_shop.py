"""A Flask application that takes orders."""

from flask import Flask, request
from shop import place

from events_core import PublishError

app = Flask(__name__)


@app.post("/orders")
def place_order() -> tuple[dict[str, str], int]:
    try:
        return {"id": place(request.json["order"])}, 202
    except PublishError as error:
        return {"error": error.code.value}, 503
