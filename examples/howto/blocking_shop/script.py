"""A script that bills what is there, and ends."""

from events_core.sync import create_client

client = create_client("orders", file="events.toml")
with client, client.subscribe() as receiver:
    while message := receiver.receive_message(timeout=2):
        with receiver.processing(message):
            print("billed order", message.data_as_json()["order"])
